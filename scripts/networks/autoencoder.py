"""Autoencoders of image and mask channels together: of slices or volumes as a whole, and of volumes slice by slice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import Tensor, nn

from ..runtime.errors import InputError


class FirstStage(nn.Module):
    """What latent diffusion asks of the code that its denoiser works on.

    Attributes:
        code_shape: of the code of one item, channels first.
    """

    code_shape: tuple[int, ...]

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure on training items, each (batch, num_channels, *spatial_size), what is not trained: here nothing."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of q(z | x), each (batch, *code_shape), of x in [0, 1]."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Give the logits of z (batch, *code_shape)."""
        raise NotImplementedError

    def probabilities(self, z: Tensor) -> Tensor:
        """Give image and mask probabilities in [0, 1] of z: what `decode` gives, without its logits."""
        return torch.sigmoid(self.decode(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Decode the posterior's mean: image and mask probabilities, the shape of x, in [0, 1]."""
        return self.probabilities(self.encode(x)[0])


class JointAutoencoder(FirstStage):
    """MONAI's AutoencoderKL on slices, or on volumes with 3D convolutions (LDM, Rombach et al. 2022).

    Args:
        num_channels: image channels + mask channels.
        spatial_size: `[height, width]` or `[height, width, depth]`, multiples of `2 ** (len(channels) - 1)`.
        channels: feature channels of each level, multiples of `norm_groups`.
        num_res_blocks: residual blocks per level.
        latent_channels: channels of the latent map.
        attention_levels: which levels have self-attention; the bottleneck has it when the deepest one has.
        norm_groups: groups of each group normalisation.

    Raises:
        InputError: for a size or a width outside these ranges.
    """

    def __init__(
        self,
        num_channels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int],
        num_res_blocks: int,
        latent_channels: int,
        attention_levels: Sequence[bool],
        norm_groups: int = 32,
    ):
        super().__init__()
        if len(spatial_size) not in (2, 3):
            raise InputError(f"spatial_size {list(spatial_size)}", "two or three numbers", "set spatial_size")
        shape = latent_size(spatial_size, channels, attention_levels, norm_groups)
        self.code_shape = (latent_channels, *shape)
        bottleneck = bool(attention_levels[-1])
        self.coder = AutoencoderKL(
            spatial_dims=len(spatial_size),
            in_channels=num_channels,
            out_channels=num_channels,
            num_res_blocks=num_res_blocks,
            channels=channels,
            attention_levels=attention_levels,
            latent_channels=latent_channels,
            norm_num_groups=norm_groups,
            with_encoder_nonlocal_attn=bottleneck,
            with_decoder_nonlocal_attn=bottleneck,
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of q(z | x), each (batch, *code_shape).

        Args:
            x: (batch, num_channels, *spatial_size) in [0, 1].
        """
        return self.coder.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Give the logits of z (batch, *code_shape): (batch, num_channels, *spatial_size)."""
        return self.coder.decode(z)


class SliceAutoencoder(FirstStage):
    """Autoencoder of the slices of volumes that knows where in the volume each slice lies.

    q(z_i | x_i, m_i, l(i)) and p(x_i, m_i | z_i, l(i)) of SBLDM (Kebaili et al. 2024b, section 2.2): the embedding
    l(i) of the relative position enters encoder and decoder as constant maps beside their inputs. The latent maps of
    all slices, stacked along the depth, are the latent of the volume.

    Args:
        num_channels: image channels + mask channels.
        spatial_size: `[height, width, depth]`; height and width are multiples of `2 ** (len(channels) - 1)`.
        channels, num_res_blocks, latent_channels, attention_levels, norm_groups: as in `JointAutoencoder`.
        position_channels: maps that l(i) gives.
        chunk_size: slices of each volume that are encoded or decoded at once. Memory grows with it, not with the
            depth.

    Raises:
        InputError: for a size or a width outside these ranges.
    """

    def __init__(
        self,
        num_channels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int],
        num_res_blocks: int,
        latent_channels: int,
        attention_levels: Sequence[bool],
        norm_groups: int = 32,
        position_channels: int = 8,
        chunk_size: int = 16,
    ):
        super().__init__()
        if len(spatial_size) != 3:
            raise InputError(f"spatial_size {list(spatial_size)}", "height, width and depth", "set spatial_size")
        if chunk_size < 1 or position_channels < 1:
            raise InputError(
                f"chunk_size {chunk_size}, position_channels {position_channels}", "1 or more", "set them higher"
            )
        shape = latent_size(spatial_size[:2], channels, attention_levels, norm_groups)
        self.code_shape = (latent_channels, *shape, int(spatial_size[2]))
        self.chunk_size = chunk_size
        bottleneck = bool(attention_levels[-1])
        self.coder = AutoencoderKL(
            spatial_dims=2,
            in_channels=num_channels + position_channels,
            out_channels=num_channels,
            num_res_blocks=num_res_blocks,
            channels=channels,
            attention_levels=attention_levels,
            latent_channels=latent_channels,
            norm_num_groups=norm_groups,
            with_encoder_nonlocal_attn=bottleneck,
            with_decoder_nonlocal_attn=bottleneck,
        )
        # The decoder takes the position's maps beside the latent, which AutoencoderKL has no argument for.
        self.coder.decoder.blocks[0] = Convolution(  # type: ignore[operator,assignment]
            2, latent_channels + position_channels, channels[-1], kernel_size=3, conv_only=True
        )
        self.position_embedding = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, position_channels))

    def encode_slices(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of q(z_i | x_i, m_i, l(i)), each (batch, latent channels, h, w).

        Args:
            x: (batch, num_channels, height, width) in [0, 1].
            position: (batch,) from 0, the first slice of its volume, to 1, the last.
        """
        return self.coder.encode(self._with_position(x, position))

    def decode_slices(self, z: Tensor, position: Tensor) -> Tensor:
        """Give the logits (batch, num_channels, height, width) of z (batch, latent channels, h, w)."""
        return self.coder.decoder(self._with_position(self.coder.post_quant_conv(z), position))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of the latent volume, each (batch, *code_shape).

        Args:
            x: (batch, num_channels, height, width, depth) in [0, 1].
        """
        pairs = [self.encode_slices(*self._flat(chunk, first, x)) for first, chunk in self._chunks(x)]
        mean, std = (torch.cat([self._stacked(part, x) for part in parts], -1) for parts in zip(*pairs, strict=True))
        return mean, std

    def decode(self, z: Tensor) -> Tensor:
        """Give the logits (batch, num_channels, height, width, depth) of z (batch, *code_shape)."""
        slices = [self.decode_slices(*self._flat(chunk, first, z)) for first, chunk in self._chunks(z)]
        return torch.cat([self._stacked(part, z) for part in slices], -1)

    def _with_position(self, x: Tensor, position: Tensor) -> Tensor:
        # Scaled so that the waves, made for 1,000 diffusion steps, run from one over the volume to one over a slice.
        waves = get_timestep_embedding(1000 * position, 64).to(x)
        maps = self.position_embedding(waves)[:, :, None, None]
        return torch.cat([x, maps.expand(-1, -1, *x.shape[2:])], 1)

    def _chunks(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """Pairs of the first slice's index and the slices of all volumes."""
        starts = range(0, x.shape[-1], self.chunk_size)
        return [(first, x[..., first : first + self.chunk_size]) for first in starts]

    @staticmethod
    def _flat(chunk: Tensor, first: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, channels, h, w, slices) to (batch * slices, channels, h, w), with the slices' positions."""
        position = slice_positions(x.shape[-1])[first : first + chunk.shape[-1]].to(x)
        # Expanded by broadcasting against the data, so that a traced module takes any batch size.
        position = position + torch.zeros_like(chunk[:, 0, 0, 0])
        return chunk.movedim(-1, 1).flatten(0, 1), position.flatten()

    @staticmethod
    def _stacked(slices: Tensor, x: Tensor) -> Tensor:
        """(batch * slices, channels, h, w) to (batch, channels, h, w, slices)."""
        return slices.unflatten(0, (x.shape[0], -1)).movedim(1, -1)


def slice_positions(depth: int) -> Tensor:
    """Relative positions of the slices of a volume, (depth,), from 0 to 1."""
    return torch.linspace(0, 1, depth)


def latent_size(
    spatial_size: Sequence[int], channels: Sequence[int], attention_levels: Sequence[bool], norm_groups: int
) -> tuple[int, ...]:
    """Size of the latent map: every level but the first halves the input.

    Raises:
        InputError: a setting does not fit the others.
    """
    factor = 2 ** (len(channels) - 1)
    if any(side < factor or side % factor for side in spatial_size):
        raise InputError(
            f"size {list(spatial_size)} with {len(channels)} levels of an autoencoder",
            f"positive multiples of {factor}",
            "change spatial_size, or use fewer levels (channels)",
        )
    check_levels("channels", channels, attention_levels, norm_groups)
    return tuple(int(side) // factor for side in spatial_size)


def check_levels(name: str, channels: Sequence[int], attention_levels: Sequence[bool], norm_groups: int) -> None:
    """Raise `InputError` unless there is one attention flag a level and the groups divide the channels."""
    if len(attention_levels) != len(channels):
        raise InputError(
            f"{len(attention_levels)} attention levels for {name} {list(channels)}",
            "one flag for each level",
            "set both to the same length",
        )
    if any(width % norm_groups for width in channels):
        raise InputError(
            f"{name} {list(channels)} with norm_groups {norm_groups}",
            "multiples of norm_groups",
            f"change {name} or norm_groups",
        )
