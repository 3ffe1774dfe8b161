"""Tensors that lie in memory as far as there is room, and beyond that in a file."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class TensorStore:
    """Tensors of one shape and type, numbered from 0 in the order in which they come.

    What finds no room is written to a file without a name, which is gone when the program ends, however it ends. It is
    read, not mapped: the resident memory of a program grows with what it maps.

    Args:
        room: bytes of memory; None: all of them are held.
        folder: where the file is made; None: where the system keeps temporary files.
    """

    def __init__(self, room: float | None = None, folder: str | Path | None = None):
        self._free, self._folder = math.inf if room is None else room, folder
        self._held: dict[int, Tensor] = {}
        self._offsets: list[int] = []  # in the file; -1 for what is held
        self._shape, self._dtype = torch.Size(), torch.float32  # of the first
        self._file: Any = None
        self._written = 0

    def append(self, tensor: Tensor) -> int:
        """Add a tensor, and return its number."""
        number, size = len(self._offsets), tensor.numel() * tensor.element_size()
        if not number:
            self._shape, self._dtype, self._size = tensor.shape, tensor.dtype, size
        if tensor.shape != self._shape or tensor.dtype != self._dtype:
            raise ValueError(f"{tensor.dtype} of shape {tuple(tensor.shape)} among {self._dtype} {tuple(self._shape)}")
        if size <= self._free:
            self._free -= size
            self._held[number] = tensor.clone()  # a view would hold all that it is a view of
            self._offsets.append(-1)
            return number
        if self._file is None:
            if self._folder is not None:
                Path(self._folder).mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)
            weakref.finalize(self, self._file.close)
        content = tensor.contiguous().numpy().data.cast("B")
        while content:
            content = content[self._file.write(content) :]
        self._offsets.append(self._written)
        self._written += size
        return number

    def forget(self, number: int) -> None:
        """Give the memory of a tensor that nobody will ask for to those to come."""
        if self._held.pop(number, None) is not None:
            self._free += self._size

    def __getitem__(self, number: int) -> Tensor:
        """The tensor of that number; whoever changes it works on a copy."""
        offset = self._offsets[number]
        if offset < 0:
            return self._held[number]
        # With its own offset, so that processes that share the file do not move each other's.
        content = bytearray(os.pread(self._file.fileno(), self._size, offset))
        return torch.frombuffer(content, dtype=self._dtype).view(self._shape)

    def nothing(self) -> Tensor:
        """No tensors `(0, ...)`."""
        return torch.empty((0, *self._shape), dtype=self._dtype)

    def rows(self) -> StoredRows:
        """All of them as one tensor."""
        return StoredRows(self, np.arange(len(self._offsets)))


class StoredRows:
    """Tensors of a store as one tensor `(rows, ...)` that is read where it is indexed.

    Args:
        store: where they lie.
        numbers: (rows,) which of them.
        change: what is made of `(rows, ...)` when they are read.
    """

    def __init__(self, store: TensorStore, numbers: np.ndarray, change: Callable[[Tensor], Tensor] | None = None):
        self.store, self.numbers, self.change = store, numbers, change

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> torch.Size:
        """As of a tensor."""
        return torch.Size((len(self), *self[0].shape))

    @property
    def ndim(self) -> int:
        """As of a tensor."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> Tensor:
        """Read one row, or those of a slice or of an array or tensor of numbers, and index these further."""
        if isinstance(index, tuple):
            part = self[index[0]]
            return part[index[1:] if part.ndim < self.ndim else (slice(None), *index[1:])]
        chosen = self.numbers[index.numpy() if isinstance(index, Tensor) else index]
        rows = [self.store[int(number)] for number in np.atleast_1d(chosen)]
        found = torch.stack(rows) if rows else self.store.nothing()
        found = found if self.change is None else self.change(found)
        return found[0] if np.ndim(chosen) == 0 else found

    def split(self, size: int) -> Iterator[Tensor]:
        """Read `size` rows at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def changed(self, change: Callable[[Tensor], Tensor]) -> StoredRows:
        """The same rows with another `change`."""
        return StoredRows(self.store, self.numbers, change)
