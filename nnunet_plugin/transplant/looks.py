"""How planes look, so that a lesion goes where another patient shows the same part of the body."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .anatomy import UNKNOWN, Anatomy, Plane

SIDE = 16  # cells along each side of the box around the body that a plane is looked at in
SAMPLES = 4  # along each side of a cell
RANGE = 3.0  # interquartile ranges of the body to both sides of its median; what is outside of the body is darkest
AROUND = 10  # voxels of the finest spacing around a lesion, in which its surroundings are compared with a place's
POINTS = {2: 24, 3: 12}  # of them, along each axis
AREA, HEIGHT = 0.2, 0.5  # weights of what else tells planes apart: the squared log ratio of areas, the squared distance


class Looks:
    """The looks of the planes in which lesions are sought a place, one row a plane, in the order they were added.

    A relative height alone puts lesions of the brain into the face of whom the scan shows down to the neck.
    `healthy` (no lesion, and nothing unknown) is `(rows,)`.
    """

    def __init__(self, lesion_labels: Sequence[int]):
        self._doubtful = (*lesion_labels, UNKNOWN)
        self._rows: list[tuple[np.ndarray, np.ndarray, int, bool, float, float]] = []

    def add(self, anatomy: Anatomy, planes: Sequence[Plane]) -> None:
        """Look at planes of a volume."""
        areas = np.count_nonzero(anatomy.depth, axis=(1, 2))
        for plane in planes:
            clear = ~np.isin(anatomy.labels[plane.number], self._doubtful)
            area = float(max(areas[plane.number], 1) / max(areas.max(), 1))
            self._rows.append(
                (*_cells(anatomy, plane.number, clear), plane.case, bool(clear.all()), area, plane.height)
            )

    def finish(self) -> None:
        """All have been added."""
        values, clear, cases, healthy, areas, heights = zip(*self._rows, strict=True)
        self._rows.clear()
        self._values, self._clear = np.stack(values), np.stack(clear)  # half floats: a kilobyte a plane
        self._cases, self.healthy = np.array(cases, int), np.array(healthy, bool)
        self._areas, self._heights = np.log(areas), np.array(heights, float)

    def unlikeness(self, case: int, height: float, mirror_axis: int | None, rows: np.ndarray) -> np.ndarray:
        """Return how little each of the rows looks like a case's plane at a relative height, `(rows,)`, from about 0.

        One minus the correlation where that plane shows no lesion, of the plane or its mirror image, and what areas
        and heights add.
        """
        own = np.flatnonzero(self._cases == case)
        row = own[np.abs(self._heights[own] - height).argmin()]
        seen = [(self._values[row].astype(np.float32), self._clear[row].astype(np.float32))]
        if mirror_axis in (-1, -2):
            seen.append(tuple(np.flip(of.reshape(SIDE, SIDE), mirror_axis).ravel() for of in seen[0]))
        values = self._values[rows].astype(np.float32)
        alike = [values @ one / np.sqrt(np.maximum(values**2 @ clear, 1e-6)) for one, clear in seen]
        areas, heights = self._areas[rows] - self._areas[row], self._heights[rows] - height
        return 1 - np.max(alike, axis=0) + AREA * areas**2 + HEIGHT * heights**2


def _cells(anatomy: Anatomy, number: int, clear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of a plane, of mean 0 and norm 1 over what is `clear` of lesions and 0 elsewhere; and that."""
    low, high = anatomy.boxes[number]
    rows, columns = (
        np.linspace(a, b + 1, SIDE * SAMPLES + 1)[:-1].astype(int).clip(0, size - 1)
        for a, b, size in zip(low, high, clear.shape, strict=True)
    )
    at = np.ix_(rows, columns)
    image = anatomy.image[:, number].astype(np.float32).clip(-RANGE, RANGE).mean(axis=0)
    image[anatomy.depth[number] == 0] = -RANGE
    values, clear = (of[at].reshape(SIDE, SAMPLES, SIDE, SAMPLES).mean(axis=(1, 3)).ravel() for of in (image, clear))
    values = clear * (values - np.average(values, weights=clear + 1e-6))
    return (values / max(float(np.linalg.norm(values)), 1e-6)).astype(np.float16), clear.astype(np.float16)


class Context:
    """What lies around a lesion, to tell whether a place lies in the same part of the body.

    Args:
        anatomy: of the lesion's case, volume or plane.
        place: of the lesion, relative to the body.
        extent: of the lesion to both sides of its centre, in mm.
        lesion_labels: what is not compared, as what is unknown.
    """

    def __init__(self, anatomy: Anatomy, place: np.ndarray, extent: np.ndarray, lesion_labels: Sequence[int]):
        self._doubtful = (*lesion_labels, UNKNOWN)
        reach = extent + AROUND * anatomy.spacing.min()
        axes = [np.linspace(-far, far, POINTS[len(reach)]) for far in reach]
        self._offsets = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(len(reach), -1)
        self._values, self._clear = self._around(anatomy, anatomy.absolute(place), None)

    def unlikeness(self, anatomy: Anatomy, centre: np.ndarray, mirror_axis: int | None) -> float:
        """Return the mean squared difference from what is around a coarse voxel, or from its mirror image.

        In interquartile ranges of the body; infinite where there is nothing to compare.
        """
        values, clear = self._around(anatomy, centre, mirror_axis)
        both = clear & self._clear
        return float(np.square(values - self._values)[:, both].mean()) if both.any() else np.inf

    def _around(self, anatomy: Anatomy, centre: np.ndarray, mirror_axis: int | None) -> tuple[np.ndarray, np.ndarray]:
        offsets = self._offsets / anatomy.spacing[:, None]
        if mirror_axis is not None:
            offsets[mirror_axis] *= -1
        points = np.rint(np.reshape(centre, (-1, 1)) + offsets).astype(int)
        shape = np.reshape(anatomy.labels.shape, (-1, 1))
        inside = ((points >= 0) & (points < shape)).all(axis=0)
        at = tuple(points.clip(0, shape - 1))
        values = anatomy.image[(slice(None), *at)].astype(np.float32).clip(-RANGE, RANGE)
        return values, inside & ~np.isin(anatomy.labels[at], self._doubtful)
