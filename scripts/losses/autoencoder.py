"""Objective of the autoencoders of image and mask channels that latent diffusion works on."""

from typing import NamedTuple

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

# Of the image's term: absolute differences of some 0.02 stand beside a Dice loss, and details of the image are lost
# without it.
IMAGE_WEIGHT = 10.0

# Over the whole batch: a slice without mask alone would ask for no false positive with all its weight.
_dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-2, smooth_dr=1e-2)


class AutoencoderTerms(NamedTuple):
    """Scalars, means over the batch. `loss` is `IMAGE_WEIGHT * image + mask + kl_weight * kl`."""

    loss: Tensor
    image: Tensor  # mean absolute difference of the image channels
    mask: Tensor  # mean cross-entropy of the mask channels + their soft Dice loss
    kl: Tensor  # KL(q(z | x) || N(0, I)) in nats per sample


def autoencoder_objective(
    logits: Tensor, x: Tensor, mean: Tensor, std: Tensor, num_image_channels: int, kl_weight: float = 1e-6
) -> AutoencoderTerms:
    """Reconstruction of image and mask, and a slight pull of the latents to the prior (LDM, Rombach et al. 2022).

    Args:
        logits: of the decoder, (batch, channels + labels, *spatial_size); the image is their sigmoid, too.
        x: the input in [0, 1], of the same shape.
        mean, std: of q(z | x), (batch, *latent_shape), std > 0.
        num_image_channels: how many of the channels are image.
        kl_weight: 1e-6 in the authors' code of SBLDM.
    """
    logits, mean, std = logits.float(), mean.float(), std.float()
    image = (torch.sigmoid(logits[:, :num_image_channels]) - x[:, :num_image_channels]).abs().mean()
    masks = logits[:, num_image_channels:], x[:, num_image_channels:]
    mask = F.binary_cross_entropy_with_logits(*masks) + _dice(*masks)
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).flatten(1).sum(1).mean()
    return AutoencoderTerms(IMAGE_WEIGHT * image + mask + kl_weight * kl, image, mask, kl)
