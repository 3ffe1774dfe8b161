"""The bank of a fold in nnU-Net's preprocessed data: made of its training cases, with a record of them."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..identity import Identity, same_case
from ..preprocessed import PreprocessedDataset, case_reader, json_sha256, read_json, space_fields, write_json
from .anatomy import UNKNOWN
from .making import LEAST_VARIATION, NoLesionError, lesion_labels, make_bank, variation
from .store import close_bank, files_in, save_bank

RECORD = "transplants.json"
FORMAT, FORMAT_VERSION = "synthaug-transplants", 3
MOST_UNSAID = 2  # labels taken for lesions without a word


def bank_folder(
    dataset: PreprocessedDataset, data_identifier: str, fold: int | str, labels: Sequence[int] | None
) -> Path:
    """Return where the bank of a fold lies, one for all configurations of the same preprocessed data and lesions.

    Without `labels` it is that of a configuration from before they were kept in it.
    """
    lesions = "" if labels is None else f"_labels_{'_'.join(map(str, labels))}"
    return dataset.pool_folder(f"transplants_{data_identifier}{lesions}", fold)


def label_volumes(
    dataset: PreprocessedDataset, plans: dict[str, Any], configuration: dict[str, Any], names: Sequence[str]
) -> dict[str, dict[int, float]]:
    """Return the volume in mm3 of every foreground label in every case, 0 where it has none."""
    labels = foreground_labels(dataset, plans)
    volumes: dict[str, dict[int, float]] = {}
    read = _read_cases(dataset, plans, configuration, names, images=False)
    for name, (_, label_map, spacing) in zip(names, read, strict=True):
        counts = np.bincount(np.maximum(label_map, 0).ravel(), minlength=max(labels) + 1)
        volumes[name] = {label: float(counts[label] * np.prod(spacing)) for label in labels}
    return volumes


def foreground_labels(dataset: PreprocessedDataset, plans: dict[str, Any]) -> list[int]:
    """Return the labels of a data set without background and ignored ones."""
    return [int(label) for label in _label_manager(dataset, plans).all_labels if label]


def _label_manager(dataset: PreprocessedDataset, plans: dict[str, Any]) -> Any:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(plans).get_label_manager(dataset.dataset_json)


def choose_labels(volumes: Mapping[int, Sequence[float]], wanted: Sequence[int] | None) -> list[int]:
    """Return the labels that are lesions: the wanted ones, or those whose volume varies as lesions' do.

    More than two of the latter are said on stderr: organs among them may be cropped in some images.
    Raises `InputError` where none are, as in data sets of organs, and where a wanted one is no label.
    """
    if wanted is not None:
        if not wanted or not set(wanted) <= set(volumes):
            raise InputError(f"labels = {wanted!r}", f"some of {sorted(volumes)}", "name labels of dataset.json")
        return sorted(set(wanted))
    labels = lesion_labels(volumes)
    if not labels:
        varying = ", ".join(f"label {label} {variation(sizes):.2f}" for label, sizes in volumes.items())
        raise InputError(
            f"labels that look like organs: the coefficient of variation of their volume over the cases is {varying}",
            f"lesions, which come in all sizes: {LEAST_VARIATION} and more",
            "do without transplants; if they are lesions all the same, name them: --labels [1]",
        )
    if len(labels) > MOST_UNSAID:
        varying = ", ".join(f"{label} (coefficient of variation {variation(volumes[label]):.2f})" for label in labels)
        print(
            f"WARNING: {len(labels)} labels are taken for lesions since their volume varies: {varying}. Organs that "
            f"some images show in part vary as well: if there are any, name the lesions: --labels '[{labels[-1]}]'",
            file=sys.stderr,
        )
    return labels


def fold_record(
    dataset: PreprocessedDataset,
    plans: dict[str, Any],
    configuration: dict[str, Any],
    fold: int | str,
    seen: Mapping[str, Identity],
    labels: Sequence[int],
) -> dict[str, Any]:
    """Return what says which bank one of a fold is.

    Args:
        dataset, plans, configuration: what was preprocessed; the configuration resolved.
        fold: a number or "all".
        seen: the fold's training cases as they are now, by id.
        labels: the labels that are lesions.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dataset": dataset.name,
        "fold": fold,
        "dimension": len(configuration["patch_size"]),
        "space": space_fields(plans, configuration),
        "lesion_labels": list(labels),
        "seen": {name: list(seen[name]) for name in sorted(seen)},
    }


