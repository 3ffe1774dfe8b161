"""The Haar transform in the place of an autoencoder: nothing to train, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..runtime.errors import InputError
from .autoencoder import FirstStage


class WaveletTransform(FirstStage):
    """Orthonormal Haar wavelets of image and mask channels, for diffusion without an autoencoder's blur.

    After WDM (Friedrich et al. 2024, "WDM: 3D Wavelet Diffusion Models for High-Resolution Medical Image Synthesis",
    section 2): every level halves the sides and turns each channel into one of coarse and of fine parts along each
    axis. The transform is exact, so that samples can have the grain that an autoencoder of few patients leaves out.
    Masks are numbers as images are (Chen et al. 2023, "Analog Bits", section 3), and are cut at one half.

    A band is shifted to mean 0 and divided by the square root of its standard deviation, which `fit` measures: fine
    bands are some ten times weaker than coarse ones, and would drown in the least noise of the diffusion.

    Args:
        num_channels: image channels + mask channels.
        spatial_size: `[height, width]` or `[height, width, depth]`, multiples of `2 ** levels` where they are halved.
        levels: how often the sides are halved, 1 or more.
        in_plane: volumes are halved along height and width alone, slice by slice.

    Raises:
        InputError: for a size or a number of levels outside these ranges.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, num_channels: int, spatial_size: Sequence[int], levels: int, in_plane: bool = False):
        super().__init__()
        if len(spatial_size) not in (2, 3):
            raise InputError(f"spatial_size {list(spatial_size)}", "two or three numbers", "set spatial_size")
        self.axes = 2 if in_plane else len(spatial_size)
        halved, rest = spatial_size[: self.axes], spatial_size[self.axes :]
        if levels < 1 or any(side < 2**levels or side % 2**levels for side in halved):
            raise InputError(
                f"size {list(spatial_size)} with wavelet_levels {levels}",
                "1 level or more, and sides that are positive multiples of 2 ** wavelet_levels",
                "change spatial_size or wavelet_levels",
            )
        self.levels = levels
        bands = num_channels * 2 ** (self.axes * levels)
        self.code_shape = (bands, *(int(side) // 2**levels for side in halved), *(int(side) for side in rest))
        shape = (bands, *[1] * len(spatial_size))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure mean and scale of each band.

        Args:
            batches: training items, each (batch, num_channels, *spatial_size) in [0, 1].
        """
        total, squares, count = (torch.zeros(len(self.mean), dtype=torch.float64) for _ in range(3))
        for batch in batches:
            bands = self._bands(batch.to(self.mean.device)).movedim(1, 0).flatten(1).double().cpu()
            total, squares, count = total + bands.sum(1), squares + bands.square().sum(1), count + bands.shape[1]
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        # A band that never varies, as of a mask in full rows, stays what it is.
        scale = torch.where(deviation > 1e-4, deviation.sqrt(), torch.ones_like(deviation))
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.scale.copy_(scale.reshape(self.scale.shape))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the bands (batch, *code_shape) of x (batch, num_channels, *spatial_size) in [0, 1], and zeros."""
        z = (self._bands(x) - self.mean) / self.scale
        return z, torch.zeros_like(z)

    def probabilities(self, z: Tensor) -> Tensor:
        """Give image and mask (batch, num_channels, *spatial_size) in [0, 1] of bands z (batch, *code_shape)."""
        x = z * self.scale + self.mean
        for _ in range(self.levels):
            for axis in range(1 + self.axes, 1, -1):
                low, high = x.chunk(2, 1)
                x = (torch.stack([low + high, low - high], axis + 1) * 0.5**0.5).flatten(axis, axis + 1)
        return ((x + 1) / 2).clamp(0, 1)

    def _bands(self, x: Tensor) -> Tensor:
        x = 2 * x - 1
        for _ in range(self.levels):
            for axis in range(2, 2 + self.axes):
                even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
                x = torch.cat([even + odd, even - odd], 1) * 0.5**0.5
        return x
