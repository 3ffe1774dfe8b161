"""Makes the patch of a drawn transplant: the only step that reads images at full resolution."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np

from .bank import Bank, Transplant
from .paste import Patch, cut_start, make_patch


def render(bank: Bank, transplant: Transplant, shape: tuple[int, ...], source: np.ndarray | None = None) -> Patch:
    """Return the patch of a transplant into an image of this spatial shape.

    A decoy takes its tissue from `source`, the image `(channels, *spatial)` of the case (and plane) that it names.
    """
    lesion = bank.lesions[transplant.lesion]
    image = lesion.image
    if transplant.is_decoy:
        assert source is not None and transplant.source_centre is not None
        image, inside = cut_like(source, lesion.labels.shape, cut_start(transplant.source_centre, lesion))
        lesion = replace(lesion, labels=np.where(inside, lesion.labels, -np.abs(lesion.labels)))
    anatomy = bank.anatomies[transplant.case]
    spacing = (anatomy.spacing / anatomy.stride)[-len(shape) :]
    patch = make_patch(
        image,
        lesion,
        transplant.warp,
        transplant.centre,
        spacing,
        shape,
        transplant.gain,
        transplant.offset,
        transplant.floor,
        transplant.border,
    )
    return replace(patch, labels=np.zeros_like(patch.labels)) if transplant.is_decoy else patch


def cut_like(image: np.ndarray, shape: tuple[int, ...], start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the box of an image `(channels, *spatial)` of this shape at a start, and where it is inside.

    Outside the image its edge voxels are repeated.
    """
    asked = [np.arange(size) + first for size, first in zip(shape, start, strict=True)]
    indices = [np.clip(wanted, 0, whole - 1) for wanted, whole in zip(asked, image.shape[1:], strict=True)]
    inside = reduce(np.logical_and.outer, [wanted == i for wanted, i in zip(asked, indices, strict=True)])
    low, high = [i.min() for i in indices], [i.max() + 1 for i in indices]
    box = np.asarray(image[(slice(None), *[slice(a, b) for a, b in zip(low, high, strict=True)])])
    return box[(slice(None), *np.ix_(*[i - a for i, a in zip(indices, low, strict=True)]))], inside
