"""Makes the patch of a drawn transplant: the only step that reads images at full resolution."""

from __future__ import annotations

from dataclasses import replace

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
        image = cut_like(source, lesion.labels.shape, cut_start(transplant.source_centre, lesion))
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


def cut_like(image: np.ndarray, shape: tuple[int, ...], start: np.ndarray) -> np.ndarray:
    """Return the box of an image `(channels, *spatial)` of this shape at a start, its edge voxels repeated outside."""
    indices = [
        np.clip(np.arange(size) + first, 0, whole - 1)
        for size, first, whole in zip(shape, start, image.shape[1:], strict=True)
    ]
    low, high = [i.min() for i in indices], [i.max() + 1 for i in indices]
    box = np.asarray(image[(slice(None), *[slice(a, b) for a, b in zip(low, high, strict=True)])])
    return box[(slice(None), *np.ix_(*[i - a for i, a in zip(indices, low, strict=True)]))]
