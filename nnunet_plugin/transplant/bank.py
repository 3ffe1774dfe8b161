"""The donor bank: lesions to take, anatomies to put them into, and transplants drawn from both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .anatomy import Anatomy, Plane
from .lesions import Lesion, Surroundings
from .paste import BORDER, harmonise
from .place import JITTER, Gates, Site, Wanted, find_site, footprint, mirrored
from .warp import Warp, draw_warp

WINDOW = 0.1  # of the relative height, between a lesion's plane and the one that it is put into
TRIALS = 30  # anatomies in which a lesion is tried when the bank is made
LESIONS, DRAWS = 8, 6  # lesions tried for one transplant, and warps and anatomies for each of them


@dataclass(frozen=True)
class Transplant:
    """A transplant before any voxel of an image is touched.

    `lesion` and `case` are numbers in the bank, `plane` the plane of the case in 2D. `centre` in voxels. `gain` and
    `offset` take the source's intensities to the case's, `floor` is the case's darkest, a channel each. A decoy takes
    healthy tissue of the case `source`, plane `source_plane`, around the voxel `source_centre`, in the lesion's shape.
    """

    lesion: int
    case: int
    plane: int
    centre: np.ndarray
    warp: Warp
    gain: np.ndarray
    offset: np.ndarray
    floor: np.ndarray
    border: float
    source: int = -1
    source_plane: int = -1
    source_centre: np.ndarray | None = None

    @property
    def is_decoy(self) -> bool:
        """Whether healthy tissue is pasted, without labels."""
        return self.source >= 0


class Fit(NamedTuple):
    """A lesion was seen to fit into an anatomy, with the jitter of this rank; `covers` another lesion there or not."""

    lesion: int
    where: int
    jitter: int
    covers: bool


NO_FITS = np.empty((0, len(Fit._fields)), np.int32)


@dataclass
class Bank:
    """Lesions and anatomies of a set of cases, all of one dimension (2: planes along the first axis, 3: volumes).

    `places` are where lesions may go, `fits` `(fits, 4)` which lesion goes where (rows as `Fit`, in the order of the
    lesions; `find_fits` makes it). Bodies are alike across `mirror_axis`, if there is one.
    """

    lesions: Sequence[Lesion]
    anatomies: Sequence[Anatomy]
    places: Sequence[Plane]
    gates: Gates
    fits: np.ndarray
    dimension: int
    lesion_labels: tuple[int, ...]
    mirror_axis: int | None = -1

    def find_fits(self, rng: np.random.Generator) -> None:
        """Try every lesion in some anatomies of other cases, and keep in `fits` where it found a place.

        In 2D these are planes of a like height, planes without a lesion where there are any.
        """
        cases = np.array([place.case for place in self.places])
        heights = np.array([place.height for place in self.places])
        healthy = np.array([not np.isin(self.anatomy(place).labels, self.lesion_labels).any() for place in self.places])
        found: list[Fit] = []
        for number, lesion in enumerate(self.lesions):
            choice = (cases != lesion.case) & (np.abs(heights - lesion.height) <= WINDOW)
            if (choice & healthy).any():
                choice &= healthy
            where = rng.permutation(np.flatnonzero(choice))[:TRIALS]
            for rank in range(len(JITTER)):
                for covers in (False, True):
                    found += [
                        Fit(number, int(place), rank, covers)
                        for place in where
                        if not (covers and healthy[place])
                        and self._try(rng, lesion, self.places[place], rank, covers) is not None
                    ]
                if found and found[-1].lesion == number:
                    break
        self.fits = np.array(found, np.int32).reshape(-1, len(Fit._fields))

    def anatomy(self, place: Plane) -> Anatomy:
        """Return the anatomy of a place: the whole volume, or the plane of it."""
        whole = self.anatomies[place.case]
        return whole.plane(place.number) if self.dimension == 2 else whole

    def _try(
        self, rng: np.random.Generator, lesion: Lesion, place: Plane, rank: int, covers: bool
    ) -> tuple[Warp, Site] | None:
        mirror = self.mirror_axis is not None and bool(rng.random() < 0.5)
        warp = draw_warp(rng, lesion.extent, lesion.diameter, self.mirror_axis if mirror else None)
        wanted = self._wanted(lesion, mirror, covers)
        anatomy = self.anatomy(place)
        site = find_site(anatomy, footprint(lesion, warp, anatomy.spacing), wanted, self.gates, JITTER[rank], rng)
        return None if site is None else (warp, site)

    def _wanted(self, lesion: Lesion, mirror: bool, covers: bool) -> Wanted:
        place = lesion.place
        if mirror and self.mirror_axis is not None:
            place = mirrored(place, self.mirror_axis)
        return Wanted(place, lesion.host, lesion.around, self.lesion_labels, covers)

    def draw(self, rng: np.random.Generator, decoys: float) -> Transplant | None:
        """Draw a transplant, a decoy in the share `decoys` of the draws; `None` when no place was found for any.

        A lesion stands in for a decoy that found no place: in few or narrow anatomies.
        """
        if rng.random() < decoys and (decoy := self._draw_decoy(rng)) is not None:
            return decoy
        for number in rng.permutation(self._fitting)[:LESIONS]:
            lesion, fits = self.lesions[number], self._fits_of(number)
            for row in rng.integers(len(fits), size=DRAWS):
                fit = Fit(*fits[row].tolist())
                tried = self._try(rng, lesion, self.places[fit.where], fit.jitter, bool(fit.covers))
                if tried is not None:
                    old = self._intensities(lesion.case, lesion.around)
                    return self._transplant(rng, int(number), fit.where, *tried, old)
        return None

    def _draw_decoy(self, rng: np.random.Generator) -> Transplant | None:
        """Draw healthy tissue in a lesion's shape: from healthy tissue, into healthy tissue, at like places."""
        for number in rng.permutation(self._fitting_twice)[:LESIONS]:
            lesion, fits = self.lesions[number], self._fits_of(number)
            fits = fits[fits[:, 3] == 0]
            for row in rng.integers(len(fits), size=DRAWS):
                fit = Fit(*fits[row].tolist())
                target = self.places[fit.where]
                tried = self._try(rng, lesion, target, fit.jitter, False)
                if tried is None:
                    continue
                others = [f for f in fits.tolist() if self.places[f[1]].case != target.case]
                for _ in range(DRAWS):
                    other = Fit(*others[rng.integers(len(others))])
                    source = self.places[other.where]
                    # Taken as large as it is pasted, so that the tissue under the paste is known to be healthy.
                    taken = self._try(rng, lesion, source, other.jitter, False)
                    if taken is None:
                        continue
                    old = self._intensities(source.case, taken[1].around)
                    decoy = self._transplant(rng, int(number), fit.where, *tried, old)
                    return replace(decoy, source=source.case, source_plane=source.number, source_centre=taken[1].centre)
        return None

    def _transplant(
        self,
        rng: np.random.Generator,
        lesion: int,
        where: int,
        warp: Warp,
        site: Site,
        old: tuple[np.ndarray, np.ndarray],
    ) -> Transplant:
        place = self.places[where]
        gain, offset = harmonise(*old, *self._intensities(place.case, site.around))
        border = float(rng.uniform(*BORDER))
        floor = self.anatomies[place.case].darkest
        return Transplant(lesion, place.case, place.number, site.centre, warp, gain, offset, floor, border)

    def _intensities(self, case: int, around: Surroundings) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of surroundings in the intensities of their case's image."""
        anatomy = self.anatomies[case]
        return around.mean * anatomy.scale + anatomy.median, around.deviation * anatomy.scale

    def _fits_of(self, lesion: int) -> np.ndarray:
        first, last = np.searchsorted(self.fits[:, 0], [lesion, lesion + 1])
        return self.fits[first:last]

    @cached_property
    def _fitting(self) -> np.ndarray:
        """The lesions that fit somewhere."""
        return np.unique(self.fits[:, 0])

    @cached_property
    def _fitting_twice(self) -> np.ndarray:
        """The lesions in whose shape there is healthy tissue in two cases, for decoys."""
        healthy = self.fits[self.fits[:, 3] == 0]
        cases = np.array([place.case for place in self.places])[healthy[:, 1]]
        lesions, counts = np.unique(np.unique(np.stack([healthy[:, 0], cases], 1), axis=0)[:, 0], return_counts=True)
        return lesions[counts >= 2]
