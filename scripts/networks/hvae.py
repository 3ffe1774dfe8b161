"""Encoder and decoder of the VAE family: VAE (no leapfrog step), HVAE and dHVAE."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.errors import InputError


class WeightStandardisedConv2d(nn.Conv2d):
    """3 x 3 convolution without bias, each output filter of mean 0 and norm 1 (Qiao et al. 2019)."""

    # The standardised weight inside `HVAE.using_weights`.
    standardised: Tensor | None

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.standardised = None

    def standardised_weight(self) -> Tensor:
        """Standardise the weight, (out_channels, in_channels, 3, 3)."""
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return centred * torch.rsqrt(centred.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (batch, in_channels, height, width)."""
        weight = self.standardised
        if weight is None:
            weight = self.standardised_weight()
        return F.conv2d(x, weight, padding=1)


class ResidualBlock(nn.Module):
    """skip(x) + SiLU(GroupNorm(standardised 3 x 3 convolution(x))); the skip is 1 x 1 where widths differ."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int):
        super().__init__()
        self.conv = WeightStandardisedConv2d(in_channels, out_channels)
        self.norm = nn.GroupNorm(norm_groups, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, height, width) to (batch, out_channels, height, width)."""
        return self.skip(x) + F.silu(self.norm(self.conv(x)))


