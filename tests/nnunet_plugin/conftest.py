"""Tiny nnU-Net data sets, planned and preprocessed by nnU-Net itself, and pools for them."""

import hashlib
import json
import os
import shutil
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import blosc2
import matplotlib
import numpy as np
import pytest
import SimpleITK as sitk

# Read when nnU-Net is imported; eight exporting processes would be too many here.
os.environ.setdefault("nnUNet_def_n_proc", "1")

PLAIN, REGIONS, IGNORE = "Dataset901_Plain", "Dataset902_Regions", "Dataset903_Ignore"
DATASET_JSON = {
    PLAIN: {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "tumor": 1}},
    REGIONS: {
        "channel_names": {"0": "T1", "1": "zscore"},
        "labels": {"background": 0, "whole": [1, 2], "core": [2]},
        "regions_class_order": [1, 2],
    },
    IGNORE: {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}},
}
NUM_CASES = 6
MARK = 1000.0  # synthetic sample k holds the value MARK + k, far from all real values


def _write_case(folder: Path, name: str, channels: int, labels: list[int], rng: np.random.Generator) -> None:
    """A noisy head on a true zero background, with a box of each label inside; shape (8, 24, 24)."""
    grid = np.indices((8, 24, 24))
    head = ((grid[1] - 11.5) ** 2 + (grid[2] - 11.5) ** 2) < 100
    label = np.zeros(head.shape, np.uint8)
    for k, value in enumerate(labels):
        z, y, x = 1 + 3 * k, *rng.integers(6, 14, 2)
        label[z : z + 3, y : y + 4, x : x + 4] = value
    for c in range(channels):
        image = np.where(head, 100 + 10 * rng.standard_normal(head.shape) + 40 * label, 0).astype(np.float32)
        _write(folder / "imagesTr" / f"{name}_{c:04d}.nii.gz", image, (1.0, 1.0, 3.0))
    _write(folder / "labelsTr" / f"{name}.nii.gz", label, (1.0, 1.0, 3.0))


def _write(file: Path, array: np.ndarray, spacing: tuple, origin: tuple = (0.0, 0.0, 0.0)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(file))


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """nnU-Net draws its progress after every epoch, in 3000 x 5400 pixels."""
    monkeypatch.setitem(matplotlib.rcParams, "figure.dpi", 10)


