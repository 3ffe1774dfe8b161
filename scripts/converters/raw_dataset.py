"""Writing an nnU-Net raw data set case by case: held-out patients, resuming, nothing half-written."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.folds import NUM_FOLDS, crossval_folds
from ..runtime.errors import InputError
from ..runtime.files import read_record, write_json


@dataclass(frozen=True)
class SourceCase:
    """The files of one scan; `label` is None where nobody annotated it."""

    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Conversion:
    """What a format found and checked, and how it writes a case.

    Attributes:
        cases: annotated cases.
        channel_names: in channel order.
        labels, regions_class_order: as in dataset.json.
        settings: the format and its options, recorded in dataset.json.
        write: `write(case, image_paths, label_path)` writes one file a channel, and the label unless it is None.
        unannotated: test cases without label; left out when annotated patients are held out.
        skipped: why each annotated case that cannot be used is left out.
    """

    cases: list[SourceCase]
    channel_names: list[str]
    labels: dict[str, int | list[int]]
    settings: dict[str, Any]
    write: Callable[[SourceCase, list[Path], Path | None], None]
    regions_class_order: list[int] | None = None
    unannotated: list[SourceCase] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def is_whole(value: object) -> bool:
    """Whether a value is an integer and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def refuse_draw(fraction: Any, count: Any, seed: Any) -> None:
    """Raise `InputError` unless the draw of test patients is described by one share or number, and a seed."""
    if fraction is not None and count is not None:
        raise InputError(f"test_fraction {fraction} and test_cases {count}", "one of both", "leave one out")
    if fraction is not None and (
        isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction < 1
    ):
        raise InputError(f"test_fraction {fraction!r}", "a number from 0 to below 1", "give a share such as 0.2")
    if count is not None and (not is_whole(count) or count < 0):
        raise InputError(f"test_cases {count!r}", "a whole number, at least 0", "give a number such as 30")
    if not is_whole(seed) or seed < 0:
        raise InputError(f"seed {seed!r}", "a whole number, at least 0", "choose a seed such as 0")


def hold_out(patients: list[str], fraction: float | None, count: int | None, seed: int) -> list[str]:
    """Draw the test patients, the same for the same patients, number and seed.

    Args:
        patients: their names, sorted.
        fraction, count: share in [0, 1) or number of them; at most one of both, none for no test patients.
        seed: of the draw.

    Raises:
        InputError: no patient would be left to train on.
    """
    if fraction:
        count = max(1, round(fraction * len(patients)))
    if (count or 0) >= len(patients):
        raise InputError(
            f"{count} test patients of {len(patients)}",
            f"at most {len(patients) - 1}, so that one is left to train on",
            "hold out fewer",
        )
    chosen = np.random.default_rng(seed).permutation(len(patients))[: count or 0]
    return sorted(patients[i] for i in chosen)


