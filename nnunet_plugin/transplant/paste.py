"""The paste itself: a warped lesion in another image, harmonised, with a soft border."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .warp import Warp

BORDER = (2.0, 5.0)  # voxels of the finest spacing
GAIN = (0.6, 1.6)


@dataclass(frozen=True)
class Patch:
    """What is written into an image, in a box of it that starts at voxel `start`.

    `image` `(channels, *box)`, `labels` `(*box)` with 0 where nothing is labelled, `alpha` `(*box)` in [0, 1].
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


def warp_labels(labels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return labels at points `(ndim, *grid)` in voxels: the likeliest where foreground is."""
    present = np.unique(labels[labels > 0])
    chances = [
        ndimage.map_coordinates((labels == label).astype(np.float32), points, order=1, mode="constant")
        for label in present
    ]
    if len(present) == 1:
        return np.where(chances[0] >= 0.5, present[0], 0).astype(labels.dtype)
    stack = np.stack(chances)
    return np.where(stack.sum(axis=0) >= 0.5, present[stack.argmax(axis=0)], 0).astype(labels.dtype)


def box_around(centre: np.ndarray, reach: np.ndarray, spacing: np.ndarray, shape: tuple[int, ...]) -> list[slice]:
    """Return the box of an image that lies within `reach` mm of a centre (voxels) along each axis."""
    low = np.floor(centre - reach / spacing).astype(int)
    high = np.ceil(centre + reach / spacing).astype(int) + 1
    return [slice(max(0, a), max(0, min(size, b))) for a, b, size in zip(low, high, shape, strict=True)]


def make_patch(
    image: np.ndarray,
    labels: np.ndarray,
    old_centre: np.ndarray,
    old_spacing: np.ndarray,
    extent: np.ndarray,
    warp: Warp,
    new_centre: np.ndarray,
    new_spacing: np.ndarray,
    shape: tuple[int, ...],
    gain: np.ndarray,
    offset: np.ndarray,
    floor: np.ndarray,
    border: float,
) -> Patch:
    """Warp a lesion (`image` `(channels, *cut)`, `labels` `(*cut)`) to a new centre, in the image's intensities.

    Nothing is darker than `floor`, a channel each. `border` is the width of the soft border outside the lesion, in
    voxels of the finest new spacing; the box holds all that changes.
    """
    width = border * new_spacing.min()
    box = box_around(new_centre, warp.new_extent(extent) + width, new_spacing, shape)
    axes = [
        (np.arange(part.start, part.stop) - centre) * step
        for part, centre, step in zip(box, new_centre, new_spacing, strict=True)
    ]
    points = warp.old_offsets(axes)
    for axis in range(len(points)):
        points[axis] /= old_spacing[axis]
        points[axis] += old_centre[axis]
    new_labels = warp_labels(labels, points)
    warped = np.empty((len(image), *new_labels.shape), np.float32)
    for channel in range(len(image)):
        ndimage.map_coordinates(image[channel], points, output=warped[channel], order=1, mode="nearest")
        warped[channel] *= gain[channel]
        warped[channel] += offset[channel]
        np.maximum(warped[channel], floor[channel], out=warped[channel])
    distance = ndimage.distance_transform_edt(new_labels == 0, sampling=new_spacing) if new_labels.any() else np.inf
    soft = np.clip(1 - distance / width, 0, 1) * np.ones(new_labels.shape)
    alpha = (soft * soft * (3 - 2 * soft)).astype(np.float32)
    return Patch(np.array([part.start for part in box]), warped, new_labels, alpha)


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
