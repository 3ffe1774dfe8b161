"""Lesions of a case: connected parts of its lesion labels, cut out with a margin and described by what is around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .anatomy import UNKNOWN, Anatomy

BORDER = (2.0, 5.0)  # widths of a transplant's soft border, in voxels of the finest spacing
RING = (1.0, 6.0)  # from and to this distance around a lesion, in voxels of the coarse grid
TAILS = (0.1, 0.5, 0.9)  # quantiles that describe a ring
LEAST_VALUES = 5  # voxels whose quantiles say something
MARGIN = 10  # voxels around a lesion that are kept for its soft border
LEAST_VOXELS = {2: 15, 3: 30}


@dataclass(frozen=True)
class Surroundings:
    """What is around a lesion, in units of the body's anatomy: mean, standard deviation, quantiles of each channel."""

    mean: np.ndarray  # (channels,)
    deviation: np.ndarray  # (channels,)
    tails: np.ndarray  # (channels, 3)


@dataclass(frozen=True)
class Lesion:
    """A lesion with its margin.

    `distance` `(*spatial)` from its surface in mm, negative inside; `labels`, outside it those of its nearest voxel,
    and negative where nothing is of use for its soft border: beyond the image, other lesions, all that is not its host;
    `centre` in voxels of the cut; `extent` in mm.

    `place` is relative to the body (see `Anatomy`), `height` that of its plane in 2D; `depth` the least distance of
    the lesion to the body's edge in mm, `host` the label of the tissue around it, and
    `tissue` how much of its ring is such.
    """

    case: int
    image: np.ndarray
    distance: np.ndarray
    labels: np.ndarray
    spacing: np.ndarray
    centre: np.ndarray
    extent: np.ndarray
    diameter: float
    place: np.ndarray
    height: float
    depth: float
    tissue: float
    host: int
    around: Surroundings


def describe(values: np.ndarray) -> Surroundings:
    """Describe the surroundings by their values `(channels, voxels)`."""
    ranks = [min(int(tail * values.shape[1]), values.shape[1] - 1) for tail in TAILS]
    values = np.sort(values.astype(np.float32), axis=1)
    return Surroundings(values.mean(axis=1), values.std(axis=1), values[:, ranks])


