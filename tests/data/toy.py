"""Tiny nnU-Net data sets, raw and as nnU-Net's preprocessor leaves them."""

import json
import pickle
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

LABELS = {"background": 0, "inner": 1, "outer": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def toy_case(index: int, channels: int = 1, shape=(6, 20, 18)) -> tuple[np.ndarray, np.ndarray]:
    """Image (channel, z, y, x) with a bright box of label 1 around label 2, at another place in every case."""
    rng = np.random.default_rng(index)
    label = np.zeros(shape, np.int16)
    y, x = 3 + index % 5, 4 + index % 3
    label[2:5, y : y + 8, x : x + 7] = 1
    label[3:5, y + 2 : y + 5, x + 2 : x + 5] = 2
    image = rng.normal(100 + 10 * index, 5, (channels, *shape)) + 60 * (label > 0) + 40 * (label == 2)
    return image.astype(np.float32), label


def body_case(index: int, channels: int = 1, shape=(12, 40, 36)) -> tuple[np.ndarray, np.ndarray]:
    """Image and label of a body in air, with a bright ball of label 1 around label 2, elsewhere in every case."""
    rng = np.random.default_rng(index)
    grid = np.indices(shape).astype(float)
    body = ((grid[1] - 19.5) / 18) ** 2 + ((grid[2] - 17.5) / 16) ** 2 <= 1
    centre = np.array([3.0 + 2 * (index % 4), 14 + index % 4 * 3, 12 + index % 3 * 5])
    distance = np.sqrt((((grid.T - centre).T * np.array([2.5, 1, 1])[:, None, None, None]) ** 2).sum(axis=0))
    label = (1 * (distance <= 3.5) + (distance <= 1.5)).astype(np.int16)
    # Tissue varies from place to place, so that surroundings of lesions do as well.
    tissue = 100 + 15 * np.sin(grid[1] / 3) * np.cos(grid[2] / 3)
    clean = tissue * body + 80 * (label > 0) + 40 * (label == 2)
    return (clean + rng.normal(0, 4, (channels, *shape))).astype(np.float32), label


def write_raw(folder: Path, cases: int = 6, channels: int = 1, regions: bool = False, **changes) -> Path:
    """An nnU-Net raw data set of toy cases; `changes` go to dataset.json."""
    affine = np.diag([1.0, 1.5, 4.0, 1.0])
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for index in range(cases):
        image, label = toy_case(index, channels)
        for channel in range(channels):
            path = folder / f"imagesTr/toy_{index:03d}_{channel:04d}.nii.gz"
            nib.save(nib.Nifti1Image(image[channel].T, affine), path)
        nib.save(nib.Nifti1Image(label.T.astype(np.uint8), affine), folder / f"labelsTr/toy_{index:03d}.nii.gz")
    write_description(folder, channels, regions, numTraining=cases, **changes)
    return folder


def write_preprocessed(
    folder: Path, cases: int = 6, channels: int = 1, regions: bool = False, masked=False, case=None, **changes
) -> Path:
    """The arrays (2d and 3d_fullres), plans and description that nnU-Net's preprocessor would leave."""
    import blosc2

    arrays = folder / "nnUNetPlans_2d"
    arrays.mkdir(parents=True)
    for index in range(cases):
        image, label = (case or toy_case)(index, channels)  # looked up now: tests replace it
        image = ((image - image.mean()) / image.std()).astype(np.float32)
        if masked:  # as use_mask_for_norm leaves it: data 0 and seg -1 outside
            label[:, :3] = -1
            image[:, :, :3] = 0
        for array, name in ((image, f"toy_{index:03d}.b2nd"), (label[None], f"toy_{index:03d}_seg.b2nd")):
            blosc2.asarray(np.ascontiguousarray(array), urlpath=str(arrays / name), mode="w")
        (arrays / f"toy_{index:03d}.pkl").write_bytes(pickle.dumps({"class_locations": {}}))
    shutil.copytree(arrays, folder / "nnUNetPlans_3d_fullres")
    write_description(folder, channels, regions, numTraining=cases, **changes)
    plans = {
        "dataset_name": folder.name,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [4.0, 1.5, 1.0],
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "2d": {
                "data_identifier": "nnUNetPlans_2d",
                "spacing": [1.5, 1.0],
                "normalization_schemes": ["ZScoreNormalization"] * channels,
                "use_mask_for_norm": [masked] * channels,
                "batch_size": 4,
                "patch_size": [20, 18],
            },
            "2d_small": {"inherits_from": "2d", "batch_size": 2},
            "3d_fullres": {
                "inherits_from": "2d",
                "data_identifier": "nnUNetPlans_3d_fullres",
                "spacing": [4.0, 1.5, 1.0],
                "patch_size": [6, 20, 18],
            },
        },
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    return folder


def write_description(folder: Path, channels: int, regions: bool, **changes) -> None:
    content = {
        "channel_names": {str(i): f"C{i}" for i in range(channels)},
        "labels": REGIONS if regions else LABELS,
        "file_ending": ".nii.gz",
    }
    if regions:
        content["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(content | changes))