def find_bank(folder: Path, record: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return the whole record of a fold's bank that is there; `None` where it is to be made.

    That is so where there is none, or one that nobody can read any more, or with `overwrite`.

    Raises:
        InputError: another bank is there and is not to be overwritten, or something that is none.
    """
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if foreign := [name for name in present if name != RECORD and not name.endswith((".npy", ".npz"))]:
        raise InputError(
            f"{folder} with files that transplant did not write: {', '.join(foreign[:5])}",
            "a bank of lesions, or nothing",
            "move them away",
        )
    try:
        there = read_json(folder / RECORD, "")
    except InputError:
        return None
    known = (there.get("format"), there.get("format_version")) == (FORMAT, FORMAT_VERSION)
    if overwrite or not known or not isinstance(there.get("seen"), dict):
        return None
    if different := _different(there, record):
        raise InputError(
            f"another bank of lesions in {folder} (different: {', '.join(different)})",
            "the bank that all configurations of these lesions train with",
            "restore the cases and the split that it was made of, or overwrite it for all of them",
        )
    return there


def _different(before: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """Name what tells two banks' records apart; cases that differ in rounding do not."""
    then, now = ({name: Identity(*case) for name, case in of["seen"].items()} for of in (before, record))
    is_same = then.keys() == now.keys() and all(same_case(then[name], now[name]) for name in now)
    different = [key for key in record if key != "seen" and before.get(key) != record[key]]
    return different if is_same else [*different, "seen"]


def read_fold(
    dataset: PreprocessedDataset, data_identifier: str, fold: int | str, labels: Sequence[int] | None
) -> dict[str, Any]:
    """Read the record of a fold's bank of these lesions.

    `sha256` is of the record; `seen` are identities of the bank's cases by id.
    """
    folder = bank_folder(dataset, data_identifier, fold, labels)
    remedy = f"run transplant for the fold {fold} of this configuration"
    if not folder.is_dir():
        raise InputError(f"no lesions to transplant in {folder}", "the bank of this fold", remedy)
    record = read_json(folder / RECORD, remedy)
    found = (record.get("format"), record.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION) or not isinstance(record.get("seen"), dict):
        raise InputError(
            f"{folder / RECORD} of {found[0]}, version {found[1]}", f"{FORMAT}, version {FORMAT_VERSION}", remedy
        )
    if labels is not None and record.get("lesion_labels") != list(labels):
        got = f"lesions of the labels {record.get('lesion_labels')} in {folder}"
        raise InputError(got, f"those of the labels {list(labels)}, as the configuration says", remedy)
    seen = {name: Identity(*identity) for name, identity in record["seen"].items()}
    return {**record, "sha256": json_sha256(record), "seen": seen}


def make_fold(
    dataset: PreprocessedDataset,
    plans: dict[str, Any],
    configuration: dict[str, Any],
    folder: Path,
    record: dict[str, Any],
) -> dict[str, Any]:
    """Write the bank of a record to a temporary folder that then takes its place; returns the whole record."""
    names = list(record["seen"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.partial"):  # of a process that was killed: the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    temporary, former = (folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial") for _ in range(2))
    temporary.mkdir()
    bank = None
    try:
        with suppress(NoLesionError):
            bank = make_bank(
                _read_cases(dataset, plans, configuration, names),
                record["dimension"],
                record["lesion_labels"],
                # The first case stands for all.
                left_right(
                    case_reader(dataset, configuration["data_identifier"])(names[0])[3],
                    plans["transpose_forward"],
                    record["dimension"],
                ),
                open_file=files_in(temporary),
            )
        fitting = 0 if bank is None else len(bank.fitting)
        if bank is None or not fitting:
            found = 0 if bank is None else len(bank.lesions)
            raise InputError(
                f"{found} lesions in {len(names)} cases, of which none fits elsewhere",
                "lesions that have room in another case",
                "do without transplants",
            )
        save_bank(bank, temporary)
        record = {**record, "lesions": len(bank.lesions), "fitting": fitting, "receiving": len(bank.receiving)}
        write_json(temporary / RECORD, record)
        close_bank(bank)
        bank = None
        if folder.exists():
            folder.rename(former)
        temporary.rename(folder)
    except BaseException:
        if bank is not None:
            with suppress(BufferError):  # of an array that was in use
                close_bank(bank)
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # where it holds nothing else
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
        raise
    shutil.rmtree(former, ignore_errors=True)
    return record


def _read_cases(
    dataset: PreprocessedDataset,
    plans: dict[str, Any],
    configuration: dict[str, Any],
    names: Sequence[str],
    images: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray, list[float]]]:
    """Yield image `(channels, z, y, x)` (empty without `images`), label map and spacing in mm of preprocessed cases.

    The ignore label is `UNKNOWN`.
    """
    read = case_reader(dataset, configuration["data_identifier"])
    ignored = _label_manager(dataset, plans).ignore_label
    for name in names:
        data, seg, _, properties = read(name)
        image = np.asarray(data[:]) if images else np.empty(0, np.float32)
        labels = np.asarray(seg[:])[0].astype(np.int16)
        labels[labels == ignored] = UNKNOWN
        yield image, labels, own_spacing(properties, labels.shape, plans["transpose_forward"])


def own_spacing(properties: Mapping[str, Any], shape: Sequence[int], transposed: Sequence[int]) -> list[float]:
    """Return the spacing in mm of a preprocessed case, by what nnU-Net says of it before.

    That is the configuration's where cases were resampled to it, and each one's own where plans leave that out.
    """
    before = properties["shape_after_cropping_and_before_resampling"]
    steps = [properties["spacing"][axis] for axis in transposed]
    return [float(step * old / new) for step, old, new in zip(steps, before, shape, strict=True)]


def left_right(properties: Mapping[str, Any], transposed: Sequence[int], dimension: int) -> int | None:
    """Return the preprocessed axis that goes from left to right, counted from the end; `None` if 2D has none.

    Without a direction in what nnU-Net says of the case, as of single images, the last axis is taken.
    """
    itk, nibabel = properties.get("sitk_stuff", {}), properties.get("nibabel_stuff", {})
    affine = nibabel.get("reoriented_affine", nibabel.get("original_affine"))
    if affine is not None:
        steps = np.asarray(affine)[:3, :3]
        direction = steps / np.linalg.norm(steps, axis=0)
    elif len(itk.get("direction", ())) == 9:
        direction = np.reshape(itk["direction"], (3, 3))
    else:
        return -1
    towards_left = np.abs(direction[0])  # of the axes x y z; arrays are z y x
    axis = int(np.argmax([towards_left[2 - raw] for raw in transposed])) - 3
    return None if axis == -3 and dimension == 2 else axis
