"""A random deformation of a lesion, in millimetres: scaling, rotation, mirroring, and a free-form deformation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import ndimage

SPLINES = (
    3  # order of those that images are interpolated by: straight lines take more of the grain (benchmarks/grain.py)
)
SCALES = (0.7, 1.4)
MAX_ANGLE = np.pi / 6
BEND = 0.05  # standard deviation of the free-form deformation's displacement, in diameters of the lesion
ANISOTROPY = 3.0  # of spacings, above which a lesion is turned and bent in plane only: nnU-Net's threshold for the same
INTERVALS = 3  # of the spline's knots along each axis of the lesion's surroundings


@dataclass(frozen=True)
class Warp:
    """Where a voxel of the warped lesion comes from: offsets in mm from the new centre to offsets from the old one.

    `matrix` is the linear part, `(ndim, ndim)`. `knots`, `(ndim, n, ...)`, are displacements in mm on a grid that
    reaches `reach` mm (per axis) to both sides of the centre.
    """

    matrix: np.ndarray
    knots: np.ndarray
    reach: np.ndarray

    @property
    def scale(self) -> float:
        """How much larger the warped lesion is, along every axis."""
        return float(abs(np.linalg.det(self.matrix)) ** (-1 / len(self.matrix)))

    def old_offsets(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """Return `(ndim, *grid)` offsets in mm from the lesion's old centre, of a grid given by its axes' offsets.

        Cubic B-splines between the knots (free-form deformation, Rueckert et al. 1999, eq. 3).
        """
        basis = [_spline_basis(axis / reach) for axis, reach in zip(axes, self.reach, strict=True)]
        offsets = self.knots
        for weights in basis:  # each turn consumes the first grid axis and appends the new one
            offsets = np.tensordot(offsets, weights, axes=(1, 1))
        for old, row in enumerate(self.matrix):
            *linear, last = (weight * axis for weight, axis in zip(row, axes, strict=True))
            offsets[old] += reduce(np.add.outer, linear)[..., None]  # small, so that the grid is gone over but twice
            offsets[old] += last
        return offsets

    def new_extent(self, extent: np.ndarray) -> np.ndarray:
        """Return what the warped lesion reaches to both sides of its centre at most, in mm for each axis."""
        bend = np.abs(self.knots).reshape(len(self.knots), -1).max(axis=1)
        return np.abs(np.linalg.inv(self.matrix)) @ (extent + bend)


def draw_warp(
    rng: np.random.Generator, extent: np.ndarray, diameter: float, mirrored_axis: int | None, spacing: np.ndarray
) -> Warp:
    """Draw a warp for a lesion that reaches `extent` mm to both sides of its centre, in voxels of this spacing in mm.

    The scale is log-uniform in 0.7 to 1.4; the rotation up to 30 degrees, about a random axis in 3D. Where slices lie
    apart by more than three times their finest spacing, the axis is the slices', and lesions bend within them alone.
    """
    ndim = len(extent)
    scale = np.exp(rng.uniform(*np.log(SCALES)))
    angle, axis = rng.uniform(-MAX_ANGLE, MAX_ANGLE), rng.normal(size=3) if ndim == 3 else None
    across = int(np.argmax(spacing)) if ndim == 3 and max(spacing) > ANISOTROPY * min(spacing) else None
    if across is not None:
        axis = np.eye(3)[across]
    matrix = rotation(angle, axis) / scale
    if mirrored_axis is not None:
        matrix[:, mirrored_axis] *= -1
    # Averaging by the spline takes half of the knots' standard deviation for each axis, roughly its root in each.
    amplitude = BEND * diameter * 2.0 ** (ndim / 2)
    knots = rng.normal(size=(ndim, *[INTERVALS + 3] * ndim)) * amplitude
    if across is not None:
        knots[across] = 0
    return Warp(matrix, knots, np.asarray(extent) * scale * 1.5)


def interpolated(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return an image's values at places `(ndim, *points)` in voxels, by cubic splines and within its range."""
    return ndimage.map_coordinates(image, places, order=SPLINES, mode="mirror").clip(image.min(), image.max())


def rotation(angle: float, axis: np.ndarray | None) -> np.ndarray:
    """Return the matrix of a rotation by an angle in radians: in the plane, or in space about an axis (Rodrigues)."""
    if axis is None:
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, -sin], [sin, cos]])
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _spline_basis(position: np.ndarray) -> np.ndarray:
    """Return `(points, knots)` weights of the cubic B-splines at positions in [-1, 1], clipped to it."""
    place = (np.clip(position, -1, 1) + 1) / 2 * INTERVALS
    away = np.abs(place[:, None] - np.arange(-1, INTERVALS + 2))
    outer, inner = np.maximum(2 - away, 0), np.maximum(1 - away, 0)
    return (outer * outer * outer - 4 * (inner * inner * inner)) / 6
