"""The losses of the least-squares GAN, on scores."""

import torch
from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(on_real: Tensor, on_fake: Tensor, real_label: float = 1.0) -> Tensor:
    """(E[(D(x) - b)^2] + E[D(G(z))^2]) / 2: LSGAN (Mao et al. 2017), eq. 2 with a = 0.

    Args:
        on_real, on_fake: scores, (batch, ...), one a sample or one a patch.
        real_label: b; below 1 it is one-sided label smoothing (Salimans et al. 2016, section 3.4).
    """
    return 0.5 * (_distance(on_real, real_label) + _distance(on_fake, 0))


def generator_loss(on_fake: Tensor, real_label: float = 1.0) -> Tensor:
    """E[(D(G(z)) - c)^2] / 2: LSGAN (Mao et al. 2017), eq. 2, with c = b (their section 3.3), the label of the real.

    Args:
        on_fake: scores, (batch, ...), one a sample or one a patch.
        real_label: c.
    """
    return 0.5 * _distance(on_fake, real_label)


def _distance(scores: Tensor, label: float) -> Tensor:
    """E[(D - label)^2]."""
    return F.mse_loss(scores, torch.full_like(scores, label))
