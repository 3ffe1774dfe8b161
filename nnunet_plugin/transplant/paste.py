"""The paste itself: a warped lesion in another image, harmonised, with a soft border."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .lesions import Lesion
from .warp import Warp, interpolated

STEP = 3
GAIN = (0.6, 1.6)
REACH = 2  # voxels beyond the next that splines see a hundredth of
TRACE = 1e-3  # of what useless voxels reach, in an interpolated value, which makes it useless


@dataclass(frozen=True)
class Patch:
    """What is written into an image, in a box of it that starts at voxel `start`.

    `image` `(channels, *box)`, `labels` `(*box)` with 0 where nothing is labelled, `alpha` `(*box)` in [0, 1]:
    1 where something is, soft around it, and 0 where the source shows what nobody labelled there (see `Lesion`).
    """

    start: np.ndarray
    image: np.ndarray
    labels: np.ndarray
    alpha: np.ndarray


def harmonise(
    old_mean: np.ndarray, old_deviation: np.ndarray, new_mean: np.ndarray, new_deviation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return gain and offset (a channel each) that give the ring around a lesion the look of the new surroundings."""
    gain = np.clip((new_deviation + 1e-6) / (old_deviation + 1e-6), *GAIN)
    return gain, new_mean - gain * old_mean


def box_around(centre: np.ndarray, reach: np.ndarray, spacing: np.ndarray, shape: tuple[int, ...]) -> list[slice]:
    """Return the box of an image that lies within `reach` mm of a centre (voxels) along each axis."""
    low = np.floor(centre - reach / spacing).astype(int)
    high = np.ceil(centre + reach / spacing).astype(int) + 1
    return [slice(max(0, a), max(0, min(size, b))) for a, b, size in zip(low, high, shape, strict=True)]


