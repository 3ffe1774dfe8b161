"""What a step of every training scheme ends with: check, differentiate, clip, check, and step."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn

from ..runtime.precision import check_finite
from .parallel import average_gradients


def descend(
    named: dict[str, Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    gradient_clip: float | None = None,
) -> None:
    """One step of an optimiser on the first of the named scalars; its gradient is averaged over all processes.

    Args:
        named: what must be finite, the loss first.
        network: whose gradients are averaged, clipped, and stepped along.
        optimizer: of its parameters.
        step: for the message.
        gradient_clip: largest norm of the gradient, or None.

    Raises:
        TrainingDiverged: one of the scalars or the gradient is not finite; the weights are as they were.
    """
    check_finite(named, step)
    name, loss = next(iter(named.items()))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(network)
    largest = float("inf") if gradient_clip is None else gradient_clip
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), largest)
    check_finite({f"gradient of {name}": norm}, step)
    optimizer.step()


def optimizer_of(
    network: nn.Module | None, device: torch.device | str, kind: str = "AdamW", **options: Any
) -> torch.optim.Optimizer | None:
    """Optimiser `torch.optim.KIND` of a network, which is brought to its device first; None of none."""
    if network is None:
        return None
    return getattr(torch.optim, kind)(network.to(device).parameters(), **options)


def images(batch: dict[str, Any], device: torch.device) -> Tensor:
    """`batch["image"]` as a plain tensor where the network lies."""
    x = batch[Keys.IMAGE].to(device)
    return x.as_tensor() if hasattr(x, "as_tensor") else x
