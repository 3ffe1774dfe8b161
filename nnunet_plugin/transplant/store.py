"""A bank in files: arrays that are mapped into memory, so that every worker shares one copy."""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Callable, Sequence
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
_ARRAYS: dict[Any, dict[str, Any]] = {
    Lesion: {"image": np.float32, "distance": np.float16, "labels": np.int16},
    Anatomy: {"image": np.float16, "labels": np.int16, "depth": np.float16, "boxes": np.float32},
    Fit: {},
}
_NAMES = {Lesion: "lesions", Anatomy: "anatomies", Fit: "fits"}
MOST_MADE = 1024  # lesions, anatomies and fits that are kept once made; they hold views alone
ROOM = 1e9  # bytes that a process has in memory of a bank's files, unless it says otherwise
READ_AROUND = 1 << 16  # bytes that Linux maps where a page is touched
ROWS = 10_000  # of a table that are read at a time

OpenFile = Callable[[str], Any]


def files_in(folder: Path) -> OpenFile:
    """Return what opens the new files of a bank in an existing folder."""
    return lambda name: (folder / name).open("w+b")


def files_without_names(folder: str | Path | None = None) -> OpenFile:
    """Return what opens files that are gone when the program ends, however it ends; None: where temporary files lie."""
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return lambda name: tempfile.TemporaryFile(dir=folder)


def save_bank(bank: Bank, folder: Path) -> None:
    """Write what a bank has beside its lesions, anatomies and fits, which lie in the folder already (`files_in`)."""
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


def close_bank(bank: Bank) -> None:
    """Close the files of a bank, of which nothing can be used from then on. Windows renames no folder of open files."""
    stored = [part for part in (bank.lesions, bank.anatomies, bank.fits) if isinstance(part, Stored)]
    for part in stored:
        part.let_go()
    for part in stored:
        part.maps.close()


def load_bank(folder: Path) -> Bank:
    """Read a bank whose images stay on disk until they are used."""
    with np.load(folder / "bank.npz") as small:
        gates = Gates(small["low"], small["high"], float(small["depth"]), float(small["tissue"]))
        dimension, labels = int(small["dimension"]), tuple(small["lesion_labels"].tolist())
        mirror_axis = int(small["mirror_axis"]) or None
    places = [Plane(int(case), int(number), height) for case, number, height in np.load(folder / "places.npy").tolist()]
    maps = Maps(ROOM)

    def stored(kind: Any) -> Stored:
        names = [_NAMES[kind], *(f"{_NAMES[kind]}_{key}" for key in _ARRAYS[kind])]
        return Stored(kind, {name: maps.of_path(folder / f"{name}.npy") for name in names}, maps)

    return Bank(stored(Lesion), stored(Anatomy), places, gates, stored(Fit), dimension, labels, mirror_axis)


class Maps:
    """Files that are mapped into memory, of which a process holds about `room` bytes.

    The system keeps what was read of a file as long as nobody needs the memory, so that to let go of it costs little.
    """

    def __init__(self, room: float):
        self._room, self._read = room, 0
        self._maps: list[mmap.mmap] = []

    def of_path(self, path: Path) -> np.ndarray:
        """Return the array of an `.npy` file."""
        with path.open("rb") as file:
            return self.of(file)

    def of(self, file: Any) -> np.ndarray:
        """Return the array of an open `.npy` file. It is no `memmap`, whose slices take several times as long."""
        file.seek(0)
        np.lib.format.read_magic(file)
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(whole)
        return np.frombuffer(whole, kind, shape[0], file.tell())

    def touch(self, size: int) -> None:
        """Count what is about to be read, and let go of what was read before where that is too much."""
        self._read += max(size, READ_AROUND)
        if self._read > self._room and hasattr(mmap, "MADV_DONTNEED"):  # as good as everywhere
            for whole in self._maps:
                whole.madvise(mmap.MADV_DONTNEED)
            self._read = 0

    def close(self) -> None:
        """Close the maps, of which no array may be in use any more."""
        while self._maps:
            self._maps.pop().close()