def write_dataset(conversion: Conversion, target: Path, test_patients: list[str], seed: int) -> Path:
    """Write all cases into `target.partial` and rename it; an unfinished one with the same settings is gone on with.

    Where a patient has several scans, `splits_final.json` holds folds that keep them together; nnU-Net's own would
    not.
    """
    splits = {case.id: "Ts" if case.patient in test_patients else "Tr" for case in conversion.cases}
    folds = _patient_folds([case for case in conversion.cases if splits[case.id] == "Tr"])
    cases = [*conversion.cases, *([] if test_patients else conversion.unannotated)]
    dataset = {
        "channel_names": {str(i): name for i, name in enumerate(conversion.channel_names)},
        "labels": conversion.labels,
        **({"regions_class_order": conversion.regions_class_order} if conversion.regions_class_order else {}),
        "numTraining": sum(split == "Tr" for split in splits.values()),
        "file_ending": ".nii.gz",
        "converted": {
            **conversion.settings,
            "seed": int(seed),
            "test_patients": test_patients,
            "skipped": conversion.skipped,
        },
    }
    draft = target.with_name(f"{target.name}.partial")
    scratch = _prepare(draft, {"dataset": dataset, "cases": {case.id: _fingerprint(case) for case in cases}})
    if conversion.skipped:
        reasons = ", ".join(f"{case} ({reason})" for case, reason in sorted(conversion.skipped.items()))
        tqdm.write(f"{len(conversion.skipped)} cases left out: {reasons}", file=sys.stderr)

    for case in tqdm(cases, desc="writing", unit="case"):
        images, label = _outputs(draft, case, splits.get(case.id, "Ts"), len(conversion.channel_names))
        places = [*images, *([label] if label else [])]
        if all(place.is_file() for place in places):
            continue
        drafts = [scratch / place.name for place in places]
        conversion.write(case, drafts[: len(images)], drafts[-1] if label else None)
        for temporary, place in zip(drafts, places, strict=True):
            place.parent.mkdir(exist_ok=True)
            os.replace(temporary, place)

    if folds:
        write_json(draft / "splits_final.json", folds)
    write_json(draft / "dataset.json", dataset)
    shutil.rmtree(scratch)
    if target.exists():
        target.rmdir()
    draft.rename(target)
    (target / "plan.json").unlink()
    return target


def _outputs(folder: Path, case: SourceCase, split: str, channels: int) -> tuple[list[Path], Path | None]:
    images = [folder / f"images{split}" / f"{case.id}_{channel:04d}.nii.gz" for channel in range(channels)]
    return images, None if case.label is None else folder / f"labels{split}" / f"{case.id}.nii.gz"


def _fingerprint(case: SourceCase) -> list:
    """Changes with the case's source files."""
    files = dict.fromkeys([*case.images, *([case.label] if case.label else [])])
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _prepare(draft: Path, plan: dict) -> Path:
    """Clear from an unfinished conversion what this one would write differently; returns a folder to write in."""
    record = draft / "plan.json"
    if record.is_file():
        before = read_record(record, {"dataset": dict, "cases": dict}, f"remove {draft}")
        if before["dataset"] != plan["dataset"] or before["cases"].keys() != plan["cases"].keys():
            shutil.rmtree(draft)
        else:
            for case, files in plan["cases"].items():
                if before["cases"][case] != files:
                    for path in [*draft.glob(f"images*/{case}_[0-9]*.nii.gz"), *draft.glob(f"labels*/{case}.nii.gz")]:
                        path.unlink()
    elif draft.exists() and any(draft.iterdir()):
        raise InputError(f"{draft} exists", "no folder, or an unfinished conversion", "remove it or choose another OUT")
    scratch = draft / "unfinished"
    shutil.rmtree(scratch, ignore_errors=True)
    write_json(record, plan)
    scratch.mkdir()
    return scratch


def _patient_folds(cases: list[SourceCase]) -> list[dict[str, list[str]]] | None:
    """Five folds over patients, None where every patient has one scan (nnU-Net's own are the same then).

    Of fewer than five patients each is held out in turn; more folds than patients repeat, since nnU-Net draws a split
    of its own, by scans, for a fold that the file lacks.

    Raises:
        InputError: all scans are of one patient.
    """
    scans: dict[str, list[str]] = {}
    for case in cases:
        scans.setdefault(case.patient, []).append(case.id)
    if len(scans) == len(cases):
        return None
    patients = sorted(scans)
    if len(patients) == 1:
        raise InputError(
            f"{len(cases)} training scans, all of the patient {patients[0]}",
            "scans of at least two patients, so that no patient is trained and validated on",
            "add patients, or hold out fewer",
        )
    if len(patients) < NUM_FOLDS:
        held_out = [patients[fold % len(patients)] for fold in range(NUM_FOLDS)]
        folds = [{"train": [p for p in patients if p != out], "val": [out]} for out in held_out]
    else:
        folds = crossval_folds(patients)
    return [
        {part: [scan for patient in fold[part] for scan in sorted(scans[patient])] for part in ("train", "val")}
        for fold in folds
    ]
