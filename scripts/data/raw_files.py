"""Which files of a raw data set are the cases: those in `imagesTr` and `labelsTr`, or those that dataset.json lists."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ..runtime.errors import InputError
from .description import DatasetDescription

Files = dict[str, tuple[list[Path], Path]]


def lists_its_files(dataset_dir: Path) -> bool:
    """Whether `dataset` of dataset.json names the files of every case, as nnU-Net allows."""
    try:
        return "dataset" in json.loads((dataset_dir / "dataset.json").read_text("utf-8-sig"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def is_raw_dataset(folder: Path) -> bool:
    """Whether a data set folder is a raw one; nnU-Net copies dataset.json to the preprocessed one, which has plans."""
    if (folder / "imagesTr").is_dir():
        return True
    return lists_its_files(folder) and not any(folder.glob("*Plans*.json"))


def with_absolute_files(dataset_dir: Path) -> dict | None:
    """dataset.json whose listed files are named by absolute paths, for a view of the folder; None without a list."""
    if not lists_its_files(dataset_dir):
        return None
    content = json.loads((dataset_dir / "dataset.json").read_text("utf-8-sig"))
    listed = {
        case: {**content["dataset"][case], "images": [str(path) for path in images], "label": str(label)}
        for case, (images, label) in _listed(dataset_dir).items()
    }
    return {**content, "dataset": listed}


def raw_files(dataset_dir: Path, description: DatasetDescription) -> Files:
    """Images (one a channel) and label of every training case, by its id in sorted order.

    Raises:
        InputError: a file is missing, or images have no label.
    """
    files = _listed(dataset_dir) if lists_its_files(dataset_dir) else _found(dataset_dir, description)
    ending, channels = description.file_ending, description.num_image_channels
    if channels > 1 and files and all(len(images) == 1 or not images[1].is_file() for images, _ in files.values()):
        raise InputError(
            f"one image file a case for {channels} channels ({description.channel_names}) in {dataset_dir}",
            f"CASE_0000{ending} to CASE_{channels - 1:04d}{ending} for every case",
            "write one file a channel; or let nnU-Net preprocess the data set, which reads colour images from one "
            "file, and give its folder in nnUNet_preprocessed",
        )
    if wrong := [case for case, (images, _) in files.items() if len(images) != channels]:
        raise InputError(
            f"other than {channels} images for {', '.join(wrong[:5])}",
            f"one for each channel of dataset.json ({description.channel_names})",
            "mend `dataset` of dataset.json",
        )
    absent = [str(path) for images, label in files.values() for path in (*images, label) if not path.is_file()]
    if absent or not files:
        raise InputError(
            f"missing images of {dataset_dir}: {', '.join(absent[:5]) or 'all'}",
            f"CASE_0000{ending} in imagesTr for every channel of every case of labelsTr, or what dataset.json lists",
            "restore the files",
        )
    return dict(sorted(files.items()))


def _found(dataset_dir: Path, description: DatasetDescription) -> Files:
    ending, channels = description.file_ending, description.num_image_channels

    def stems(folder: str) -> list[str]:  # without the ._ files of macOS
        paths = (dataset_dir / folder).glob(f"*{ending}")
        return sorted(path.name[: -len(ending)] for path in paths if not path.name.startswith("."))

    labels, images = stems("labelsTr"), stems("imagesTr")
    # A single channel needs no number.
    plain = {name for name in images if channels == 1 and name in labels and f"{name}_0000" not in images}
    if orphans := sorted({re.sub(r"_\d{4}$", "", name) for name in images if name not in plain} - {*labels}):
        raise InputError(
            f"images without a label: {', '.join(orphans[:5])}",
            "a file in labelsTr for every case of imagesTr",
            "add the labels or remove the images",
        )
    return {
        case: (
            [
                dataset_dir / "imagesTr" / (f"{case}{ending}" if case in plain else f"{case}_{channel:04d}{ending}")
                for channel in range(channels)
            ],
            dataset_dir / "labelsTr" / f"{case}{ending}",
        )
        for case in labels
    }


def _listed(dataset_dir: Path) -> Files:
    """Paths as nnU-Net reads them: relative to the folder, with variables of the environment."""
    listed = json.loads((dataset_dir / "dataset.json").read_text("utf-8-sig"))["dataset"]
    try:
        return {
            str(case): (
                [dataset_dir.absolute() / os.path.expandvars(path) for path in entry["images"]],
                dataset_dir.absolute() / os.path.expandvars(entry["label"]),
            )
            for case, entry in listed.items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"`dataset` of {dataset_dir / 'dataset.json'} cannot be used ({type(error).__name__}: {error})",
            '{"CASE": {"images": [one path a channel], "label": path}}',
            "mend or remove `dataset`; see nnU-Net's documentation/dataset_format.md",
        ) from error
