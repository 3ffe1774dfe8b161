"""Generator and discriminator of the least-squares GAN: slices or volumes of image and mask channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normalise_spectrally

from ..runtime.errors import InputError
from .whole import whole_weights

GROUP = 8  # feature channels that are normalised together


class Generator(nn.Module):
    """DCGAN (Radford et al. 2015) for image and mask channels: noise, a small grid, doublings, a sigmoid.

    Two things are not DCGAN's. A doubling is linear interpolation and a convolution, because transposed
    convolutions leave checkerboards (Odena et al. 2016, "Deconvolution and checkerboard artifacts"). And group
    normalisation stands for batch normalisation: a sample does not depend on the batch that it is drawn in, and
    training and sampling compute the same.

    Args:
        num_channels: image channels + mask channels.
        spatial_size: (height, width) or (height, width, depth), multiples of ``2 ** (len(channels) - 1)``.
        channels: feature channels at each resolution, from the smallest grid to `spatial_size`; multiples of 8.
        latent_size: numbers in the noise vector.

    Raises:
        InputError: a size or a width outside these ranges.
    """

    def __init__(self, num_channels: int, spatial_size: Sequence[int], channels: Sequence[int], latent_size: int = 128):
        super().__init__()
        whole_weights(self)
        if not channels or any(width < GROUP or width % GROUP for width in channels):
            raise InputError(f"channels {list(channels)}", f"positive multiples of {GROUP}", "change channels")
        self.latent_shape = (int(latent_size),)
        self.start = (int(channels[0]), *_smallest_grid(spatial_size, len(channels) - 1))
        dimensions = len(spatial_size)
        convolution, mode = Conv["conv", dimensions], "bilinear" if dimensions == 2 else "trilinear"
        self.project = nn.Linear(latent_size, math.prod(self.start))
        layers = [nn.GroupNorm(channels[0] // GROUP, channels[0]), nn.ReLU()]
        for coarse, fine in zip(channels, channels[1:], strict=False):
            layers += [nn.Upsample(scale_factor=2, mode=mode), convolution(coarse, fine, 3, padding=1)]
            layers += [nn.GroupNorm(fine // GROUP, fine), nn.ReLU()]
        self.body = nn.Sequential(*layers, convolution(channels[-1], num_channels, 3, padding=1))

    def forward(self, noise: Tensor) -> Tensor:
        """Make image and mask channels (batch, num_channels, *spatial_size) in [0, 1].

        Args:
            noise: standard normal, (batch, *latent_shape).
        """
        grid = self.project(noise).reshape(-1, *self.start)
        return torch.sigmoid(self.body(grid).to(noise.dtype))


class Discriminator(nn.Module):
    """DCGAN's discriminator (Radford et al. 2015): strided convolutions and one score a sample.

    It sees image and mask channels together. Real and fake samples do not see each other.

    Args:
        num_channels: image channels + mask channels.
        spatial_size: (height, width) or (height, width, depth), multiples of ``2 ** len(channels)``.
        channels: feature channels of the convolutions (kernel 4, stride 2), from `spatial_size` / 2 on.
        spectral_norm: hold the norm of every layer's weight matrix at 1 (Miyato et al. 2018), instead of instance
            normalisation between the layers.

    Raises:
        InputError: a size outside these ranges.
    """

    def __init__(
        self, num_channels: int, spatial_size: Sequence[int], channels: Sequence[int], spectral_norm: bool = True
    ):
        super().__init__()
        if not isinstance(spectral_norm, bool):  # the command line makes a (true) string of "false"
            raise InputError(f"spectral_norm {spectral_norm!r}", "True or False", "write --spectral_norm False")
        grid, dimensions = _smallest_grid(spatial_size, len(channels)), len(spatial_size)
        layers: list[nn.Module] = []
        for index, (coming, going) in enumerate(zip([num_channels, *channels], channels, strict=False)):
            layers.append(Conv["conv", dimensions](coming, going, 4, stride=2, padding=1))
            if index and not spectral_norm:  # not behind the image itself (DCGAN)
                layers.append(Norm["instance", dimensions](going, affine=True))
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.Flatten(), nn.Linear(channels[-1] * math.prod(grid), 1)]
        if spectral_norm:
            layers = [
                normalise_spectrally(layer) if list(layer.parameters(recurse=False)) else layer for layer in layers
            ]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Score (batch, num_channels, *spatial_size): (batch, 1), trained to be high for real samples."""
        return self.body(x).float()


def _smallest_grid(spatial_size: Sequence[int], halvings: int) -> list[int]:
    factor = 2**halvings
    if len(spatial_size) not in (2, 3) or any(side < factor or side % factor for side in spatial_size):
        raise InputError(
            f"spatial_size {list(spatial_size)} with {halvings} halvings",
            f"height, width and, of volumes, depth: positive multiples of {factor}",
            "change spatial_size, or give fewer channels",
        )
    return [side // factor for side in spatial_size]
