"""nnU-Net as a segmenter of an experiment, through the plugin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_plugin.mixing import share_at
from nnunet_plugin.settings import parse_settings
from nnunet_plugin.voxels import as_label

from ..data.cases import open_cases
from ..data.description import DatasetDescription, read_description
from ..metrics.segmentation import compare_label_maps, summarise_cases
from ..pool.writing import write_record
from ..runtime.errors import InputError
from ..runtime.files import read_record
from .dataset import link_dataset
from .nnunet_commands import (
    CPU_PLANS,
    dataset_number,
    nnunet_environment,
    predict_command,
    results_folder,
    train_command,
    training_settings,
)
from .protocol import NNUNET_SETTINGS
from .record import choose_device

NAME = "experiment"
TOLERANCE = 2.0

Call = Callable[[list[str]], None]


def train(
    s: dict[str, Any], dataset_dir: Path, pool: Path | None, num_synthetic: int, folder: Path, call: Call
) -> dict[str, Any]:
    """Train the network of one cell.

    Args:
        s: settings of the cell.
        dataset_dir: preprocessed data set, which stays as it is.
        pool, num_synthetic: the pool of the arm and how many of its kept samples are used, or None.
        folder: of the cell.
        call: runs a command.
    """
    from nnunet_plugin.cpu_plans import write_cpu_plans
    from nnunet_plugin.import_pool import add_pool
    from nnunet_plugin.transplant.command import add_transplants

    settings = {**NNUNET_SETTINGS, **s["settings"]}
    settings["num_epochs"] = max(1, round(s.get("epochs_factor", 1) * settings["num_epochs"]))
    mixing = {key: value for key, value in s["mixing"].items() if key not in ("budget", "augmentation")}
    iterations = settings["num_iterations_per_epoch"]
    if s["mixing"].get("budget") == "real_exposures":
        iterations = real_exposures(iterations, settings["num_epochs"], mixing, pool is not None)
    transplant = mixing.pop("transplant", None)
    number, plans = dataset_number(dataset_dir.name), _plans(s)
    view = folder / "nnUNet_preprocessed" / dataset_dir.name
    if not (view / "synthaug").exists():  # an interrupted training goes on with what it began with
        link_dataset(dataset_dir, view)
    for name in ("nnUNet_raw", "nnUNet_results"):
        (folder / name).mkdir(exist_ok=True)
    share = 0.0
    if pool is not None:
        pool, share = (
            _first_samples(pool, num_synthetic, folder / f"pool_first{num_synthetic}"),
            mixing.get("share", 0.5),
        )
    elif transplant is None:
        pool, mixing = _unused_pool(s, view, folder), {**mixing, "share": 0.0}
    workers = {} if settings["full_plans"] else {"nnUNet_n_proc_DA": "0"}
    with nnunet_environment(folder, settings["full_plans"], **workers):
        if not settings["full_plans"]:
            write_cpu_plans(number, s["plans"], CPU_PLANS)
        shared: dict[str, Any] = {
            "fold": s["fold"], "plans": plans, "plans_out": f"{plans}SynthAug", "seed": s["seed"],
            "training": training_settings(settings["num_epochs"], iterations, s["seed"], settings["full_plans"]),
        }  # fmt: skip
        base = s["configuration"]
        if pool is not None:
            made = NAME if transplant is None else f"{NAME}_pool"
            add_pool(pool, number, configuration=base, name=made, pool_name="pool", **shared, **mixing)
            base = made
        if transplant is not None:
            add_transplants(number, configuration=base, name=NAME, **shared, **transplant)
        results = _results(s, dataset_dir, folder)
        call(train_command(number, NAME, s["fold"], f"{plans}SynthAug", choose_device(), results))
    return {
        "steps": settings["num_epochs"] * iterations,
        "cases": len(open_cases(view, s["fold"], s["plans"], s["configuration"]).fold.train),
        "num_synthetic": num_synthetic,
        "share": share,
        "realised_share": _realised(results),
    }


def real_exposures(iterations: int, num_epochs: int, mixing: dict[str, Any], with_pool: bool) -> int:
    """Iterations of an epoch in which real items are looked at as often as in so many without anything else.

    As `scripts.segmentation.order.Budget`: samples of the pool and transplants come on top.
    """
    if not with_pool and mixing.get("transplant") is None:
        return iterations
    settings = parse_settings({**({"pool": "pool"} if with_pool else {}), **mixing})
    sources = [source for source in (settings if with_pool else None, settings.transplant) if source is not None]
    other = sum(share_at(source, epoch, num_epochs) for source in sources for epoch in range(num_epochs))
    return round(iterations / (1 - other / num_epochs))


def _realised(results: Path) -> float:
    """The share of the pool's samples in all epochs, as the trainer counted it."""
    rows = [json.loads(line) for line in (results / "synthaug_epochs.jsonl").read_text().splitlines()]
    return float(sum(row.get("share") or 0.0 for row in rows) / len(rows))


