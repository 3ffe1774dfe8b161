"""Transplants as cases of nnU-Net: what `load_case` returns, computing only what the loader reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import CaseSource
from .bank import Bank, Transplant
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
        patch_size: of the network, two or three numbers. What is returned of a large image is the part of which every
            patch shows the lesion: nnU-Net's loader does not know where that is.
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
        if self.bank.dimension == 2:
            return self._plane(transplant, data, seg, source)
        return self._volume(transplant, data, seg, source, properties["class_locations"])

    def _open(self, case: int) -> tuple[Any, Any, Any, dict]:
        return self._cases.load_case(self._names[case])

    def _plane(self, transplant: Transplant, data: Any, seg: Any, source: Any) -> tuple[Any, Any, None, dict]:
        plane = transplant.plane
        if source is not None:
            source = np.asarray(source[:, transplant.source_plane : transplant.source_plane + 1])[:, 0]
        patch = render(self.bank, transplant, tuple(data.shape[2:]), source)
        window = window_around(transplant.centre, self._patch_size, data.shape[2:])
        cut = (slice(None), slice(plane, plane + 1), *window)
        start = np.array([part.start for part in window])
        image = blend(np.asarray(data[cut])[:, 0], patch, start)[:, None]
        labels = relabel(np.asarray(seg[cut])[0, 0], patch, start)[None, None]
        return image, labels, None, {"class_locations": locations_in(labels, self._classes)}

    def _volume(
        self, transplant: Transplant, data: Any, seg: Any, source: Any, locations: dict
    ) -> tuple[Any, Any, None, dict]:
        patch = render(self.bank, transplant, tuple(data.shape[1:]), source)
        window = window_around(transplant.centre, self._patch_size, data.shape[1:])
        locations = moved_locations(locations, patch, window, self._classes)
        return PastedImage(data, patch, window), PastedLabels(seg, patch, window), None, {"class_locations": locations}


class PastedImage:
    """A part of an image `(channels, *spatial)` with a patch in it; only what is indexed by slices is read."""

    def __init__(self, whole: Any, patch: Patch, window: Sequence[slice]):
        self._whole, self._patch = whole, patch
        self._start = np.array([part.start for part in window])
        self.shape = (whole.shape[0], *(part.stop - part.start for part in window))
        self.dtype = whole.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, slices: Any) -> np.ndarray:
        """Return a region, given by as many slices as there are axes, or fewer; without a step."""
        slices = slices if isinstance(slices, tuple) else (slices,)
        slices = (*slices, *[slice(None)] * (self.ndim - len(slices)))
        bounds = [part.indices(size)[:2] for part, size in zip(slices, self.shape, strict=True)]
        start = self._start + [low for low, _ in bounds[1:]]
        stop = self._start + [high for _, high in bounds[1:]]
        region = np.asarray(self._whole[(slice(*bounds[0]), *map(slice, start.tolist(), stop.tolist()))])
        return self._paste(region, start)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _paste(self, region: np.ndarray, start: np.ndarray) -> np.ndarray:
        return blend(region, self._patch, start)


class PastedLabels(PastedImage):
    """A part of a label map `(1, *spatial)` with a patch's labels in it; only what is indexed is read."""

    def _paste(self, region: np.ndarray, start: np.ndarray) -> np.ndarray:
        return relabel(region[0], self._patch, start)[None]


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


def locations_in(labels: np.ndarray, classes: Sequence[int | tuple[int, ...]]) -> dict:
    """Return where the classes are in a label map `(1, planes, rows, columns)`: (voxels, 4) each, or an empty list."""
    found: dict[Any, Any] = {}
    for of in classes:
        where = np.argwhere(labels == of if isinstance(of, int) else np.isin(labels, of))
        found[of] = where[:: len(where) // MOST_LOCATIONS + 1] if len(where) else []
    return found


def moved_locations(
    locations: dict, patch: Patch, window: Sequence[slice], classes: Sequence[int | tuple[int, ...]]
) -> dict:
    """Return a case's locations in the window: without those that the patch labels otherwise, with those of the patch.

    Locations are (voxels, 4) of channel (0) and place; the patch's count is kept below 10,000 a class.
    """
    low, high = (np.array([getattr(part, end) for part in window])[:, None] for end in ("start", "stop"))
    place, size = patch.start[:, None], np.array(patch.labels.shape)[:, None]
    ours = np.stack(np.nonzero(patch.labels))
    values = patch.labels[tuple(ours)]
    ours += place
    moved: dict[Any, Any] = {}
    for of in classes:
        members = (of,) if isinstance(of, int) else of
        # nnU-Net's list of a class that a case does not have is empty, and without a dtype no index.
        kept = np.ascontiguousarray(np.asarray(locations[of], np.int64).reshape(-1, 4)[:, 1:].T)
        inside = np.flatnonzero(((kept >= place) & (kept < place + size)).all(axis=0))
        now = patch.labels[tuple(kept.take(inside, axis=1) - place)]
        kept = np.delete(kept, inside[(now > 0) & ~np.isin(now, members)], axis=1)
        added = ours.compress(np.isin(values, members), axis=1)
        every = np.concatenate([kept, added[:, :: added.shape[1] // MOST_LOCATIONS + 1]], axis=1)
        every = every.compress(((every >= low) & (every < high)).all(axis=0), axis=1) - low
        moved[of] = np.concatenate([np.zeros((1, every.shape[1]), int), every]).T if every.size else []
    return moved
