"""The donor bank: lesions to take, anatomies to put them into, and transplants drawn from both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from .anatomy import Anatomy, Plane
from .lesions import BORDER, Lesion
from .looks import Context, Looks
from .paste import harmonise
from .place import JITTER, Cut, Gates, Wanted, cut_of, find_site, footprint, mirrored
from .warp import Warp, draw_warp

PLACING = 3  # raised where the same seed gives other transplants than before
WINDOW = 0.1  # of the relative height: how far from the lesion's own a plane lies where none of those like it has room
NEAREST = 1 / 3  # of the other patients: those whose planes are most like a lesion's own
UNLIKE = 1.5  # times as unlike as the most alike plane of all, at most
PATIENTS, PLANES = 2, 3  # at least so many patients, and at most so many planes of each
LOOKED_AT = 100  # other patients, drawn for each lesion where there are more
FITS = {2: 32, 3: 64}  # places and warps that are sought for each lesion, by dimension
CHOICE = 2  # times as many are found where there is room; those whose surroundings are most like the lesion's stay
TRIALS = 4  # tries for each of them


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


@dataclass(frozen=True)
class Fit:
    """A lesion with this warp fits into the place `where` around `centre` (voxels), and `covers` part of one or not.

    `gives`: all around the centre that a decoy takes in the lesion's shape, before any warp, is healthy. `mean` and
    `deviation` are those of its surroundings, a channel each, in units of the anatomy.
    """

    lesion: int
    where: int
    covers: bool
    gives: bool
    centre: np.ndarray
    warp: Warp
    mean: np.ndarray
    deviation: np.ndarray


@dataclass
class Bank:
    """Lesions and anatomies of a set of cases, all of one dimension (2: planes along the first axis, 3: volumes).

    `places` are where lesions may go, `fits` which lesion goes where, in the order of the lesions (`find_fits` makes
    them, since to look for places takes longer than to load an image). Bodies are alike across `mirror_axis`, if
    there is one. Lesions, anatomies and fits may be many: they lie in files (see `store`).
    """

    lesions: Sequence[Lesion]
    anatomies: Sequence[Anatomy]
    places: Sequence[Plane]
    gates: Gates
    fits: Sequence[Fit]
    dimension: int
    lesion_labels: tuple[int, ...]
    mirror_axis: int | None = -1

    def find_fits(self, rng: np.random.Generator, looks: Looks) -> Iterator[Fit]:
        """Look for places in other cases for every lesion, in planes that look like its own.

        In 2D these are planes without a lesion of each case that has any. A shape that has room in one other case alone
        is sought in the lesion's own, too, since a decoy takes tissue from one case to another.
        """
        cases, heights = self._cases, np.array([place.height for place in self.places])
        # A volume with a lesion may have room for another one beside it.
        healthy = looks.healthy if self.dimension == 2 else ~np.isin(cases, cases[~looks.healthy])
        free = healthy | ~np.isin(cases, cases[healthy]) if self.dimension == 2 else np.ones(len(cases), bool)
        for number, lesion in enumerate(self.lesions):
            height = lesion.height if self.dimension == 2 else float(lesion.place[0])
            others, near = cases != lesion.case, np.abs(heights - height) <= WINDOW
            seen, unlike = others & self._some_cases(rng, lesion.case), np.full(len(cases), np.inf)
            unlike[seen] = looks.unlikeness(lesion.case, height, self.mirror_axis, np.flatnonzero(seen))
            # Farther away, or over another lesion, only where there is no other way.
            choices = [(free & others, False), (~healthy & others, True)]
            found = self._fits_among(rng, number, unlike, near, choices)
            yield from found
            receiving = {self.places[fit.where].case for fit in found if not fit.covers}
            while found and len(receiving) < 2:
                rest = free & ~np.isin(cases, [*receiving])
                found = self._fits_among(rng, number, unlike, near, [(rest & others, False)])
                found = found or self._nearest_fits(rng, number, [(rest & near, False)])
                yield from found
                receiving |= {self.places[fit.where].case for fit in found}

    def _fits_among(
        self,
        rng: np.random.Generator,
        number: int,
        unlike: np.ndarray,
        near: np.ndarray,
        choices: Sequence[tuple[np.ndarray, bool]],
    ) -> list[Fit]:
        """Return fits of a lesion in places most like its own, or else in those of a like height (`near`)."""
        alike = [(self._most_alike(unlike, chosen & np.isfinite(unlike)), covers) for chosen, covers in choices]
        found = self._nearest_fits(rng, number, alike, JITTER[:-1])
        return found or self._nearest_fits(rng, number, [(chosen & near, covers) for chosen, covers in choices])

    def _some_cases(self, rng: np.random.Generator, but: int) -> np.ndarray:
        """Return the places of some cases but one: of all, where they are not many."""
        others = np.delete(np.arange(len(self.anatomies)), but)
        if len(others) <= LOOKED_AT:
            return np.ones(len(self._cases), bool)
        return np.isin(self._cases, rng.choice(others, LOOKED_AT, replace=False))

    def _most_alike(self, unlike: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Return those of the chosen places that are most alike: a few planes of each of the nearest cases."""
        rows = np.flatnonzero(chosen)
        rows = rows[np.lexsort((unlike[rows], self._cases[rows]))]
        _, first = np.unique(self._cases[rows], return_index=True)
        best = np.sort(unlike[rows[first]])
        near = best[: max(PATIENTS, int(np.ceil(NEAREST * len(best))))]
        near = near[(np.arange(len(near)) < PATIENTS) | (near <= UNLIKE * near[:1])]
        alike = np.zeros(len(unlike), bool)
        for planes in np.split(rows, first[1:]) if len(rows) else []:
            if unlike[planes[0]] <= near[-1]:
                alike[planes[:PLANES]] = True
        return alike

    def _nearest_fits(
        self,
        rng: np.random.Generator,
        number: int,
        choices: Sequence[tuple[np.ndarray, bool]],
        jitters: Sequence[float] = JITTER,
    ) -> list[Fit]:
        """Return fits of a lesion as near to its own place as there are any, in places chosen or covering another."""
        for jitter, (choice, covers) in product(jitters, choices):
            found = self._fits_of(rng, number, np.flatnonzero(choice), jitter, covers) if choice.any() else []
            if found:
                return found
        return []

    def _fits_of(
        self, rng: np.random.Generator, number: int, where: np.ndarray, jitter: float, covers: bool
    ) -> list[Fit]:
        found: list[tuple[float, Fit]] = []
        lesion, wanted = self.lesions[number], FITS[self.dimension]
        context: Context | None = None  # most searches find no site to compare
        cuts: dict[tuple[int, ...], Cut] = {}
        for trial in range(TRIALS * wanted):
            if not found and trial == TRIALS * wanted // 2:  # most often there is no room
                break
            place = int(where[rng.integers(len(where))])
            mirror = self.mirror_axis if self.mirror_axis is not None and rng.random() < 0.5 else None
            warp = draw_warp(rng, lesion.extent, lesion.diameter, mirror, lesion.spacing)
            at = lesion.place if mirror is None else mirrored(lesion.place, mirror)
            if self.dimension == 3 and self.mirror_axis != -3:  # planes from left to right are mirrored by their height
                at = np.append(self.places[place].height, at[1:])
            asked = Wanted(at, lesion.host, lesion.around, self.lesion_labels, covers)
            anatomy = self.anatomy(self.places[place])
            site = find_site(anatomy, footprint(lesion, warp, anatomy.spacing), asked, self.gates, jitter, rng)
            if site is not None:
                step = tuple(anatomy.stride.tolist())
                cut = cuts[step] = cuts.get(step) or cut_of(lesion, anatomy.stride)
                gives = cut.is_healthy(anatomy.labels, site.voxel, self.lesion_labels)
                fit = Fit(number, place, covers, gives, site.centre, warp, site.around.mean, site.around.deviation)
                context = context or self._context(lesion)
                found.append((context.unlikeness(anatomy, site.voxel, mirror), fit))
                if len(found) == CHOICE * wanted:
                    break
        return [fit for _, fit in sorted(found, key=lambda one: one[0])[:wanted]]

    def _context(self, lesion: Lesion) -> Context:
        anatomy = self.anatomies[lesion.case]
        if self.dimension == 2:
            anatomy = anatomy.plane(round(anatomy.plane_at(lesion.height)))
        return Context(anatomy, lesion.place, lesion.extent, self.lesion_labels)

    def anatomy(self, place: Plane) -> Anatomy:
        """Return the anatomy of a place: the whole volume, or the plane of it."""
        whole = self.anatomies[place.case]
        return whole.plane(place.number) if self.dimension == 2 else whole

    def draw(self, rng: np.random.Generator, decoys: float) -> Transplant | None:
        """Draw a transplant, a decoy in the share `decoys` of the draws; `None` where no lesion fits anywhere.

        Every lesion that fits is as likely. A lesion stands in for a decoy where there is no room for decoys.
        """
        if rng.random() < decoys and len(self._fitting_twice):
            return self._draw_decoy(rng)
        if not len(self.fitting):
            return None
        lesion = self.lesions[number := self.fitting[rng.integers(len(self.fitting))]]
        rows = self._rows[number]
        fit = self._draw_fit(rng, rows[self._case_of(rows) != lesion.case])
        around = lesion.around
        return self._transplant(rng, fit, self._intensities(lesion.case, around.mean, around.deviation))

    def _draw_decoy(self, rng: np.random.Generator) -> Transplant:
        """Draw healthy tissue in a lesion's shape: from healthy tissue, into healthy tissue, at like places."""
        rows = self._rows[self._fitting_twice[rng.integers(len(self._fitting_twice))]]
        rows = rows[self._index[rows, 2] == 0]
        other = self._draw_fit(rng, rows[self._index[rows, 3] > 0])
        source = self.places[other.where]
        fit = self._draw_fit(rng, rows[self._case_of(rows) != source.case])
        decoy = self._transplant(rng, fit, self._intensities(source.case, other.mean, other.deviation))
        return replace(decoy, source=source.case, source_plane=source.number, source_centre=other.centre)

    def _draw_fit(self, rng: np.random.Generator, rows: np.ndarray) -> Fit:
        return self.fits[int(rows[rng.integers(len(rows))])]

    def _transplant(self, rng: np.random.Generator, fit: Fit, old: tuple[np.ndarray, np.ndarray]) -> Transplant:
        place = self.places[fit.where]
        gain, offset = harmonise(*old, *self._intensities(place.case, fit.mean, fit.deviation))
        border = float(rng.uniform(*BORDER))
        floor = self.anatomies[place.case].darkest
        return Transplant(fit.lesion, place.case, place.number, fit.centre, fit.warp, gain, offset, floor, border)

    def _intensities(self, case: int, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of surroundings in the intensities of their case's image."""
        anatomy = self.anatomies[case]
        return mean * anatomy.scale + anatomy.median, deviation * anatomy.scale

    @cached_property
    def _index(self) -> np.ndarray:
        """Lesion, place, whether it covers another lesion and whether it gives decoys, of every fit: (fits, 4)."""
        if not len(self.fits):
            return np.empty((0, 4), int)
        columns: Any = self.fits  # a large bank has millions of fits
        return np.stack([columns.column(name) for name in ("lesion", "where", "covers", "gives")], axis=1).astype(
            np.int32
        )

    @cached_property
    def _rows(self) -> dict[int, np.ndarray]:
        """The fits of every lesion that fits somewhere, by their numbers."""
        if not len(self._index):
            return {}
        lesions, first = np.unique(self._index[:, 0], return_index=True)
        return dict(zip(lesions.tolist(), np.split(np.arange(len(self._index)), first[1:]), strict=True))

    @cached_property
    def fitting(self) -> list[int]:
        """The lesions that fit into another case: all with fits, since their own case is looked at last."""
        return list(self._rows)

    @property
    def receiving(self) -> list[int]:
        """The cases that lesions of others fit into."""
        lesions: Any = self.lesions
        cases = self._case_of(np.arange(len(self._index)))
        return np.unique(cases[cases != lesions.column("case")[self._index[:, 0]]]).tolist()

    @cached_property
    def _fitting_twice(self) -> list[int]:
        """The lesions in whose shape there is healthy tissue to take, and room in another case to put it."""
        healthy = {lesion: rows[self._index[rows, 2] == 0] for lesion, rows in self._rows.items()}
        return [
            lesion
            for lesion, rows in healthy.items()
            if self._index[rows, 3].any() and len(np.unique(self._case_of(rows))) >= 2
        ]

    def _case_of(self, rows: np.ndarray) -> np.ndarray:
        return self._cases[self._index[rows, 1]]

    @cached_property
    def _cases(self) -> np.ndarray:
        """The case of every place."""
        return np.array([place.case for place in self.places], int)