class Stored(Sequence[T]):
    """Lesions, anatomies or fits, made of the mapped arrays when one is asked for.

    Args:
        kind: which of them.
        arrays: `.npy` files of theirs, by name: the table, and the fields whose size differs.
        maps: that the arrays are of.
    """

    def __init__(self, kind: type[T], arrays: dict[str, np.ndarray], maps: Maps):
        self._kind: Any = kind
        self.maps, name = maps, _NAMES[kind]
        self._table = table = arrays[name]
        self._arrays = {
            key: (arrays[f"{name}_{key}"], table[f"{key}_start"], table[f"{key}_shape"]) for key in _ARRAYS[kind]
        }
        # Views of whole columns: a field of a record takes several times as long.
        self._columns = {key: table[key] for key in table.dtype.fields or {} if not key.endswith(("_start", "_shape"))}
        self._parts: dict[str, tuple[Any, list[str]]] = {}
        for key, part in _PARTS.items():
            names = [f"{key}_{field.name}" for field in fields(part)]
            if names[0] in self._columns:
                self._parts[key] = (part, names)
        self._made: Any = lru_cache(MOST_MADE)(self._make)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: Any) -> Any:
        """Return one of them by its number."""
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        made, size = self._made(int(number))
        self.maps.touch(size)
        return made

    def let_go(self) -> None:
        """Keep nothing of the mapped arrays."""
        self._made.cache_clear()
        del self._table
        self._arrays.clear()
        self._columns.clear()

    def column(self, name: str) -> np.ndarray:
        """Return a field of all of them."""
        found = np.empty_like(self._columns[name], subok=False)
        for first in range(0, len(self), ROWS):
            found[first : first + ROWS] = self._columns[name][first : first + ROWS]
            self.maps.touch(ROWS * self._table.itemsize)
        return found

    def _make(self, number: int) -> tuple[T, int]:
        values: dict[str, Any] = {
            key: column[number] if column.ndim > 1 else column[number].item() for key, column in self._columns.items()
        }
        size = 0
        for key, (flat, starts, shapes) in self._arrays.items():
            start, shape = int(starts[number]), [side for side in shapes[number].tolist() if side >= 0]
            values[key] = flat[start : start + prod(shape)].reshape(shape)
            size += values[key].nbytes
        for key, (part, names) in self._parts.items():
            values[key] = part(*[values.pop(name) for name in names])
        if self._kind is Anatomy:
            values["planes"] = tuple(values["planes"])
        return self._kind(**values), size


class Written:
    """Lesions, anatomies or fits that go to files one by one.

    Args:
        kind: which of them.
        open_file: see `files_in`.
    """

    def __init__(self, kind: type, open_file: OpenFile):
        self._kind, self._open = kind, open_file
        self._files: dict[str, _Growing] = {}

    def append(self, item: Any) -> None:
        """Write one."""
        row: dict[str, Any] = {}
        name, arrays = _NAMES[self._kind], _ARRAYS[self._kind]
        for field in fields(item):
            value = getattr(item, field.name)
            if field.name in arrays:
                file = self._file(f"{name}_{field.name}", np.dtype(arrays[field.name]))
                row[f"{field.name}_start"] = file.length
                row[f"{field.name}_shape"] = [*value.shape, *[-1] * (4 - value.ndim)]
                file.append(np.ravel(value))
            elif field.name in _PARTS:
                row |= {f"{field.name}_{part.name}": getattr(value, part.name) for part in fields(value)}
            else:
                row[field.name] = value
        if name not in self._files:
            types = [(key, np.asarray(value).dtype, np.shape(value)) for key, value in row.items()]
            self._file(name, np.dtype(types))
        self._files[name].append(np.array([tuple(row.values())], self._files[name].dtype))

    def stored(self, maps: Maps) -> Sequence[Any]:
        """Finish, and return them all."""
        arrays = {}
        for name, file in self._files.items():
            file.finish()
            arrays[name] = maps.of(file.file)
            file.file.close()  # the map holds what it needs
        return Stored(self._kind, arrays, maps) if arrays else []

    def _file(self, name: str, dtype: np.dtype) -> _Growing:
        if name not in self._files:
            self._files[name] = _Growing(self._open(f"{name}.npy"), dtype)
        return self._files[name]


class _Growing:
    """A flat array that grows in an `.npy` file, whose header has room for any length."""

    def __init__(self, file: Any, dtype: np.dtype):
        self.file, self.dtype, self.length = file, dtype, 0
        weakref.finalize(self, file.close)
        self.finish()

    def append(self, values: np.ndarray) -> None:
        self.file.write(values.astype(self.dtype, copy=False).tobytes())
        self.length += len(values)

    def finish(self) -> None:
        self.file.seek(0)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.file.flush()
