"""A bank on disk: a folder of arrays that are mapped into memory, so that every worker shares one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .anatomy import Anatomy, Plane
from .bank import Bank, Fit
from .lesions import Lesion, Surroundings
from .place import Gates
from .warp import Warp

T = TypeVar("T", Lesion, Anatomy, Fit)
# Parts that are records themselves; and fields whose size differs from one to the next (others are a row of a table).
_PARTS: dict[str, Any] = {"around": Surroundings, "warp": Warp}
MOST_MADE = 1024  # lesions, anatomies and fits that are kept once made; they hold views alone
_LESION_ARRAYS = {"image": np.float32, "distance": np.float16, "labels": np.int16}
_ANATOMY_ARRAYS = {"image": np.float16, "labels": np.int16, "depth": np.float16, "boxes": np.float32}


def save_bank(bank: Bank, folder: Path) -> None:
    """Write a bank's arrays into an existing folder."""
    _save(folder, "lesions", bank.lesions, _LESION_ARRAYS)
    _save(folder, "anatomies", bank.anatomies, _ANATOMY_ARRAYS)
    _save(folder, "fits", bank.fits, {})
    np.save(folder / "places.npy", np.array(bank.places, float).reshape(-1, 3))
    np.savez(
        folder / "bank.npz",
        low=bank.gates.low,
        high=bank.gates.high,
        depth=bank.gates.depth,
        tissue=bank.gates.tissue,
        dimension=bank.dimension,
        lesion_labels=bank.lesion_labels,
        mirror_axis=0 if bank.mirror_axis is None else bank.mirror_axis,
    )


def load_bank(folder: Path) -> Bank:
    """Read a bank whose images stay on disk until they are used."""
    with np.load(folder / "bank.npz") as small:
        gates = Gates(small["low"], small["high"], float(small["depth"]), float(small["tissue"]))
        dimension, labels = int(small["dimension"]), tuple(small["lesion_labels"].tolist())
        mirror_axis = int(small["mirror_axis"]) or None
    places = [Plane(int(case), int(number), height) for case, number, height in np.load(folder / "places.npy").tolist()]
    return Bank(
        Stored(folder, "lesions", Lesion, _LESION_ARRAYS),
        Stored(folder, "anatomies", Anatomy, _ANATOMY_ARRAYS),
        places,
        gates,
        Stored(folder, "fits", Fit, {}),
        dimension,
        labels,
        mirror_axis,
    )


class Stored(Sequence[T]):
    """Lesions, anatomies or fits in a folder, made of the mapped arrays when one is asked for.

    `columns` holds a field of all of them.
    """

    def __init__(self, folder: Path, name: str, kind: type[T], arrays: dict[str, Any]):
        self._kind: Any = kind
        table = np.load(folder / f"{name}.npy")
        self._count = len(table)
        # Views as plain arrays: a slice of a `memmap`, and a field of a record, take several times as long.
        self._arrays = {
            key: (np.asarray(np.load(folder / f"{name}_{key}.npy", mmap_mode="r")), table[f"{key}_start"], shapes)
            for key, shapes in ((key, table[f"{key}_shape"]) for key in arrays)
        }
        self.columns = {key: table[key] for key in table.dtype.names if not key.endswith(("_start", "_shape"))}
        self._parts: dict[str, tuple[Any, list[str]]] = {}
        for key, part in _PARTS.items():
            names = [f"{key}_{field.name}" for field in fields(part)]
            if names[0] in self.columns:
                self._parts[key] = (part, names)
        self._made: Any = lru_cache(MOST_MADE)(self._make)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        """Return one of them by its number."""
        return self._made(int(number))

    def _make(self, number: int) -> T:
        values: dict[str, Any] = {
            key: column[number] if column.ndim > 1 else column[number].item() for key, column in self.columns.items()
        }
        for key, (flat, starts, shapes) in self._arrays.items():
            start, shape = int(starts[number]), [size for size in shapes[number].tolist() if size >= 0]
            values[key] = flat[start : start + prod(shape)].reshape(shape)
        for key, (part, names) in self._parts.items():
            values[key] = part(*[values.pop(name) for name in names])
        if self._kind is Anatomy:
            values["planes"] = tuple(values["planes"])
        made: T = self._kind(**values)
        return made


def _save(folder: Path, name: str, items: Sequence[Any], arrays: dict[str, Any]) -> None:
    rows: list[dict[str, Any]] = []
    starts = dict.fromkeys(arrays, 0)
    for item in items:
        row: dict[str, Any] = {}
        for field in fields(item):
            value = getattr(item, field.name)
            if field.name in arrays:
                row[f"{field.name}_start"] = starts[field.name]
                row[f"{field.name}_shape"] = [*value.shape, *[-1] * (4 - value.ndim)]
                starts[field.name] += value.size
            elif field.name in _PARTS:
                row |= {f"{field.name}_{part.name}": getattr(value, part.name) for part in fields(value)}
            else:
                row[field.name] = value
        rows.append(row)
    types = [(key, np.asarray(value).dtype, np.shape(value)) for key, value in rows[0].items()]
    np.save(folder / f"{name}.npy", np.array([tuple(row.values()) for row in rows], types))
    for key, kind in arrays.items():
        flat = np.lib.format.open_memmap(folder / f"{name}_{key}.npy", "w+", kind, (max(starts[key], 1),))
        start = 0
        for item in items:
            value = getattr(item, key)
            flat[start : start + value.size] = np.ravel(value)
            start += value.size
        flat.flush()