class SelfAttention(nn.Module):
    """Residual self-attention over all places of a map."""

    def __init__(self, num_channels: int, norm_groups: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.norm = nn.GroupNorm(norm_groups, num_channels)
        self.to_qkv = nn.Conv2d(num_channels, 3 * num_heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv2d(num_heads * head_dim, num_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        batch, _, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(batch, 3, self.num_heads, self.head_dim, height * width)
        query, key, value = qkv[:, 0], qkv[:, 1], qkv[:, 2]  # each (batch, heads, head_dim, places)
        # Written out: the fused attention kernels cannot be differentiated twice.
        scores = torch.matmul(query.transpose(2, 3), key) * self.head_dim**-0.5
        mixed = torch.matmul(value, scores.softmax(dim=-1).transpose(2, 3))
        return x + self.to_out(mixed.reshape(batch, self.num_heads * self.head_dim, height, width))


class HVAE(nn.Module):
    """Variational autoencoder of image and mask channels, with the settings of its Hamiltonian dynamics.

    Encoder and decoder are mirror images: levels of residual blocks, average pooling or nearest-neighbour
    enlargement by 2 between levels, self-attention at the deepest level and in the bottleneck (dHVAE,
    Kebaili et al. 2024, section 3). No layer mixes the samples of a batch. With ``num_leapfrog_steps`` 0 it
    is the plain VAE. The objective is `scripts.losses.hvae.hvae_objective`.

    Args:
        num_channels: image channels + mask channels.
        spatial_size: height and width in pixels (one number for both), multiples of
            ``2 ** (len(channels) - 1)``.
        channels: feature channels of each level, multiples of ``norm_groups``.
        num_res_blocks: residual blocks per level.
        latent_channels: channels of the latent map.
        norm_groups: groups of each group normalisation.
        attention_heads: heads of self-attention.
        attention_head_dim: channels of each head.
        num_leapfrog_steps: K >= 0.
        initial_step_size: leapfrog step size at the start of training, > 0; one for each latent dimension is learned
            (eq. 7).
        beta_zero: inverse temperature at the start of the dynamics, in (0, 1]; 1 is no tempering.

    Raises:
        InputError: for a size, width, step size or temperature outside these ranges.
    """

    density_mean: Tensor
    density_factor: Tensor

    def __init__(
        self,
        num_channels: int,
        spatial_size: int | Sequence[int],
        channels: Sequence[int] = (128, 256, 512, 512),
        num_res_blocks: int = 2,
        latent_channels: int = 3,
        norm_groups: int = 8,
        attention_heads: int = 8,
        attention_head_dim: int = 32,
        num_leapfrog_steps: int = 3,
        initial_step_size: float = 1e-3,
        beta_zero: float = 0.3,
    ):
        super().__init__()
        size = [spatial_size] * 2 if isinstance(spatial_size, int) else [int(side) for side in spatial_size]
        factor = 2 ** (len(channels) - 1)
        _check_settings(size, factor, channels, norm_groups, num_leapfrog_steps, initial_step_size, beta_zero)
        if num_res_blocks < 1:
            raise InputError(f"num_res_blocks {num_res_blocks}", "1 or more", "use 2, as the paper")
        self.num_channels = num_channels
        self.spatial_size = (size[0], size[1])
        self.latent_shape = (latent_channels, size[0] // factor, size[1] // factor)
        self.num_leapfrog_steps = num_leapfrog_steps
        self.beta_zero = beta_zero

        deepest, narrow = channels[-1], channels[(len(channels) - 1) // 2]

        def attention(width: int) -> SelfAttention:
            return SelfAttention(width, norm_groups, attention_heads, attention_head_dim)

        down: list[nn.Module] = [nn.Conv2d(num_channels, channels[0], 3, padding=1)]
        # Built from the outside in, like the encoder, and turned round below.
        up: list[nn.Module] = [nn.Conv2d(channels[0], num_channels, 3, padding=1)]
        for level, width in enumerate(channels):
            before = channels[max(level - 1, 0)]
            widths = [before] + [width] * num_res_blocks
            pairs = list(zip(widths[:-1], widths[1:], strict=True))
            encoding: list[nn.Module] = [ResidualBlock(a, b, norm_groups) for a, b in pairs]
            decoding: list[nn.Module] = [ResidualBlock(b, a, norm_groups) for a, b in reversed(pairs)]
            if level > 0:
                encoding.insert(0, nn.AvgPool2d(2))
                decoding.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
            if level == len(channels) - 1:
                encoding.append(attention(deepest))
                decoding.insert(0, attention(deepest))
            down.append(nn.Sequential(*encoding))
            up.append(nn.Sequential(*decoding))
        # The bottleneck is as wide as the middle level.
        down.append(nn.Sequential(ResidualBlock(deepest, narrow, norm_groups), attention(narrow)))
        up.append(nn.Sequential(attention(narrow), ResidualBlock(narrow, deepest, norm_groups)))
        down.append(nn.Conv2d(narrow, 2 * latent_channels, 1))
        up.append(nn.Conv2d(latent_channels, narrow, 1))
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*reversed(up))
        # A small start: posterior near the prior, probabilities near 1/2.
        with torch.no_grad():
            for last in (down[-1], up[0]):
                last.get_parameter("weight").mul_(0.1)
                last.get_parameter("bias").zero_()

        # Learned as logarithms, so that step sizes stay positive.
        log_step_size = torch.full(self.latent_shape, initial_step_size).log()
        if num_leapfrog_steps == 0:
            self.register_buffer("log_step_size", log_step_size)
        else:
            self.log_step_size = nn.Parameter(log_step_size)

        # Where `forward` puts its noise: the prior, until `fit_latent_density`.
        self.register_buffer("density_mean", torch.zeros(self.latent_shape))
        self.register_buffer("density_factor", torch.eye(math.prod(self.latent_shape)))

    def step_size(self) -> Tensor:
        """Give the leapfrog step sizes, latent_shape, positive."""
        return self.log_step_size.exp()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and log-variance of q(z | x), each (batch, *latent_shape).

        Args:
            x: (batch, num_channels, height, width) in [0, 1].
        """
        mean, log_var = self.encoder(x).to(x.dtype).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        """Give the Bernoulli logits of z (batch, *latent_shape), (batch, num_channels, height, width)."""
        return self.decoder(z).to(z.dtype)

    def forward(self, z: Tensor) -> Tensor:
        """Make image and mask probabilities (batch, num_channels, height, width) in [0, 1] from noise.

        The noise is decoded as it is, a draw of the prior (the paper), or from the Gaussian of
        `fit_latent_density`.

        Args:
            z: standard normal noise, (batch, *latent_shape).
        """
        placed = self.density_mean + torch.matmul(z.flatten(1), self.density_factor.t()).reshape(z.shape)
        return torch.sigmoid(self.decode(placed))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Give the probabilities at the posterior mean of x, (batch, num_channels, height, width) in [0, 1]."""
        return torch.sigmoid(self.decode(self.encode(x)[0]))

    @torch.no_grad()
    def fit_latent_density(self, x: Tensor, batch_size: int = 64) -> None:
        """Let `forward` sample from the Gaussian of the aggregate posterior of x instead of the prior.

        Where training ends before the posterior of all cases has become the prior, draws of the prior fall
        between them. Its mean and full covariance are those of q(z) = mean over x of q(z | x): ex-post density
        estimation (Ghosh et al. 2020, "From variational to deterministic autoencoders", section 4). It is the
        density of z_0; the leapfrog steps, of size 1e-3, hardly move it.

        Args:
            x: training slices, (slices, num_channels, height, width) in [0, 1].
        """
        device = self.density_mean.device
        pairs = [self.encode(batch.to(device)) for batch in x.split(batch_size)]
        means = torch.cat([mean.flatten(1) for mean, _ in pairs]).double()
        variance = torch.cat([log_var.exp().flatten(1) for _, log_var in pairs]).double().mean(0)
        covariance = torch.cov(means.T, correction=0) + torch.diag(variance)
        self.density_mean.copy_(means.mean(0).reshape(self.latent_shape))
        self.density_factor.copy_(torch.linalg.cholesky(covariance))

    def standardised_weights(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Standardise every weight, in the type ``dtype`` if given, for `using_weights`."""
        weights = [convolution.standardised_weight() for convolution in self._convolutions()]
        return weights if dtype is None else [weight.to(dtype) for weight in weights]

    @contextmanager
    def using_weights(self, weights: list[Tensor]) -> Iterator[None]:
        """Use `standardised_weights` in all calls inside the context, which then standardise nothing."""
        convolutions = self._convolutions()
        try:
            for convolution, weight in zip(convolutions, weights, strict=True):
                convolution.standardised = weight
            yield
        finally:
            for convolution in convolutions:
                convolution.standardised = None

    def _convolutions(self) -> list[WeightStandardisedConv2d]:
        return [module for module in self.modules() if isinstance(module, WeightStandardisedConv2d)]


def _check_settings(
    size: list[int],
    factor: int,
    channels: Sequence[int],
    norm_groups: int,
    num_leapfrog_steps: int,
    initial_step_size: float,
    beta_zero: float,
) -> None:
    if len(size) != 2 or any(side < factor or side % factor for side in size):
        raise InputError(
            f"spatial_size {size} with {len(channels)} levels",
            f"height and width, positive multiples of {factor}",
            "pad or crop the slices, or use fewer levels (channels)",
        )
    if any(width % norm_groups for width in channels):
        raise InputError(
            f"channels {list(channels)} with norm_groups {norm_groups}",
            "multiples of norm_groups",
            "change channels or norm_groups",
        )
    if num_leapfrog_steps < 0:
        raise InputError(f"num_leapfrog_steps {num_leapfrog_steps}", "0 (plain VAE) or more", "use 3, as the paper")
    if not initial_step_size > 0:
        raise InputError(f"initial_step_size {initial_step_size}", "a number above 0", "use 1e-3")
    if not 0 < beta_zero <= 1:
        raise InputError(f"beta_zero {beta_zero}", "above 0, at most 1 (no tempering)", "use 0.3")
