"""`synthaug curve`: what more training of a generator buys, on patients that it never saw."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.provenance import code_revision, package_versions, read_provenance
from ..packaging.bundle_files import bundle_command, bundle_dir, known_settings
from ..report.curve import draw_curve
from ..report.figures import save_png
from ..report.plots import read_series
from ..runtime.errors import InputError, refuse_changes
from ..runtime.files import read_record, write_json
from .accepted import check_network, check_overlays, check_settings, defaults, plain
from .protocol import CELLS
from .record import choose_device, device_words
from .work import call


def write_curve(
    bundle: str,
    dataset_dir: str,
    output_dir: str,
    overlays: list[str] | None = None,
    generator: dict | None = None,
    sampling: dict | None = None,
    points: int = 5,
    num_samples: int = 200,
    fold: int = 0,
    plans: str = "nnUNetPlans",
    configuration: str | None = None,
    seed: int = 0,
    weights_vgg: str | None = None,
) -> Path:
    """Train a generator and measure its samples on the way: held-out loss, FID, KID, precision, recall, copies.

    Points stand at the whole training, half of it, a quarter and so on; at each a pool is drawn with the weights that a
    training of that length ends with, and compared with the fold's validation patients. The same command goes on where
    it stopped. Writes curve.json and curve.png, and leaves each pool in points/.

    Args:
        bundle: The generator, such as dhvae.
        dataset_dir: An nnU-Net data set, raw or preprocessed.
        output_dir: The working folder.
        overlays: Further config files of the bundle, such as '["evening.json"]'.
        generator: Settings of the bundle's train.json, such as '{"max_epochs": 100}'.
        sampling: Settings of its inference.json, such as '{"scheduler": "dpm", "num_steps": 10}'.
        points: How many.
        num_samples: Samples in each pool.
        fold: Whose training cases are learnt from, and whose validation cases judge.
        plans: nnU-Net's plans, of preprocessed data.
        configuration: nnU-Net's, such as 2d; by default the bundle's.
        seed: Of the training, the pools and the extractor.
        weights_vgg: A VGG16 file, for FID and the others in its features instead of those of the own extractor.

    Example:
        synthaug curve dhvae /data/nnUNet_preprocessed/Dataset501_LGG curve_dhvae --points 4
    """
    overlays, chosen, drawing = overlays or [], plain(generator or {}), plain(sampling or {})
    check_overlays("--overlays", bundle, overlays)
    check_settings("--generator", bundle, "train.json", overlays, chosen, CELLS)
    check_settings("--sampling", bundle, "inference.json", overlays, drawing, CELLS - {"condition"})
    check_network("--generator", bundle, overlays, chosen)
    own = defaults(bundle, ["train.json", *overlays])
    epochs = int(chosen.pop("max_epochs", own["max_epochs"]))
    if type(points) is not int or points < 1 or 2 ** (points - 1) > epochs or num_samples < 6:
        raise InputError(
            f"points {points} of {epochs} epochs, num_samples {num_samples}",
            "a first point after one epoch or later; 6 samples or more", "give fewer --points, or more samples",
        )  # fmt: skip
    # The grid follows from the provenance; the rest of the network has to be said again.
    known = known_settings(bundle_dir(bundle) / "configs", "inference.json") - {"spatial_size", "batch_size"}
    of_network = {key: value for key, value in chosen.items() if key in known}
    root = Path(output_dir).absolute()
    place: dict[str, Any] = {"dataset_dir": str(Path(dataset_dir).absolute()), "fold": fold, "plans": plans,
                             "configuration": configuration or own["configuration"], "seed": seed}  # fmt: skip
    settings = {"bundle": bundle, "overlays": overlays, "generator": chosen, "sampling": drawing, **place,
                "num_samples": num_samples, "weights_vgg": weights_vgg}  # fmt: skip
    from ..audit.quality import PoolQuality
    from ..data.cases import open_cases

    quality = PoolQuality(dataset_dir, weights_vgg, seed)
    if not open_cases(dataset_dir, fold, plans, place["configuration"]).fold.val:
        raise InputError(f"fold {fold}, which holds out no case", "a fold with validation cases", "give --fold")
    _check_same(root, settings)  # the first that is written
    measured = []
    for epoch in sorted({round(epochs / 2**i) for i in range(points)}):
        folder = root / "points" / f"epoch_{epoch:05d}"
        if not (folder / "point.json").is_file():
            trained = {"bundle_root": str(root / "generator"), **place, **chosen, "max_epochs": epoch}
            call(bundle_command(["train.json", *overlays], trained), bundle_dir(bundle))
            models = root / "generator" / "models"
            drawn = {"bundle_root": str(root / "generator"), "output_dir": str(folder / "pool"),
                     "dataset_dir": place["dataset_dir"], "seed": seed,
                     "num_samples": num_samples, **of_network, **drawing}  # fmt: skip
            call(bundle_command(["inference.json", *overlays], drawn), bundle_dir(bundle))
            point = {**_trained(models, epoch), **quality(folder / "pool")}
            shutil.copy(models / "samples.png", folder / "samples.png")
            write_json(folder / "point.json", {"point": point, "real": quality.real})
        found = read_record(folder / "point.json", {"point": dict, "real": dict}, f"remove {folder}")
        measured.append(found["point"])
        real = found["real"]
        print("  ".join(f"{key} {value:.4g}" for key, value in found["point"].items()), file=sys.stderr, flush=True)
    record = {
        "settings": settings,
        "points": measured,
        "real": real,
        "device": device_words(choose_device()),
        "code_revision": code_revision(),
        "packages": package_versions(),
    }
    write_json(root / "curve.json", record)
    return save_png(draw_curve(measured, real, f"{bundle}, fold {fold}, {num_samples} samples"), root / "curve.png")


def _check_same(root: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings beside what they make; another curve needs another folder."""
    file = root / "settings.json"
    now = json.loads(json.dumps(settings))
    if file.is_file():
        remedy = "give another output_dir"
        refuse_changes(read_record(file, {}, remedy), now, f"{root} holds a curve", "the same settings", remedy)
    write_json(file, now)


def _trained(models: Path, epoch: int) -> dict[str, float]:
    """Minutes of all stages, and the losses of the training: its own now, and the lowest held-out one so far."""
    kept = read_provenance(models / "provenance.json", models / "model.pt")["training"]["kept"]
    stages = [read_series(path, "epoch") for path in sorted(models.rglob("losses.csv"))]
    last = read_series(models / "losses.csv", "epoch")
    held_out = {f"lowest_{name}": value for name, value in kept.items() if name.startswith("val_")}
    return {
        "epochs": epoch,
        "minutes": sum(float(np.nansum(stage["seconds"])) for stage in stages) / 60,
        "loss": float(last["loss"][-1]),
        "kept_epoch": kept["epoch"],
        **held_out,
    }
