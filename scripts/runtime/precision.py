"""What the steps of all training schemes share: the type to compute in, and the stop where a number breaks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nnunet_plugin.precision import autocast_dtype

from .errors import InputError

__all__ = ["TrainingDiverged", "autocast_dtype", "casting", "check_finite"]


def casting(device: torch.device | str, dtype: torch.dtype | None) -> torch.autocast:
    """Context that computes in `dtype`, or as it stands with None."""
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None)


class TrainingDiverged(InputError):
    """A loss or a gradient is no longer finite; names the step and the term."""


def check_finite(named: Mapping[str, torch.Tensor], step: int) -> None:
    """Stop before a broken number reaches the weights.

    Args:
        named: scalars of this step by name, such as losses and norms of gradients.
        step: for the message.

    Raises:
        TrainingDiverged: one of them is NaN or infinite.
    """
    broken = [name for name, value in named.items() if not torch.isfinite(value)]
    if broken:
        values = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in named.items())
        raise TrainingDiverged(
            f"step {step}: {', '.join(broken)} is not finite ({values}); nothing was saved of this epoch",
            "finite losses and gradients: the training has diverged",
            "train anew, in another bundle_root, with a lower learning_rate (smaller steps also come of gradient_clip, "
            "and of initial_step_size in the HVAE family)",
        )
