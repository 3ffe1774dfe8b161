"""Objective of the autoencoders of image and mask channels that latent diffusion works on."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..runtime.ranks import total_over_ranks

# Of the image's term: absolute differences of some 0.02 stand beside a Dice loss, and details of the image are lost
# without it.
IMAGE_WEIGHT = 10.0
SMOOTH = 1e-2  # voxels that the Dice loss of empty masks divides by


class AutoencoderTerms(NamedTuple):
    """Scalars, means over the batch. `loss` is `IMAGE_WEIGHT * image + mask + kl_weight * kl`."""

    loss: Tensor
    image: Tensor  # mean absolute difference of the image channels
    mask: Tensor  # mean cross-entropy of the mask channels + their soft Dice loss
    kl: Tensor  # KL(q(z | x) || N(0, I)) in nats per sample


def autoencoder_objective(
    logits: Tensor, x: Tensor, mean: Tensor, std: Tensor, num_image_channels: int, kl_weight: float = 1e-6,
    shared: bool = False,
) -> AutoencoderTerms:  # fmt: skip
    """Reconstruction of image and mask, and a slight pull of the latents to the prior (LDM, Rombach et al. 2022).

    Args:
        logits: of the decoder, (batch, channels + labels, *spatial_size); the image is their sigmoid, too.
        x: the input in [0, 1], of the same shape.
        mean, std: of q(z | x), (batch, *latent_shape), std > 0.
        num_image_channels: how many of the channels are image.
        kl_weight: 1e-6 in the authors' code of SBLDM.
        shared: the other processes of a `torchrun` hold the rest of the batch, which the Dice loss is then of.
    """
    logits, mean, std = logits.float(), mean.float(), std.float()
    image = (torch.sigmoid(logits[:, :num_image_channels]) - x[:, :num_image_channels]).abs().mean()
    masks = logits[:, num_image_channels:], x[:, num_image_channels:]
    mask = F.binary_cross_entropy_with_logits(*masks) + _dice(*masks, shared)
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1).mean()
    return AutoencoderTerms(IMAGE_WEIGHT * image + mask + kl_weight * kl, image, mask, kl)


def _dice(logits: Tensor, masks: Tensor, shared: bool) -> Tensor:
    """Over the whole batch: a slice without mask alone would ask for no false positive with all its weight."""
    probabilities, axes = torch.sigmoid(logits), [0, *range(2, logits.ndim)]
    sums = torch.stack([(probabilities * masks).sum(axes), (probabilities + masks).sum(axes)])
    overlap, size = total_over_ranks(sums) if shared else sums
    return (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean()
