"""Tumours of one patient pasted into another: the baseline that costs no training, and that generators must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..data.holes import signed_distance

Box = tuple[slice, ...]  # a part of a grid


def draw_margin(distance: np.ndarray, rng: np.random.Generator) -> float:
    """How far around (positive) or into (negative) the tumour the carved region goes.

    With r the largest distance inside the tumour: half of the draws are uniform over (-r/2, 0), half over (0, r)
    (CarveMix, Zhang et al. 2021, eq. 5).
    """
    radius = -float(distance.min())
    part = rng.uniform(-1, 1)
    return part * radius / 2 if part < 0 else part * radius


def paste(
    recipient: torch.Tensor,
    donor: torch.Tensor,
    num_image_channels: int,
    margin: float,
    spacing: Sequence[float],
    boxes: tuple[Box, Box] | None = None,
) -> torch.Tensor:
    """`recipient` with the region of `donor` that lies within `margin` of its tumour, image and mask together.

    CarveMix (Zhang et al. 2021, eq. 2 and 3); the place stays, as in cut-and-paste of Dwibedi et al. (2017) without a
    new position; between images of different sizes it is the relative one, inside the recipient's image and without the
    donor's padding. A recipient's own tumour stays where nothing is pasted.

    Args:
        recipient, donor: `(channels + labels, *spatial_size)`; the donor holds foreground.
        num_image_channels: how many of the channels are images.
        margin: in the unit of `spacing`; negative: the inner part of the tumour alone.
        spacing: of the voxels along `spatial_size`.
        boxes: which part of the grid the donor's image fills, and which the recipient's; None: all of it.
    """
    foreground = (donor[num_image_channels:] >= 0.5).any(dim=0).numpy()
    region = torch.from_numpy(signed_distance(foreground, spacing) <= margin)
    if boxes is not None and boxes[0] != boxes[1]:
        shift, within = _like_place(foreground, *boxes)
        axes = list(range(-len(shift), 0))
        donor, moved = donor.roll(shift, axes), region.roll(shift, axes)
        region = torch.zeros_like(region)
        region[within] = moved[within]
    return torch.where(region, donor, recipient)


def _like_place(foreground: np.ndarray, donor: Box, recipient: Box) -> tuple[list[int], Box]:
    """Voxels that a tumour moves by to the same relative place in the recipient's box, and where both images are then.

    It moves on into that box; the middle of one that is larger comes to its middle.
    """
    shift, within = [], []
    for axis, (own, other) in enumerate(zip(donor, recipient, strict=True)):
        places = np.flatnonzero(foreground.any(axis=tuple(i for i in range(foreground.ndim) if i != axis)))
        low, high = int(places[0]), int(places[-1]) + 1
        relative = ((low + high) / 2 - own.start) / (own.stop - own.start)
        wanted = round(other.start + relative * (other.stop - other.start) - (low + high) / 2)
        first, last = sorted((other.start - low, other.stop - high))
        fits = high - low <= other.stop - other.start
        shift.append(min(max(wanted, first), last) if fits else (first + last) // 2)
        within.append(slice(max(other.start, own.start + shift[-1]), min(other.stop, own.stop + shift[-1])))
    return shift, tuple(within)
