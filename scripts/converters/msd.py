"""Medical Segmentation Decathlon: a Task folder, 4D images split into channels.

The result is that of `nnUNetv2_convert_MSD_dataset` (names, channel order, labels). That command is not called: it
writes straight into `$nnUNet_raw`, leaves half a data set when it is killed, holds out no patients, and passes
the geometry through SimpleITK, which rounds it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..runtime.errors import InputError
from .nifti import (
    copy_checked,
    named_files,
    open_nifti,
    read_voxels,
    refuse_labels,
    refuse_missing,
    refuse_other_grids,
    write_like,
)
from .raw_dataset import Conversion, SourceCase


def plan_msd(source: Path) -> Conversion:
    """Find and check the cases of a Decathlon task.

    Files with one channel are copied byte by byte; 4D files are split, their voxels and geometry unchanged. The
    task's own test images have no labels: they become imagesTs, unless annotated patients are held out.

    Args:
        source: the folder TaskNN_NAME with dataset.json, imagesTr, labelsTr and perhaps imagesTs.

    Raises:
        InputError: dataset.json and the files do not agree, or a file cannot be used.
    """
    channels, labels, training, test = _read_dataset_json(source)
    cases = _listed(source, training, labelled=True)
    unannotated = _listed(source, test, labelled=False)
    twice = {case.id for case in cases} & {case.id for case in unannotated}
    if twice:
        raise InputError(
            f"{source / 'dataset.json'} lists {', '.join(sorted(twice)[:5])} for training and test",
            "each case once",
            "mend the lists",
        )
    for case in tqdm([*cases, *unannotated], desc="checking", unit="case"):
        shape = open_nifti(case.id, case.images[0]).shape
        if shape[3:] != (len(channels),) and (len(shape) != 3 or len(channels) != 1):
            raise InputError(
                f"case {case.id}: {case.images[0]} has shape {shape}",
                f"three axes and {len(channels)} channels last, as dataset.json says ({', '.join(channels)})",
                "mend `modality` of dataset.json or the file",
            )
        if case.label is not None:
            if len(open_nifti(case.id, case.label).shape) != 3:
                raise InputError(f"case {case.id}: {case.label} is no volume", "three axes", "mend the file")
            refuse_other_grids(case.id, [case.images[0], case.label])
            refuse_labels(case.id, case.label, read_voxels(case.id, case.label), set(range(len(labels))))
    return Conversion(
        cases=cases,
        channel_names=channels,
        labels=labels,
        settings={"format": "msd"},
        write=_write,
        unannotated=unannotated,
    )


def _write(case: SourceCase, image_paths: list[Path], label_path: Path | None) -> None:
    source = case.images[0]
    original = open_nifti(case.id, source)
    if len(original.shape) == 3:
        copy_checked(case.id, source, image_paths[0])
    else:
        stored = read_voxels(case.id, source, scaled=False)
        for channel, path in enumerate(image_paths):
            write_like(original, stored[..., channel], path, (original.dataobj.slope, original.dataobj.inter))
    if label_path is not None:
        assert case.label is not None
        copy_checked(case.id, case.label, label_path)


def _read_dataset_json(source: Path) -> tuple[list[str], dict[str, int | list[int]], list, list]:
    """Channel names, labels, and the lists of training and test cases."""
    path = source / "dataset.json"
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        modality = {int(number): str(name) for number, name in content["modality"].items()}
        labels = {int(number): str(name) for number, name in content["labels"].items()}
        training, test = content["training"], content.get("test", [])
        for numbers in (modality, labels):
            if sorted(numbers) != list(range(len(numbers))) or len(set(numbers.values())) < len(numbers):
                raise ValueError(f"{numbers} are not numbered 0, 1, 2 ... with a name each")
        if len(labels) < 2 or not training:
            raise ValueError("no foreground label or no training case")
        training = [(str(entry["image"]), str(entry["label"])) for entry in training]
        test = [(entry["image"] if isinstance(entry, dict) else str(entry), None) for entry in test]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be used ({type(error).__name__}: {error})",
            "a Decathlon task's dataset.json with modality, labels and training",
            "give the folder TaskNN_NAME, as unpacked",
        ) from error
    names: dict[str, int | list[int]] = {"background": 0}
    names |= {name: number for number, name in sorted(labels.items()) if number}
    return [modality[number] for number in sorted(modality)], names, training, test


def _listed(source: Path, entries: list[tuple[str, Any]], labelled: bool) -> list[SourceCase]:
    """The cases of a list of dataset.json, which are also those of the folder."""
    cases: dict[str, SourceCase] = {}
    for image, label in entries:
        path = source / image
        case_id = path.name.removesuffix(".nii.gz")
        if case_id in cases or not path.name.endswith(".nii.gz"):
            raise InputError(
                f"case {case_id}: {source / 'dataset.json'} lists {image}" + (" twice" if case_id in cases else ""),
                "each case once, as .nii.gz",
                "mend the list",
            )
        refuse_missing(case_id, [path, *([source / label] if labelled else [])])
        cases[case_id] = SourceCase(case_id, case_id, (path,), source / label if labelled else None)
    for folder in ("imagesTr", "labelsTr") if labelled else ("imagesTs",):
        unlisted = sorted(named_files(source / folder).keys() - cases.keys())
        if unlisted:
            raise InputError(
                f"case {unlisted[0]}: {source / folder / unlisted[0]}.nii.gz is not in dataset.json "
                f"({len(unlisted)} such files)",
                "the files that dataset.json lists",
                "add them to dataset.json or move them away",
            )
    return [cases[name] for name in sorted(cases)]
