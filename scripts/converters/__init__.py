"""Public data sets, as their challenges hand them out, to nnU-Net's raw format."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError, nearest
from .brats import plan_brats
from .hecktor import plan_hecktor
from .msd import plan_msd
from .raw_dataset import Conversion, hold_out, is_whole, refuse_draw, write_dataset

FORMATS: dict[str, tuple[Callable[..., Conversion], tuple[str, ...]]] = {
    "brats": (plan_brats, ("modalities", "target")),
    "hecktor": (plan_hecktor, ("target", "ct", "crop")),
    "msd": (plan_msd, ()),
}
_FOLDER = re.compile(r"Dataset(\d{3,})_.+")


def convert(
    format: str,
    source_dir: str | Path,
    output_dir: str | Path,
    dataset_id: int | None = None,
    name: str | None = None,
    test_fraction: float | None = None,
    test_cases: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Convert a challenge's data set to an nnU-Net raw data set, and return the folder `DatasetNNN_NAME`.

    Everything is checked before anything is written; the folder appears once it is complete, and the same command
    after an interruption goes on with the cases that are missing. The same input gives the same bytes.

    Args:
        format: brats (`plan_brats`), hecktor (`plan_hecktor`) or msd (`plan_msd`).
        source_dir: the folder as downloaded and unpacked.
        output_dir: the folder to make, when it is called DatasetNNN_NAME; else the folder to make it in, such as
            `$nnUNet_raw`.
        dataset_id, name: NNN and NAME, when `output_dir` does not say them; the format has its own by default.
        test_fraction, test_cases: the share or number of *patients* to hold out as imagesTs and labelsTs, all scans
            of a patient on one side; none by default.
        seed: the seed of the draw of test patients.
        options: those of the format: modalities and target of brats; target, ct and crop of hecktor.

    Raises:
        InputError: an option, the layout or a file cannot be used; it names the case and the file.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r}", ", ".join(FORMATS), "choose one of the formats")
    plan, allowed = FORMATS[format]
    for option in options:
        if option not in allowed:
            near = nearest(option, allowed)
            raise InputError(
                f"--{option} with format {format}",
                ", ".join(f"--{name}" for name in allowed) or "no options of its own",
                f"write --{near}" if near else "leave it out",
            )
    source = Path(source_dir).expanduser().absolute()
    if not source.is_dir():
        raise InputError(f"no folder {source}", "the data set as downloaded and unpacked", "check SRC")
    refuse_draw(test_fraction, test_cases, seed)
    target = _target(Path(output_dir).expanduser().absolute(), dataset_id, name, *_default_name(format, source))
    conversion = plan(source, **options)
    held_out = hold_out(sorted({case.patient for case in conversion.cases}), test_fraction, test_cases, seed)
    return write_dataset(conversion, target, held_out, seed)


def _default_name(format: str, source: Path) -> tuple[int | None, str | None]:
    """NNN and NAME of a format; those of the Decathlon are in the folder's name, as nnU-Net takes them."""
    if format == "msd":
        task = re.fullmatch(r"Task(\d{2,3})_([A-Za-z0-9_-]+)", source.resolve().name)
        return (int(task[1]), task[2]) if task else (None, None)
    return {"brats": (137, "BraTS"), "hecktor": (222, "HECKTOR2022")}[format]


def _target(folder: Path, dataset_id: Any, name: Any, default_id: int | None, default_name: str | None) -> Path:
    if _FOLDER.fullmatch(folder.name):
        if dataset_id is not None or name is not None:
            raise InputError(
                f"--dataset_id {dataset_id} --name {name} with the output folder {folder.name}",
                "a folder called DatasetNNN_NAME, or the options",
                f"leave the options out, or give the folder above: {folder.parent}",
            )
    else:
        dataset_id = default_id if dataset_id is None else dataset_id
        name = default_name if name is None else name
        if not is_whole(dataset_id) or dataset_id < 1:
            raise InputError(f"dataset_id {dataset_id!r}", "a whole number from 1", "give --dataset_id")
        if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9_-]+", name):
            raise InputError(f"name {name!r}", "letters, digits, - and _", "give --name")
        folder = folder / f"Dataset{dataset_id:03d}_{name}"
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file", "a folder", "choose another output folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty", "a new or empty folder", "choose another one or remove it")
    own = {folder.name, f"{folder.name}.partial"}
    others = sorted({path.name for path in folder.parent.glob(f"{folder.name.partition('_')[0]}_*")} - own)
    if others:
        raise InputError(
            f"{folder.name} beside {', '.join(others)}",
            "one data set per number, as nnU-Net finds them by it",
            "give another --dataset_id",
        )
    return folder