def evaluate(
    s: dict[str, Any], dataset_dir: Path, raw_dir: Path | None, trained: Path, folder: Path, call: Call
) -> dict[str, Any]:
    """Measure the fold's validation cases, which nnU-Net predicted after the training, or the test cases."""
    description = read_description(dataset_dir)
    if s["split"] == "validation":
        predictions, truth = _results(s, dataset_dir, trained) / "validation", dataset_dir / "gt_segmentations"
    elif raw_dir is None:
        raise InputError("test cases of a preprocessed data set", "the raw data set, too", "give --raw_dir")
    else:
        predictions, truth = folder / "predictions", raw_dir / "labelsTs"
        full = {**NNUNET_SETTINGS, **s["settings"]}["full_plans"]
        with nnunet_environment(trained, full):
            call(predict_command(
                dataset_number(dataset_dir.name), NAME, s["fold"], f"{_plans(s)}SynthAug", choose_device(),
                raw_dir / "imagesTs", predictions,
            ))  # fmt: skip
    reader = read_record(dataset_dir / f"{s['plans']}.json", {"image_reader_writer": str}, "preprocess it again")
    cases = _compare(predictions, truth, description, reader["image_reader_writer"])
    values = {"split": s["split"], "cases": cases, "summary": summarise_cases(cases)}
    return {**values, "surface_tolerance_mm": TOLERANCE, "grid": "that of the original images"}


def _compare(predictions: Path, truth: Path, description: DatasetDescription, reader: str) -> dict[str, Any]:
    """Figures of every case that was predicted; `reader` is nnU-Net's, as its plans name it."""
    import nibabel as nib
    import numpy as np
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    def read(path: Path) -> tuple[np.ndarray, list[float]]:
        if path.name.endswith((".nii", ".nii.gz")):
            image = nib.Nifti1Image.from_filename(path)
            return as_label(np.asarray(image.dataobj), path), [float(step) for step in image.header.get_zooms()[:3]]
        label, properties = recursive_find_reader_writer_by_name(reader)().read_seg(str(path))
        return as_label(np.asarray(label)[0], path), [float(step) for step in properties["spacing"]]

    cases: dict[str, Any] = {}
    for path in sorted(predictions.glob(f"*{description.file_ending}")):
        (found, _), (wanted, spacing) = read(path), read(truth / path.name)
        case = path.name.removesuffix(description.file_ending)
        cases[case] = compare_label_maps(found, wanted, description, spacing, TOLERANCE)
    return cases


def _plans(s: dict[str, Any]) -> str:
    return s["plans"] if {**NNUNET_SETTINGS, **s["settings"]}["full_plans"] else CPU_PLANS


def _results(s: dict[str, Any], dataset_dir: Path, folder: Path) -> Path:
    return results_folder(folder / "nnUNet_results", dataset_dir.name, NAME, f"{_plans(s)}SynthAug", s["fold"])


def _first_samples(pool: Path, number: int, target: Path) -> Path:
    """The pool with the first `number` samples that are kept."""
    record = json.loads((pool / "pool.json").read_text())
    kept = [sample for sample in record["samples"] if sample["decision"] == "keep"]
    target.mkdir(parents=True, exist_ok=True)
    for name in ("images", "labels"):
        if not (target / name).is_symlink():
            (target / name).symlink_to((pool / name).resolve(), target_is_directory=True)
    write_record(target / "pool.json", {**record, "samples": kept[:number]})
    return target


def _unused_pool(s: dict[str, Any], dataset_dir: Path, folder: Path) -> Path:
    """A pool of one sample, of which a share of 0 draws nothing: a training's length stands beside its pool."""
    from ..sampling.copy_paste import write_copy_paste

    return write_copy_paste(dataset_dir, folder / "unused", 1, s["fold"], 0, s["plans"], s["configuration"])
