"""Transplants as cases of nnU-Net: what `load_case` returns, computing only what the loader reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import CaseSource
from .bank import Bank, Transplant
from .loader import Locations
from .paste import Patch, blend, relabel
from .render import render
from .store import load_bank

MOST_LOCATIONS = 10_000  # voxels of a class that nnU-Net keeps, and that are kept of a lesion


class TransplantCases:
    """Draws transplants of a fold's bank and pastes them into its cases, in 2D into one plane of them.

    The transplant of a place is a pure function of (seed, rank, epoch, batch, place).

    Args:
        folder: of the bank.
        names: the bank's cases, in its order.
        cases: reads them.
        patch_size: of the network, two or three numbers: `TransplantLoader` takes patches that show the lesion.
        classes: the labels (int) and regions (tuple) whose places the loader wants to know.
        decoys: share of the transplants that are healthy tissue.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        cases: CaseSource,
        patch_size: Sequence[int],
        classes: Sequence[int | tuple[int, ...]],
        decoys: float,
        seed: int,
        rank: int = 0,
    ):
        self._folder, self._names, self._cases = folder, tuple(names), cases
        self._patch_size, self._classes = tuple(patch_size), tuple(classes)
        self._decoys, self._seed, self._rank = decoys, seed, rank
        self._bank: Bank | None = None  # every worker maps the files itself

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bank": None}

    @property
    def bank(self) -> Bank:
        """The bank, opened when it is first needed."""
        if self._bank is None:
            self._bank = load_bank(self._folder)
        return self._bank

    def load(self, epoch: int, batch: int, place: int) -> tuple[Any, Any, Any, dict] | None:
        """Return the transplant of a place as nnU-Net's data sets return a case; `None` where there was no room.

        `batch` may be -1: the one that nnU-Net throws away.
        """
        rng = np.random.default_rng([self._seed, self._rank, epoch, batch + 1, place])
        transplant = self.bank.draw(rng, self._decoys)
        if transplant is None:
            return None
        data, seg, _, properties = self._open(transplant.case)
        source = self._open(transplant.source)[0] if transplant.is_decoy else None
        return self._paste(transplant, data, seg, source, properties["class_locations"])

    def _open(self, case: int) -> tuple[Any, Any, Any, dict]:
        return self._cases.load_case(self._names[case])

    def _paste(
        self, transplant: Transplant, data: Any, seg: Any, source: Any, locations: dict
    ) -> tuple[Any, Any, None, dict]:
        shape = data.shape[-self.bank.dimension :]
        window = window_around(transplant.centre, self._patch_size, shape)
        if self.bank.dimension == 3:
            patch = render(self.bank, transplant, shape, source)
        else:
            plane = slice(transplant.plane, transplant.plane + 1)
            if source is not None:
                source = np.asarray(source[:, transplant.source_plane : transplant.source_plane + 1])[:, 0]
            patch = in_plane(render(self.bank, transplant, shape, source), plane.start)
            window = [plane, *window]
            locations = {of: rows_in(where, plane) for of, where in locations.items()}
        moved = Locations(moved_locations(locations, patch, self._classes), window)
        return PastedImage(data, patch), PastedLabels(seg, patch), None, {"class_locations": moved}


class PastedImage:
    """An image `(channels, *spatial)` with a patch in it; only what is indexed by slices is read."""

    def __init__(self, whole: Any, patch: Patch):
        self._whole, self._patch = whole, patch
        self.shape, self.dtype, self.ndim = tuple(whole.shape), whole.dtype, len(whole.shape)

    def __getitem__(self, slices: Any) -> np.ndarray:
        """Return a region, given by as many slices as there are axes, or fewer; without a step."""
        slices = slices if isinstance(slices, tuple) else (slices,)
        slices = (*slices, *[slice(None)] * (self.ndim - len(slices)))
        bounds = [part.indices(size)[:2] for part, size in zip(slices, self.shape, strict=True)]
        region = np.asarray(self._whole[tuple(slice(*bound) for bound in bounds)])
        return self._paste(region, np.array([low for low, _ in bounds[1:]]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _paste(self, region: np.ndarray, start: np.ndarray) -> np.ndarray:
        return blend(region, self._patch, start)


class PastedLabels(PastedImage):
    """A label map `(1, *spatial)` with a patch's labels in it; only what is indexed is read."""

    def _paste(self, region: np.ndarray, start: np.ndarray) -> np.ndarray:
        return relabel(region[0], self._patch, start)[None]


def in_plane(patch: Patch, plane: int) -> Patch:
    """Return a patch of a plane as one of the volume."""
    return Patch(np.array([plane, *patch.start]), patch.image[:, None], patch.labels[None], patch.alpha[None])


def rows_in(locations: Any, plane: slice) -> np.ndarray:
    """Return those of the locations (voxels, 4) that are in a plane."""
    rows = np.asarray(locations, np.int64).reshape(-1, 4)
    return rows[rows[:, 1] == plane.start]


def window_around(centre: np.ndarray, patch_size: Sequence[int], shape: Sequence[int]) -> list[slice]:
    """Return the part of an image in which every patch of this size has the centre in its middle half.

    Where the image ends before, as far as it goes, but not less than a patch where there is as much.
    """
    window = []
    for middle, patch, size in zip(np.round(centre).astype(int).tolist(), patch_size, shape, strict=True):
        reach = max(1, 3 * patch // 4)
        low, high = max(0, middle - reach), min(size, middle + reach)
        low, high = max(0, min(low, high - patch)), min(size, max(high, low + patch))
        window.append(slice(low, high))
    return window


def moved_locations(locations: dict, patch: Patch, classes: Sequence[int | tuple[int, ...]]) -> dict:
    """Return a case's locations without those that the patch labels otherwise, and with those of the patch.

    Locations are (voxels, 4) of channel (0) and place; the patch's count is kept below 10,000 a class.
    """
    place, size = patch.start[:, None], np.array(patch.labels.shape)[:, None]
    ours = np.stack(np.nonzero(patch.labels))
    values = patch.labels[tuple(ours)]
    ours += place
    moved: dict[Any, Any] = {}
    for of in classes:
        members = (of,) if isinstance(of, int) else of
        # nnU-Net keeps an empty list of a class that a case has not.
        kept = np.ascontiguousarray(np.asarray(locations.get(of, ()), np.int64).reshape(-1, 4)[:, 1:].T)
        inside = np.flatnonzero(((kept >= place) & (kept < place + size)).all(axis=0))
        now = patch.labels[tuple(kept.take(inside, axis=1) - place)]
        kept = np.delete(kept, inside[now > 0], axis=1)  # what the patch labels is added below
        added = ours.compress(np.isin(values, members), axis=1)
        every = np.concatenate([kept, added[:, :: added.shape[1] // MOST_LOCATIONS + 1]], axis=1)
        moved[of] = np.concatenate([np.zeros((1, every.shape[1]), int), every]).T if every.size else []
    return moved
