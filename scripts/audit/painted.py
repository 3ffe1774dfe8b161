"""Of pools of real anatomy, what was painted: all else is a patient's own, and always a copy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .items import AuditData, Items

AROUND = 3.5  # pixels around a real lesion that are compared: as far as holes reach on average
LEAST = 16  # pixels of a side


def painted_alone(audit: AuditData) -> AuditData:
    """The same data, of which each item shows its painted box alone, and a real one that of its largest lesion.

    Boxes lie in the middle of windows that have room for most of them, and nothing is left around them.
    """
    assert audit.painted is not None
    boxes = [[_box(mask) for mask in audit.painted], [_box(_around_largest(mask)) for mask in audit.real.foreground]]
    sides = np.array([[part.stop - part.start for part in box] for group in boxes for box in group])
    window = np.maximum(np.percentile(sides, 95, axis=0).astype(int), LEAST).tolist()
    return replace(audit, samples=_cut(audit.samples, boxes[0], window), real=_cut(audit.real, boxes[1], window))


def _around_largest(mask: Tensor) -> Tensor:
    parts, count = ndimage.label(mask.numpy(), np.ones([3] * mask.ndim))
    if not count:
        return mask
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return torch.from_numpy(ndimage.distance_transform_edt(~largest) <= AROUND)


def _box(mask: Tensor) -> tuple[slice, ...]:
    places = np.argwhere(mask.numpy())
    if not len(places):
        return tuple(slice(0, 1) for _ in mask.shape)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(places.min(axis=0), places.max(axis=0), strict=True))


def _cut(items: Items, boxes: list[tuple[slice, ...]], window: list[int]) -> Items:
    images = torch.zeros((len(items), items.images.shape[1], *window), dtype=items.images.dtype)
    masks = torch.zeros((len(items), items.masks.shape[1], *window), dtype=torch.bool)
    for index, box in enumerate(boxes):
        # The middle of what is larger than the window.
        kept = [min(part.stop - part.start, side) for part, side in zip(box, window, strict=True)]
        here = [part.start + (part.stop - part.start - n) // 2 for part, n in zip(box, kept, strict=True)]
        there = [(side - n) // 2 for n, side in zip(kept, window, strict=True)]
        source = (slice(None), *[slice(start, start + n) for start, n in zip(here, kept, strict=True)])
        target = (slice(None), *[slice(start, start + n) for start, n in zip(there, kept, strict=True)])
        images[index][target] = items.images[index][source]
        masks[index][target] = items.masks[index][source]
    return Items(images, masks, items.groups, items.names)
