"""Tumours of one patient pasted into another: the baseline that costs no training, and that generators must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..data.holes import signed_distance


def draw_margin(distance: np.ndarray, rng: np.random.Generator) -> float:
    """How far around (positive) or into (negative) the tumour the carved region goes.

    With r the largest distance inside the tumour: half of the draws are uniform over (-r/2, 0), half over (0, r)
    (CarveMix, Zhang et al. 2021, eq. 5).
    """
    radius = -float(distance.min())
    part = rng.uniform(-1, 1)
    return part * radius / 2 if part < 0 else part * radius


def paste(
    recipient: torch.Tensor, donor: torch.Tensor, num_image_channels: int, margin: float, spacing: Sequence[float]
) -> torch.Tensor:
    """`recipient` with the region of `donor` that lies within `margin` of its tumour, image and mask together.

    CarveMix (Zhang et al. 2021, eq. 2 and 3); the place stays, as in cut-and-paste of Dwibedi et al. (2017) without a
    new position. A recipient's own tumour stays where nothing is pasted.

    Args:
        recipient, donor: `(channels + labels, *spatial_size)`; the donor holds foreground.
        num_image_channels: how many of the channels are images.
        margin: in the unit of `spacing`; negative: the inner part of the tumour alone.
        spacing: of the voxels along `spatial_size`.
    """
    foreground = (donor[num_image_channels:] >= 0.5).any(dim=0).numpy()
    region = torch.from_numpy(signed_distance(foreground, spacing) <= margin)
    return torch.where(region, donor, recipient)
