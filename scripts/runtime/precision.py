"""What the steps of all training schemes share: the type to compute in, and the stop where a number breaks."""

from __future__ import annotations

import torch

from nnunet_plugin.precision import autocast_dtype

__all__ = ["TrainingDiverged", "autocast_dtype", "check_finite"]


class TrainingDiverged(RuntimeError):
    """A loss or a gradient is no longer finite; names the step and the term."""


def check_finite(named: dict[str, torch.Tensor], step: int) -> None:
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
            f"step {step}: {', '.join(broken)} is not finite ({values}). Nothing was saved of this epoch. "
            "Train anew, in another bundle_root, with settings that make smaller steps: a lower learning_rate, "
            "gradient_clip, or initial_step_size in the HVAE family."
        )