def rings_around(mask: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels that a soft border around a mask may reach, and those of its ring: up to 5, and from 1 to 6.

    Distances are in voxels of the finest spacing.
    """
    distance = ndimage.distance_transform_edt(~mask, sampling=spacing / spacing.min())
    return (distance > 0) & (distance <= BORDER[1]), (distance > RING[0]) & (distance <= RING[1])


def lesions_of(
    case: int,
    image: np.ndarray,
    labels: np.ndarray,
    spacing: Sequence[float],
    anatomy: Anatomy,
    lesion_labels: Sequence[int],
) -> Iterator[Lesion]:
    """Yield the lesions of an image `(channels, *spatial)` in the space of its anatomy, volume or plane.

    Those that touch what is unknown are left out: nobody says where they end.
    """
    ndim = labels.ndim
    touching = ndimage.generate_binary_structure(ndim, ndim)
    found, _ = ndimage.label(np.isin(labels, lesion_labels), touching)
    margin = np.ceil(MARGIN * min(spacing) / np.asarray(spacing)).astype(int)
    for number, box in enumerate(ndimage.find_objects(found), start=1):
        around = [slice(part.start - more, part.stop + more) for part, more in zip(box, margin, strict=True)]
        cut, beyond = within(around, labels.shape)
        mask = found[cut] == number
        if mask.sum() < LEAST_VOXELS[ndim]:
            continue
        unknown = labels[cut] == UNKNOWN
        if unknown.any() and (ndimage.binary_dilation(mask, touching) & unknown).any():
            continue
        lesion = _describe(case, image, labels, np.asarray(spacing, float), anatomy, lesion_labels, cut, beyond, mask)
        if lesion is not None:
            yield lesion


def _describe(
    case: int,
    image: np.ndarray,
    labels: np.ndarray,
    spacing: np.ndarray,
    anatomy: Anatomy,
    lesion_labels: Sequence[int],
    cut: tuple[slice, ...],
    beyond: list[tuple[int, int]],
    mask: np.ndarray,
) -> Lesion | None:
    """Return the lesion `mask` of a cut of an image, with a margin even `beyond` it; `None` where no tissue is."""
    start = np.array([part.start for part in cut])
    voxels = np.argwhere(mask)
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    centre = (low + high) / 2
    coarse = coarse_mask(mask, start, anatomy.stride, anatomy.labels.shape)
    # Beyond the image's border as well, where none of the ring is tissue.
    width = np.ceil(RING[1] * anatomy.spacing.min() / anatomy.spacing).astype(int)
    around = [slice(w.min() - n, w.max() + n + 1) for w, n in zip(np.nonzero(coarse), width, strict=True)]
    near, outer = within(around, coarse.shape)
    _, whole = rings_around(np.pad(coarse[near], outer), anatomy.spacing)
    ring = whole[tuple(slice(n, n + size) for (n, _), size in zip(outer, coarse[near].shape, strict=True))]
    tissue = anatomy.labels[near]
    ring = ring & ~np.isin(tissue, lesion_labels) & (tissue >= 0) & (anatomy.depth[near] > 0)
    host = int(np.bincount(tissue[ring], minlength=1).argmax())
    ring &= tissue == host
    if np.count_nonzero(ring) < LEAST_VALUES:
        return None
    distance, own = surface(np.pad(mask, beyond), np.pad(labels[cut], beyond, mode="edge"), spacing)
    of_use = np.pad(mask | (labels[cut] == host), beyond)
    return Lesion(
        case,
        np.pad(image[(slice(None), *cut)], [(0, 0), *beyond], mode="edge"),
        distance,
        np.where(of_use, own, -own),
        spacing,
        centre + [more for more, _ in beyond],
        ((high - low) / 2 + 0.5) * spacing,
        diameter(len(voxels) * float(np.prod(spacing)), mask.ndim),
        anatomy.relative((start + centre) / anatomy.stride),
        anatomy.height,
        float(anatomy.depth[coarse].min()),
        float(np.count_nonzero(ring) / np.count_nonzero(whole)),
        host,
        describe(anatomy.image[(slice(None), *near)][:, ring]),
    )


def within(box: Sequence[slice], shape: tuple[int, ...]) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """Return the part of a box that lies in an image, and by how many voxels the box goes beyond it (first, last)."""
    inside = tuple(slice(max(0, part.start), min(size, part.stop)) for part, size in zip(box, shape, strict=True))
    return inside, [(max(0, -part.start), max(0, part.stop - size)) for part, size in zip(box, shape, strict=True)]


def surface(mask: np.ndarray, labels: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from a mask's surface in mm, negative inside, and the labels of its nearest voxels."""
    outside, nearest = ndimage.distance_transform_edt(~mask, sampling=spacing, return_indices=True)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    return (outside - inside).astype(np.float16), labels[tuple(nearest)].astype(np.int16)


def coarse_mask(mask: np.ndarray, start: np.ndarray, stride: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a cut mask on the coarse grid of the whole image; a lesion finer than the grid is one voxel."""
    coarse = np.zeros(shape, bool)
    first = -(-start // stride)
    taken = mask[tuple(slice(f * step - s, None, step) for f, step, s in zip(first, stride, start, strict=True))]
    coarse[tuple(slice(f, f + size) for f, size in zip(first, taken.shape, strict=True))] = taken
    if not taken.any():
        middle = np.round((start + np.argwhere(mask).mean(axis=0)) / stride).astype(int)
        coarse[tuple(np.minimum(middle, np.array(shape) - 1))] = True
    return coarse


def diameter(size: float, ndim: int) -> float:
    """Return the diameter in mm of the disc or ball of this area (mm2) or volume (mm3)."""
    return 2 * (size / np.pi) ** 0.5 if ndim == 2 else 2 * (size * 3 / (4 * np.pi)) ** (1 / 3)
