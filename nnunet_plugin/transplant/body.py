"""Where the body is in an image, how deep a place lies in it, and what a relative place in it means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

OUTSIDE = -1  # nnU-Net's label of voxels outside its nonzero mask
LEVEL = 0.25  # of the way from the darkest voxel to the median of the bright ones
STEPS = 2  # voxels by which gaps are closed and threads are cut


def body_mask(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the body as bool `(*spatial)`, of an image `(channels, *spatial)` with two or three spatial axes.

    Voxels labelled -1 are outside. Of the others those count that are brighter in some channel than a quarter of the
    way from its darkest voxel to the median of its bright ones (by Otsu's threshold, lesions left out); closed,
    filled, opened, the largest part: plane by plane along the first axis of a volume, because bodies are open where the
    image ends.
    """
    tissue = labels == 0 if (labels == 0).any() else labels != OUTSIDE
    bright = np.zeros(labels.shape, bool)
    for channel in image:
        values = channel[tissue]
        low, high = values.min(), np.percentile(values, 95)
        if low < high:
            median = np.median(values[values > threshold_otsu(np.minimum(values, high))])
            bright |= channel > low + LEVEL * (median - low)
    bright &= labels != OUTSIDE
    planes = bright if bright.ndim == 3 else bright[None]
    body = np.stack([_fill(plane) for plane in planes])
    return body.reshape(bright.shape)


def _fill(plane: np.ndarray) -> np.ndarray:
    # A frame, repeated outwards: closing and opening would gnaw at a body that the image cuts off.
    frame = 2 * STEPS
    bright = np.pad(plane, frame, mode="edge")
    # Filled before it is opened: the scalp is a thin ring around the dark skull, and part of the head.
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(bright, iterations=STEPS))
    opened = ndimage.binary_opening(filled, iterations=STEPS)[frame:-frame, frame:-frame]
    parts, count = ndimage.label(opened)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count > 1 else opened


def depth_in(body: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the distance of each voxel to the edge of the body in mm (float32, 0 outside).

    The border of the image is no edge: nobody ends where the image does. Where all is body, as in a crop around an
    organ, every voxel is as deep as the image is long.
    """
    if body.all():
        return np.full(body.shape, np.linalg.norm(np.multiply(body.shape, spacing)), np.float32)
    return ndimage.distance_transform_edt(body, sampling=spacing).astype(np.float32)


def plane_boxes(body: np.ndarray) -> np.ndarray:
    """Return `(planes, 2, 2)`: the first and last row and column of the body in each plane of `(planes, rows, cols)`.

    A plane without body has the box of the nearest one with it.
    """
    boxes = np.zeros((len(body), 2, 2), np.float32)
    for plane, inside in enumerate(body):
        for axis in range(2):
            where = np.flatnonzero(inside.any(axis=1 - axis))
            if len(where):
                boxes[plane, :, axis] = where[0], where[-1]
    filled = np.flatnonzero(body.any(axis=(1, 2)))
    if not len(filled):
        boxes[:, 1] = np.array(body.shape[1:]) - 1
        return boxes
    nearest = filled[np.abs(np.arange(len(body))[:, None] - filled).argmin(axis=1)]
    return boxes[nearest]


def plane_range(body: np.ndarray) -> tuple[float, float]:
    """Return the first and last plane with body, of `(planes, rows, cols)`."""
    filled = np.flatnonzero(body.any(axis=(1, 2)))
    return (float(filled[0]), float(filled[-1])) if len(filled) else (0.0, float(len(body) - 1))
