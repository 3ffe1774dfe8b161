"""Tiny data sets that nnU-Net's own preprocessor cropped, normalised and resampled, and pools for them."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nnunet_plugin.leakage import cases_sha256
from nnunet_plugin.pool_format import FORMAT_VERSION, files_sha256

from scripts.data.cases import Cases

from .toy import toy_case, write_description

AFFINE = np.diag([-1.0, -1.5, 4.0, 1.0]) + np.outer([10, -20, 5, 0], [0, 0, 0, 1])  # a scanner's, not the identity
PATCHES = {"2d": [20, 18], "3d_fullres": [6, 20, 18]}


def write_case(folder: Path, part: str, index: int, channels: int = 1, corner=False) -> None:
    """A toy case with a frame of zeros that preprocessing crops away, as CASE_000c.nii.gz and its label."""
    image, label = toy_case(index, channels)
    frame = ((0, 0), (1, 0), (2, 3), (0, 2))
    if corner:  # outside the patient, which a masked normalisation leaves out
        image[:, :, :2, :2] = 0
    image, label = np.pad(image, frame), np.pad(label, frame[1:])
    for name in (f"images{part}", f"labels{part}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for channel, values in enumerate(image):
        nib.save(nib.Nifti1Image(values.T, AFFINE), folder / f"images{part}/toy_{index:03d}_{channel:04d}.nii.gz")
    nib.save(nib.Nifti1Image(label.T.astype(np.uint8), AFFINE), folder / f"labels{part}/toy_{index:03d}.nii.gz")


def write_dataset(
    root: Path,
    cases: int = 6,
    tests: int = 2,
    channels: int = 1,
    regions: bool = False,
    spacing=(1.2, 1.2),
    transpose=(0, 1, 2),
    mask=False,
    **changes,
) -> tuple[Path, Path]:
    """Raw and preprocessed (2d and 3d_fullres) folders; `spacing` is in plane, `changes` go to dataset.json."""
    made = _made(cases, tests, channels, regions, tuple(spacing), tuple(transpose), mask, json.dumps(changes))
    shutil.copytree(made, root, copy_function=shutil.copyfile, dirs_exist_ok=True)
    return root / "raw" / "Dataset901_Toy", root / "preprocessed" / "Dataset901_Toy"


@cache
def _made(
    cases: int, tests: int, channels: int, regions: bool, spacing: tuple, transpose: tuple, mask: bool, changes: str
) -> Path:
    """Folders that are made once a process, and copied."""
    made = tempfile.TemporaryDirectory()
    atexit.register(made.cleanup)
    root = Path(made.name)
    raw, pre = root / "raw" / "Dataset901_Toy", root / "preprocessed" / "Dataset901_Toy"
    for index in range(cases + tests):
        write_case(raw, "Tr" if index < cases else "Ts", index, channels, corner=mask)
    write_description(raw, channels, regions, numTraining=cases, **json.loads(changes))
    pre.mkdir(parents=True)
    shutil.copy(raw / "dataset.json", pre)
    shutil.copytree(raw / "labelsTr", pre / "gt_segmentations")
    original = [4.0, 1.5, 1.0]
    resampling = {
        f"resampling_fn_{name}": "resample_data_or_seg_to_shape" for name in ("data", "seg", "probabilities")
    } | {
        f"resampling_fn_{name}_kwargs": {
            "is_seg": name == "seg",
            "order": order,
            "order_z": 0,
            "force_separate_z": None,
        }
        for name, order in (("data", 3), ("seg", 1), ("probabilities", 1))
    }
    plans = {
        "dataset_name": pre.name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [original[axis] for axis in transpose],
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "image_reader_writer": "SimpleITKIO",
        "foreground_intensity_properties_per_channel": {str(channel): {"mean": 150.0} for channel in range(channels)},
        "configurations": {
            name: {
                "data_identifier": f"nnUNetPlans_{name}",
                "preprocessor_name": "DefaultPreprocessor",
                "spacing": [*([original[transpose[0]]] if name != "2d" else []), *spacing],
                "normalization_schemes": ["ZScoreNormalization"] * channels,
                "use_mask_for_norm": [mask] * channels,
                "batch_size": 2,
                "patch_size": patch,
                "architecture": {},
                **resampling,
            }
            for name, patch in PATCHES.items()
        },
    }
    (pre / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess(raw, pre, plans)
    return root


def preprocess(raw: Path, pre: Path, plans: dict) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager, content = PlansManager(plans), json.loads((raw / "dataset.json").read_text())
    for name in PATCHES:
        configuration = manager.get_configuration(name)
        folder = pre / configuration.data_identifier
        folder.mkdir()
        for label in sorted((raw / "labelsTr").iterdir()):
            case = label.name.removesuffix(".nii.gz")
            images = [str(path) for path in sorted((raw / "imagesTr").glob(f"{case}_*"))]
            configuration.preprocessor_class(verbose=False).run_case_save(
                str(folder / case), images, str(label), manager, configuration, content
            )


def seen_by(cases: Cases, **more) -> dict:
    """What a generator that was trained on the fold says of it."""
    seen = [{"id": case, **cases.load(case).identity._asdict()} for case in cases.fold.train]
    return {
        "dataset": cases.description.name,
        "cases": seen,
        "cases_sha256": cases_sha256(seen),
        "fold": cases.fold.name,
        "split_sha256": cases.fold.sha256,
        "validation": cases.fold.val,
        **more,
    }


def write_pool(folder: Path, cases: Cases, drawn: list[tuple[np.ndarray, np.ndarray]], **changes) -> Path:
    """A pool of drawn pairs (image `(channel, z, y, x)`, label `(z, y, x)`) in the space of the cases.

    `changes` replace entries of pool.json; its generator saw the fold's training cases.
    """
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    affine = np.diag([*cases.spacing[::-1], 1.0])
    for index, (image, label) in enumerate(drawn):
        for channel, values in enumerate(image):
            path = folder / f"images/syn_{index:06d}_{channel:04d}.nii.gz"
            nib.save(nib.Nifti1Image(np.asarray(values, np.float32).T, affine), path)
        nib.save(nib.Nifti1Image(np.asarray(label, np.uint8).T, affine), folder / f"labels/syn_{index:06d}.nii.gz")
    content = {
        "format": "synthaug-pool",
        "format_version": FORMAT_VERSION,
        "dimension": 2 if drawn[0][1].shape[0] == 1 else 3,
        "dataset": cases.description.as_record(),
        "space": cases.space,
        "provenance": seen_by(cases),
        "samples": [{"id": f"syn_{index:06d}", "decision": "keep"} for index in range(len(drawn))],
        **changes,
    }
    for sample in content["samples"]:
        files = [*sorted(folder.glob(f"images/{sample['id']}_*")), folder / f"labels/{sample['id']}.nii.gz"]
        sample["sha256"] = files_sha256(files)
    (folder / "pool.json").write_text(json.dumps(content))
    return folder