def make_patch(
    image: np.ndarray,
    lesion: Lesion,
    warp: Warp,
    centre: np.ndarray,
    spacing: np.ndarray,
    shape: tuple[int, ...],
    gain: np.ndarray,
    offset: np.ndarray,
    floor: np.ndarray,
    border: float,
) -> Patch:
    """Warp a lesion's cut to a new centre in an image of this shape and spacing, in the image's intensities.

    Args:
        image: `(channels, *cut)`: the lesion's own, or other tissue for its shape.
        lesion: gives shape and labels.
        warp: of the lesion.
        centre: in voxels of the new image.
        spacing: in mm, of the new image.
        shape: of the new image.
        gain, offset: bring intensities of `image` to those of the new image, a channel each.
        floor: nothing is darker, a channel each.
        border: width of the soft border outside the lesion, in voxels of the finest new spacing.
    """
    width = border * spacing.min()
    box = box_around(centre, warp.new_extent(lesion.extent) + width, spacing, shape)
    axes = [(np.arange(part.start, part.stop) - at) * step for part, at, step in zip(box, centre, spacing, strict=True)]
    # The distance grows with the scale; the free-form deformation changes it by little.
    distance = lesion.distance.astype(np.float32) * warp.scale
    close, low = _near(distance, lesion, warp, axes, width + 2 * (STEP // 2) * np.linalg.norm(spacing))
    axes = [axis[first : first + size] for axis, first, size in zip(axes, low, close.shape, strict=True)]
    near = np.flatnonzero(close)
    points = in_voxels(warp.old_offsets(axes), lesion).reshape(len(axes), -1).take(near, axis=1)
    away = ndimage.map_coordinates(distance, points, order=1, mode="nearest")
    # Whether the mask covers a point by half is a question only at its surface; distances go from voxel to voxel by two
    # voxels at most (from inside to outside), and by one elsewhere.
    inside = away < 0
    surface = np.flatnonzero(np.abs(away) < 2 * warp.scale * np.linalg.norm(lesion.spacing))
    inside[surface] = covered(lesion, points.take(surface, axis=1))
    away[inside] = 0
    touched = np.flatnonzero(away < width)
    near, points, inside = near[touched], points.take(touched, axis=1), np.flatnonzero(inside[touched])
    soft = np.clip(1 - away[touched] / width, 0, 1)
    if (useless := lesion.labels < 0).any():
        reached = ndimage.binary_dilation(useless, iterations=REACH).astype(np.float32)
        seen = ndimage.map_coordinates(reached, points, order=1, mode="nearest") < TRACE
        seen[inside] = True
        soft *= seen
    alpha, labels = np.zeros(close.size, np.float32), np.zeros(close.size, lesion.labels.dtype)
    alpha[near] = soft * soft * (3 - 2 * soft)
    nearest = [
        np.rint(axis).astype(int).clip(0, size - 1)
        for axis, size in zip(points.take(inside, axis=1), lesion.labels.shape, strict=True)
    ]
    labels[near[inside]] = np.abs(lesion.labels[tuple(nearest)])
    warped = np.zeros((len(image), close.size), np.float32)
    for channel, of in enumerate(image):
        values = interpolated(of, points)
        warped[channel, near] = np.maximum(values * gain[channel] + offset[channel], floor[channel])
    start = np.array([part.start for part in box]) + low
    return Patch(start, *(array.reshape(*array.shape[:-1], *close.shape) for array in (warped, labels, alpha)))


def covered(lesion: Lesion, points: np.ndarray) -> np.ndarray:
    """Return which points `(ndim, *grid)` of a lesion's cut, in voxels, lie in the lesion: by half or more."""
    mask = (lesion.distance < 0).astype(np.float32)
    return ndimage.map_coordinates(mask, points, order=1, mode="constant") >= 0.5


def _near(
    distance: np.ndarray, lesion: Lesion, warp: Warp, axes: list[np.ndarray], reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return which points of a grid, given by its axes' offsets, may lie within `reach` mm: a box of it, and its start.

    Judged by the middles of blocks of `STEP` points along each axis, since most of a volume's grid is farther away, and
    to look at every point is what takes time. `reach` has to leave room for the step to a block's other points.
    """
    middles = [axis[np.minimum(np.arange(0, len(axis), STEP) + STEP // 2, len(axis) - 1)] for axis in axes]
    points = in_voxels(warp.old_offsets(middles), lesion)
    close = ndimage.map_coordinates(distance, points, order=1, mode="nearest") < reach
    low = np.zeros(len(axes), int)
    for axis, offsets in enumerate(axes):
        blocks = np.flatnonzero(close.any(axis=tuple(other for other in range(len(axes)) if other != axis)))
        first, last = blocks[[0, -1]] if len(blocks) else (0, 0)
        low[axis] = STEP * first
        close = close.take(np.arange(low[axis], min(STEP * (last + 1), len(offsets))) // STEP, axis=axis)
    return close, low


def in_voxels(offsets: np.ndarray, lesion: Lesion) -> np.ndarray:
    """Turn offsets from a lesion's centre in mm into places in its cut, in voxels; in place."""
    for axis in range(len(offsets)):
        offsets[axis] /= lesion.spacing[axis]
        offsets[axis] += lesion.centre[axis]
    return offsets


def cut_start(centre: np.ndarray, lesion: Lesion) -> np.ndarray:
    """Return the first voxel of the box like a lesion's cut around a centre (voxels) in another image."""
    return np.floor(centre - lesion.centre + 0.5).astype(int)


def blend(image: np.ndarray, patch: Patch, start: np.ndarray) -> np.ndarray:
    """Return a region `(channels, *region)` of the image that starts at voxel `start`, with the patch in it."""
    if (common := _overlap(image.shape[1:], patch, start)) is None:
        return image
    here, there = common
    image = image.copy()
    old = image[(slice(None), *here)]
    image[(slice(None), *here)] = old + patch.alpha[there] * (patch.image[(slice(None), *there)] - old)
    return image


def relabel(labels: np.ndarray, patch: Patch, start: np.ndarray) -> np.ndarray:
    """Return a region `(*region)` of the label map that starts at voxel `start`, with the patch's labels in it."""
    if (common := _overlap(labels.shape, patch, start)) is None:
        return labels
    here, there = common
    labels = labels.copy()
    new = patch.labels[there]
    labels[here] = np.where(new > 0, new, labels[here])
    return labels


def _overlap(
    shape: tuple[int, ...], patch: Patch, start: np.ndarray
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return the common part of a region and a patch, as slices of either, or `None`."""
    low = np.maximum(start, patch.start)
    high = np.minimum(start + np.array(shape), patch.start + np.array(patch.labels.shape))
    if (low >= high).any():
        return None
    return (
        tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True)),
        tuple(slice(a, b) for a, b in zip(low - patch.start, high - patch.start, strict=True)),
    )
