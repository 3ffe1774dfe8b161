"""Holes in real images: which voxels are painted, what the painter sees of them, and the way there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from ..runtime.errors import InputError

FAR = 8.0  # distances are told up to here, in voxels of the finest spacing
BORDERS = (2.0, 5.0)  # how far a hole reaches around a lesion, in voxels of the finest spacing
FRAME = 6  # voxels of surroundings that a window shows on every side of the hole, at least


@dataclass(frozen=True)
class Intensities:
    """Invertible map of a case's intensities, each channel: asinh((value - median) / scale).

    Linear among ordinary tissue, logarithmic far from it: uptake in PET spans two orders of magnitude.

    Attributes:
        median, scale: `(channels,)` median and interquartile range of the body, as of `nnunet_plugin.transplant`.
    """

    median: np.ndarray
    scale: np.ndarray

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Intensities `(channels, *spatial)` as the model sees them, float32."""
        shape = (-1, *[1] * (image.ndim - 1))
        median, scale = (np.asarray(part, float).reshape(shape) for part in (self.median, self.scale))
        return np.arcsinh((image - median) / scale).astype(np.float32)

    def invert(self, values: np.ndarray) -> np.ndarray:
        """The way back, float32."""
        shape = (-1, *[1] * (values.ndim - 1))
        median, scale = (np.asarray(part, float).reshape(shape) for part in (self.median, self.scale))
        return (median + scale * np.sinh(values.astype(float))).astype(np.float32)


@dataclass(frozen=True)
class Window:
    """A box of an image that may reach beyond its border, where `cut` shows zeros.

    Attributes:
        start: first voxel, also negative.
        size: voxels along each axis.
    """

    start: tuple[int, ...]
    size: tuple[int, ...]

    def cut(self, array: np.ndarray) -> np.ndarray:
        """`(channels, *spatial)` to `(channels, *size)`."""
        here, there = self._overlap(array.shape[1:])
        window = np.zeros((len(array), *self.size), array.dtype)
        window[(slice(None), *there)] = array[(slice(None), *here)]
        return window

    def put(self, array: np.ndarray, window: np.ndarray, where: np.ndarray) -> None:
        """Write the values `(channels, *size)` into `(channels, *spatial)` where the mask `(*size)` says, in place."""
        here, there = self._overlap(array.shape[1:])
        part, chosen = array[(slice(None), *here)], where[there]
        part[:, chosen] = window[(slice(None), *there)][:, chosen]

    def _overlap(self, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        bounds = [
            (max(0, start), min(side, start + size))
            for start, size, side in zip(self.start, self.size, shape, strict=True)
        ]
        here = tuple(slice(low, max(low, high)) for low, high in bounds)
        there = tuple(
            slice(part.start - start, part.stop - start) for part, start in zip(here, self.start, strict=True)
        )
        return here, there


def window_around(hole: np.ndarray, size: Sequence[int], multiple: int) -> Window:
    """The window of a hole `(*spatial)`: as large as in the training, or larger, in multiples, if the hole needs it.

    Raises:
        InputError: there is no hole.
    """
    places = np.argwhere(hole)
    if not len(places):
        raise InputError("a hole of no voxel", "one voxel or more", "give a mask that lies in the image")
    low, high = places.min(axis=0), places.max(axis=0) + 1
    sides = np.maximum(size, -(-(high - low + 2 * FRAME) // multiple) * multiple)
    start = (low + high - sides) // 2
    return Window(tuple(start.tolist()), tuple(sides.tolist()))


def signed_distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of each voxel to the border of a mask in the unit of `spacing`; negative inside.

    The mask may not be empty.
    """
    outside = distance_transform_edt(~mask, sampling=spacing)
    return outside - distance_transform_edt(mask, sampling=spacing)


def signed_distances(masks: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """What the painter is told of masks `(labels, *spatial)`: signed distances in [-1, 1], 1 where none is near.

    The unit is `FAR` voxels of the finest spacing.
    """
    steps = np.asarray(spacing, float) / min(spacing) / FAR
    distances = np.ones(masks.shape, np.float32)
    for distance, mask in zip(distances, masks, strict=True):
        if mask.all():
            distance[:] = -1
        elif mask.any():
            distance[:] = np.clip(signed_distance(mask, steps.tolist()), -1, 1)
    return distances


def hole_around(mask: np.ndarray, border: float, spacing: Sequence[float]) -> np.ndarray:
    """The voxels of a mask and those within `border` voxels of the finest spacing around it."""
    if not mask.any():
        return np.zeros(mask.shape, bool)
    return distance_transform_edt(~mask, sampling=np.asarray(spacing, float) / min(spacing)) <= border