@pytest.fixture(scope="session")
def nnunet_template(tmp_path_factory):
    """Folders raw and preprocessed with the three data sets; plans nnUNetPlans and, small, nnUNetPlansCPU."""
    root = tmp_path_factory.mktemp("nnunet")
    for seed, (name, content) in enumerate(DATASET_JSON.items()):
        folder = root / "raw" / name
        values = sorted({v for key, value in content["labels"].items() if key != "background"
                         for v in (value if isinstance(value, list) else [value])})  # fmt: skip
        for case in range(NUM_CASES):
            rng = np.random.default_rng([seed, case])
            _write_case(folder, f"case_{case}", len(content["channel_names"]), values, rng)
        full = {**content, "numTraining": NUM_CASES, "file_ending": ".nii.gz"}
        (folder / "dataset.json").write_text(json.dumps(full))
    (root / "preprocessed").mkdir()
    (root / "results").mkdir()
    environment = {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    environment["nnUNet_n_proc_DA"] = "2"  # the planner sets its threads to this
    in_process = SimpleNamespace(Pool=ThreadPool)  # nnU-Net's own pools take seconds each to import torch
    with mock.patch.dict(os.environ, environment):
        from nnunet_plugin.cpu_plans import write_cpu_plans
        from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
        from nnunetv2.experiment_planning.plan_and_preprocess_api import (
            extract_fingerprints,
            plan_experiments,
            preprocess,
        )

        few = property(lambda _: 6e4, lambda *_: None)  # nnU-Net draws 10e7, here from a hundred voxels: 20 s
        with (
            mock.patch("multiprocessing.get_context", lambda method=None: in_process),
            mock.patch("nnunetv2.utilities.utils.Pool", ThreadPool),
            mock.patch.object(
                DatasetFingerprintExtractor, "num_foreground_voxels_for_intensitystats", few, create=True
            ),
        ):
            numbers = [901, 902, 903]
            extract_fingerprints(numbers, num_processes=1, verbose=False)
            plan_experiments(numbers)
            preprocess(numbers, configurations=("2d", "3d_fullres"), num_processes=(1, 1), verbose=False)
        for number, name in zip(numbers, DATASET_JSON, strict=True):
            file = root / "preprocessed" / name / "nnUNetPlans.json"
            plans = json.loads(file.read_text())
            plans["configurations"]["2d"]["batch_size"] = 12  # so little data makes nnU-Net plan for 2
            file.write_text(json.dumps(plans))
            write_cpu_plans(number, max_features=16, batch_size=4)
    return root


@pytest.fixture
def nnunet(nnunet_template, tmp_path, monkeypatch):
    """A copy of the preprocessed data sets for one test, with nnU-Net's environment variables set to it."""
    shutil.copytree(nnunet_template / "preprocessed", tmp_path / "preprocessed", copy_function=shutil.copyfile)
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(nnunet_template / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


@pytest.fixture
def make_pool(nnunet):
    """Return a function that writes a pool which fits the preprocessed data set."""

    def write(name="pool", dataset=PLAIN, configuration="2d", samples=12, kind="nnunet_preprocessed",
              dimension=None, dropped=0, fold=0, edit=None):  # fmt: skip
        folder = nnunet / name
        base = nnunet / "preprocessed" / dataset
        plans = json.loads((base / "nnUNetPlans.json").read_text())
        config = plans["configurations"][configuration]
        dimension = dimension or len(config["patch_size"])
        content = DATASET_JSON[dataset]
        values = sorted({v for key, value in content["labels"].items() if key != "ignore"
                         for v in (value if isinstance(value, list) else [value])})  # fmt: skip
        records = []
        for k in range(samples + dropped):
            rng = np.random.default_rng([k, dimension])
            shape = (1, 24, 24) if dimension == 2 else (8, 24, 24)
            label = np.zeros(shape, np.uint8)
            for j, value in enumerate(values[1:]):
                label[:, 4 + 5 * j : 8 + 5 * j, 6:12] = value
            for c in range(len(content["channel_names"])):
                image = (MARK + k + 1e-3 * rng.random(shape)).astype(np.float32)
                _write(folder / "images" / f"syn_{k:06d}_{c:04d}.nii.gz", image, (1.0, 1.0, 3.0))
            _write(folder / "labels" / f"syn_{k:06d}.nii.gz", label, (1.0, 1.0, 3.0))
            records.append({"id": f"syn_{k:06d}", "decision": "keep" if k < samples else "drop",
                            "sha256": sample_hash(folder, f"syn_{k:06d}")})  # fmt: skip
        space = {
            "kind": kind,
            "plans_name": "nnUNetPlans",
            "configuration": configuration,
            "spacing": [3.0, 1.0, 1.0],
            "transpose_forward": plans["transpose_forward"],
            **{key: config[key] for key in ("data_identifier", "normalization_schemes", "use_mask_for_norm")},
            "foreground_intensity_properties_per_channel": plans["foreground_intensity_properties_per_channel"],
        }
        pool = {
            "format": "synthaug-pool",
            "format_version": 2,
            "dimension": dimension,
            "dataset": {"name": dataset, "regions_class_order": None, **content},
            "space": space,
            "provenance": provenance_of(base, fold, case_hashes(base, config["data_identifier"], kind)),
            "sampling": {"seed": 0},
            "samples": records,
        }
        if edit is not None:
            edit(pool)
        (folder / "pool.json").write_text(json.dumps(pool))
        return folder

    return write


def case_hashes(base: Path, data_identifier: str, kind: str) -> dict[str, str]:
    """What generators record of cases: the hash of image and label as they read them."""
    hashes = {}
    for name in (f"case_{case}" for case in range(NUM_CASES)):
        if kind == "raw":  # slices along z: the axes as SimpleITK has them
            raw = Path(os.environ["nnUNet_raw"]) / base.name
            files = [*sorted((raw / "imagesTr").glob(f"{name}_*")), raw / "labelsTr" / f"{name}.nii.gz"]
            *image, label = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in files)
        else:
            image, label = (blosc2.open(str(base / data_identifier / f"{name}{end}.b2nd"))[:] for end in ("", "_seg"))
        voxels = np.asarray(image, np.float32).tobytes() + np.maximum(label, 0).astype(np.int16).tobytes()
        hashes[name] = hashlib.sha256(voxels).hexdigest()
    return hashes


def provenance_of(base: Path, fold: int, hashes: dict[str, str]) -> dict:
    """The record of a generator of a fold, as older versions wrote it: without fingerprints."""
    cases = [{"id": case, "sha256": hashes[case]} for case in training_cases(base, fold)]
    split = [[case["id"] for case in cases], sorted({*hashes} - {case["id"] for case in cases})]
    return {
        "format_version": 1,
        "dataset": base.name,
        "cases": cases,
        "fold": fold,
        "split_sha256": hashlib.sha256(json.dumps(split).encode()).hexdigest(),
    }


def sample_hash(folder: Path, sample: str) -> str | None:
    """What a pool of format 2 holds of a sample."""
    files = [*sorted((folder / "images").glob(f"{sample}_*")), folder / "labels" / f"{sample}.nii.gz"]
    if not all(file.is_file() for file in files):
        return None
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def rehash(folder: Path) -> None:
    """Write pool.json as if the samples had been sampled as their files are now; absent files keep their hash."""
    content = json.loads((folder / "pool.json").read_text())
    for sample in content["samples"]:
        sample["sha256"] = sample_hash(folder, sample["id"]) or sample["sha256"]
    (folder / "pool.json").write_text(json.dumps(content))


def training_cases(base: Path, fold: int = 0) -> list[str]:
    """The training cases of a fold as nnU-Net splits them."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    cases = [f"case_{case}" for case in range(NUM_CASES)]
    return [str(case) for case in generate_crossval_split(cases, seed=12345, n_splits=5)[fold]["train"]]


@pytest.fixture
def split():
    """Return a function that gives the training cases of a fold."""
    return lambda fold=0: training_cases(Path(), fold)


@pytest.fixture
def make_trainer(nnunet):
    """Return a function that constructs a trainer as nnUNetv2_train does, without running it."""

    def make(configuration, fold=0, dataset=PLAIN, plans="nnUNetPlansCPUSynthAug", kind=None, resume=False):
        import torch
        from nnunet_plugin.trainer import nnUNetTrainerSynthAug

        base = nnunet / "preprocessed" / dataset
        content = json.loads((base / f"{plans}.json").read_text())
        dataset_json = json.loads((base / "dataset.json").read_text())
        kind = kind or nnUNetTrainerSynthAug
        return kind({**content, "continue_training": resume}, configuration, fold, dataset_json, torch.device("cpu"))

    return make


@pytest.fixture
def renamed(monkeypatch):
    """The folders that are renamed, none of which may hold a file that this process has open or mapped.

    Windows refuses to rename such a folder.
    """
    rename, done = Path.rename, []

    def checked(path, target):
        if path.is_dir():
            inside = f"{path.resolve()}{os.sep}"
            links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # one is of this listing
            used = [os.readlink(link) for link in links] + Path("/proc/self/maps").read_text().splitlines()
            assert not [name for name in used if inside in name]
            done.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", checked)
    return done


def tree_hash(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder, by relative path."""
    found = (os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)
    files = (path for path in found if os.path.isfile(path))
    return {os.path.relpath(f, folder): hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files}


@pytest.fixture
def snapshot(nnunet):
    """Return a function that gives every file below nnUNet_preprocessed with its hash."""
    return lambda: tree_hash(nnunet / "preprocessed")
