"""The bank of a fold in nnU-Net's preprocessed data: made of its training cases, with a record of them."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..identity import Identity
from ..preprocessed import PreprocessedDataset, case_reader, read_json, space_fields, write_json
from .anatomy import UNKNOWN
from .making import LEAST_VARIATION, NoLesionError, lesion_labels, make_bank, variation
from .store import files_in, save_bank

RECORD = "transplants.json"
FORMAT, FORMAT_VERSION = "synthaug-transplants", 2


def bank_folder(dataset: PreprocessedDataset, data_identifier: str, fold: int | str) -> Path:
    """Return where the bank of a fold lies, one for all configurations of the same preprocessed data."""
    return dataset.pool_folder(f"transplants_{data_identifier}", fold)


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
    return labels


def make_fold(
    dataset: PreprocessedDataset,
    plans: dict[str, Any],
    configuration: dict[str, Any],
    fold: int | str,
    seen: Mapping[str, Identity],
    labels: Sequence[int],
    overwrite: bool,
) -> dict[str, Any]:
    """Make the bank of a fold, unless the same is there; returns its record, with `made` whether it was made now.

    Args:
        dataset, plans, configuration: what was preprocessed; the configuration resolved.
        fold: a number or "all".
        seen: the fold's training cases as they are now, by id.
        labels: the labels that are lesions.
        overwrite: make it anew in any case.
    """
    names = sorted(seen)
    folder = bank_folder(dataset, configuration["data_identifier"], fold)
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dataset": dataset.name,
        "fold": fold,
        "dimension": len(configuration["patch_size"]),
        "space": space_fields(plans, configuration),
        "lesion_labels": list(labels),
        "seen": {name: list(seen[name]) for name in names},
    }
    if folder.exists() and not overwrite:
        try:
            before = read_json(folder / RECORD, "")
        except InputError:
            before = {}
        if all(before.get(key) == value for key, value in record.items()):
            return {**before, "made": False}
    return {**record, **_write(dataset, plans, configuration, folder, record, names), "made": True}


def read_fold(dataset: PreprocessedDataset, data_identifier: str, fold: int | str) -> dict[str, Any]:
    """Read the record of a fold's bank; `seen` are identities of its cases by id."""
    folder = bank_folder(dataset, data_identifier, fold)
    remedy = f"run transplant for the fold {fold} of this configuration"
    if not folder.is_dir():
        raise InputError(f"no lesions to transplant in {folder}", "the bank of this fold", remedy)
    record = read_json(folder / RECORD, remedy)
    found = (record.get("format"), record.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION) or not isinstance(record.get("seen"), dict):
        raise InputError(
            f"{folder / RECORD} of {found[0]}, version {found[1]}", f"{FORMAT}, version {FORMAT_VERSION}", remedy
        )
    return {**record, "seen": {name: Identity(*identity) for name, identity in record["seen"].items()}}


def _write(
    dataset: PreprocessedDataset,
    plans: dict[str, Any],
    configuration: dict[str, Any],
    folder: Path,
    record: dict[str, Any],
    names: Sequence[str],
) -> dict[str, int]:
    """Write the bank to a temporary folder that then takes its place; returns its counts."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, former = (folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial") for _ in range(2))
    temporary.mkdir()
    try:
        bank = None
        with suppress(NoLesionError):
            bank = make_bank(
                _read_cases(dataset, plans, configuration, names),
                record["dimension"],
                record["lesion_labels"],
                _left_right(dataset, plans, configuration, names[0]),
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
        counts = {"lesions": len(bank.lesions), "fitting": fitting, "receiving": len(bank.receiving)}
        write_json(temporary / RECORD, {**record, **counts})
        if folder.exists():
            folder.rename(former)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # where it holds nothing else
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
        raise
    shutil.rmtree(former, ignore_errors=True)
    return counts


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


def _left_right(
    dataset: PreprocessedDataset, plans: dict[str, Any], configuration: dict[str, Any], name: str
) -> int | None:
    """Return the preprocessed axis that goes from left to right, counted from the end; `None` if 2D has none.

    The first case stands for all. Without a direction in its properties the last axis is taken.
    """
    properties = case_reader(dataset, configuration["data_identifier"])(name)[3]
    direction = properties.get("sitk_stuff", {}).get("direction")
    if direction is None or len(direction) != 9:
        return -1
    towards_left = np.abs(np.reshape(direction, (3, 3))[0])  # of the axes x y z; arrays are z y x
    axis = int(np.argmax([towards_left[2 - raw] for raw in plans["transpose_forward"]])) - 3
    return None if axis == -3 and len(configuration["patch_size"]) == 2 else axis
