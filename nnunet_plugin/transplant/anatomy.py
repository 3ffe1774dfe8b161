"""What placing a lesion needs to know of an image, on a coarse grid: tissue, labels, depth, relative places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .body import body_mask, depth_in, plane_boxes, plane_range

MAX_SIZE = {2: 128, 3: 48}  # voxels of the coarse grid along an axis, by dimension
# Label of voxels in which nobody looked for lesions, as nnU-Net's ignore label; -1 is outside (see `body`).
UNKNOWN = -2
LEAST_AREA = 0.3  # of the case's largest cross-section: planes with less body are no place for a lesion


@dataclass(frozen=True)
class Anatomy:
    """A volume, or one plane of it, as lesions are placed in it.

    `image` `(channels, *spatial)` in units of the body (0 its median, 1 its interquartile range, a channel each),
    `labels` and `depth` (mm to the body's edge, 0 outside) `(*spatial)`; every `stride`-th voxel of the case, so
    `spacing` (mm) is that of the coarse grid; a voxel of it is a lesion or unknown where any is of those it stands for.
    `boxes` `(planes, 2, 2)` and `planes` (first, last) say where the body is on it, in voxels; a plane has one box, and
    its relative place `height` along the volume. `median`, `scale` (the units) and `darkest` `(channels,)` are in the
    case's intensities.
    """

    image: np.ndarray
    labels: np.ndarray
    depth: np.ndarray
    spacing: np.ndarray
    stride: np.ndarray
    boxes: np.ndarray
    planes: tuple[float, float]
    median: np.ndarray
    scale: np.ndarray
    darkest: np.ndarray
    height: float = 0.5

    def relative(self, point: np.ndarray) -> np.ndarray:
        """Return a point (coarse voxels) as a place in the body: 0 and 1 are its edges along an axis."""
        box = self.boxes[self._plane(point)]
        inside = (point[-2:] - box[0]) / np.maximum(box[1] - box[0], 1)
        return inside if len(point) == 2 else np.append(self.height_of(point[0]), inside)

    def absolute(self, place: np.ndarray) -> np.ndarray:
        """Return the point (coarse voxels) of a relative place."""
        point = np.array(place, float)
        if len(point) == 3:
            point[0] = self.plane_at(place[0])
        box = self.boxes[self._plane(point)]
        point[-2:] = box[0] + place[-2:] * (box[1] - box[0])
        return point

    def _plane(self, point: np.ndarray) -> int:
        return 0 if len(point) == 2 else int(np.clip(round(point[0]), 0, len(self.boxes) - 1))

    def plane(self, number: int) -> Anatomy:
        """Return one plane of a volume made with `dimension` 2."""
        return Anatomy(
            self.image[:, number],
            self.labels[number],
            self.depth[number],
            self.spacing[1:],
            self.stride[1:],
            self.boxes[number : number + 1],
            self.planes,
            self.median,
            self.scale,
            self.darkest,
            self.height_of(number),
        )

    def height_of(self, plane: float) -> float:
        """Return the relative height of a plane: 0 and 1 are the first and the last with body."""
        first, last = self.planes
        return float((plane - first) / max(last - first, 1))

    def plane_at(self, height: float) -> float:
        """Return the plane at a relative height, between two planes mostly."""
        first, last = self.planes
        return first + height * (last - first)


def read_anatomy(
    image: np.ndarray, labels: np.ndarray, spacing: Sequence[float], dimension: int, lesion_labels: Sequence[int] = ()
) -> Anatomy:
    """Return the anatomy of a volume `(channels, planes, rows, columns)`.

    With `dimension` 2 the planes keep their number and depth is measured in them; single images have one plane.
    """
    stride = np.maximum(1, np.ceil(np.array(labels.shape) / MAX_SIZE[dimension])).astype(int)
    if dimension == 2:
        stride[0] = 1
    every = tuple(slice(None, None, step) for step in stride)
    image, fine, labels = np.array(image[(slice(None), *every)], np.float32), labels, np.array(labels[every], np.int16)
    # A coarse voxel stands for those that are nearest to it, the last for all that are left.
    starts = [np.maximum(np.arange(0, n, step) - step // 2, 0) for n, step in zip(fine.shape, stride, strict=True)]
    for label in (UNKNOWN, *lesion_labels):
        labels[any_of(fine == label, starts)] = label
    coarse = np.asarray(spacing, float) * stride
    body = body_mask(image, labels)
    if not body.any():
        body = labels != -1
    if dimension == 2:
        depth = np.stack([depth_in(plane, coarse[1:]) for plane in body])
    else:
        depth = depth_in(body, coarse)
    quartiles = np.percentile(image[:, body], [25, 50, 75], axis=1).astype(np.float32)
    scale = np.maximum(quartiles[2] - quartiles[0], 1e-3 * (1e-3 + np.ptp(image, axis=(1, 2, 3))))
    channels = (-1, 1, 1, 1)
    return Anatomy(
        ((image - quartiles[1].reshape(channels)) / scale.reshape(channels)).astype(np.float16),
        labels,
        depth.astype(np.float16),
        coarse,
        stride,
        plane_boxes(body),
        plane_range(body),
        quartiles[1],
        scale,
        image.min(axis=(1, 2, 3)),
    )


def any_of(mask: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    """Return whether any of a mask's voxels is set in each block, given by the blocks' first voxels along each axis."""
    for axis, first in enumerate(starts):
        mask = mask if len(first) == mask.shape[axis] else np.logical_or.reduceat(mask, first, axis)
    return mask


class Plane(NamedTuple):
    """A place to look for sites in: a plane of a case (of its coarse grid, in 3D) at a relative height."""

    case: int
    number: int
    height: float


def planes_with_body(case: int, anatomy: Anatomy) -> list[Plane]:
    """Return the planes of a case that show enough of the body."""
    areas = np.count_nonzero(anatomy.depth, axis=(1, 2))
    enough = np.flatnonzero(areas >= max(1, LEAST_AREA * areas.max()))
    return [Plane(case, number, anatomy.height_of(number)) for number in enough.tolist()]
