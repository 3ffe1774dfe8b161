"""Averaged weights, which both stages of latent diffusion keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ..runtime.errors import InputError


class WeightAverage(AveragedModel):
    """Exponential moving average of a module's weights, with a warm-up.

    After n steps the decay is min(`decay`, (1 + n) / (10 + n)), so that a short training forgets its start.
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay {decay}", "a number in [0, 1)", "set ema_decay; 0.999 is usual")

        def average(averaged: Any, current: Any, count: Tensor | int) -> None:
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

        super().__init__(model, multi_avg_fn=torch.no_grad()(average))
