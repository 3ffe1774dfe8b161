"""A rectified flow that paints into a hole of a real image: a lesion of a wanted shape, or healthy tissue."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import RFlowScheduler
from torch import Tensor, nn

from ..dynamics.heun import heun
from ..runtime.errors import InputError
from .autoencoder import check_levels

TIMES = 1000  # what MONAI's time embedding counts in


def straight_path() -> RFlowScheduler:
    """MONAI's rectified flow. It calls itself a module and is none: torch could not hold it in a network."""
    return RFlowScheduler(num_train_timesteps=TIMES, use_discrete_timesteps=False)


class LesionFlow(nn.Module):
    """Velocity of the straight path between noise and what is in the hole (Liu et al. 2023; Lipman et al. 2023).

    x_t = (1 - t) x_0 + t noise, velocity x_0 - noise, as MONAI's `RFlowScheduler` has it: t = 1 is noise, t = 0 the
    image. Outside the hole the network sees x_0 itself, and nothing of it is ever changed.

    Shapes: images `(batch, image_channels, *size)` in the units of `Intensities`; `distance` `(batch, labels, *size)`,
    the signed distances to the wanted masks (see `signed_distances`); `hole` `(batch, 1, *size)` in {0, 1}. Sizes are
    multiples of `multiple`; those of the training need not be kept.

    Args:
        num_image_channels, num_labels: of the data set.
        spatial_size: of the crops that it is trained on; its length is the dimension.
        channels: features of each level, multiples of `norm_groups`.
        num_res_blocks: residual blocks of a level.
        attention_levels: which levels have self-attention.
        head_channels: channels of an attention head.
        norm_groups: groups of the group normalisation.
        num_steps: Heun steps of `forward`.
    """

    def __init__(
        self,
        num_image_channels: int,
        num_labels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        num_res_blocks: int = 1,
        attention_levels: Sequence[bool] = (False, False, True),
        head_channels: int = 32,
        norm_groups: int = 8,
        num_steps: int = 16,
    ):
        super().__init__()
        self.spatial_size = tuple(int(size) for size in spatial_size)
        self.multiple = 2 ** (len(channels) - 1)
        check_levels("channels", channels, attention_levels, norm_groups)
        if num_steps < 1:
            raise InputError(f"num_steps {num_steps}", "at least 1; 10 to 20 are usual", "set num_steps")
        self.num_image_channels, self.num_labels, self.num_steps = num_image_channels, num_labels, num_steps
        self.unet = DiffusionModelUNet(
            spatial_dims=len(self.spatial_size),
            in_channels=2 * num_image_channels + num_labels + 1,
            out_channels=num_image_channels,
            num_res_blocks=num_res_blocks,
            channels=tuple(channels),
            attention_levels=tuple(attention_levels),
            num_head_channels=head_channels,
            norm_num_groups=norm_groups,
        )

    @property
    def num_channels(self) -> int:
        """Channels of the noise and of the image, labels, and the hole: what `forward` is given."""
        return 2 * self.num_image_channels + self.num_labels + 1

    def noised(self, image: Tensor, noise: Tensor, t: Tensor, hole: Tensor) -> Tensor:
        """The image with its hole at the times `t` `(batch,)` in [0, 1] of the path."""
        return torch.where(hole > 0, straight_path().add_noise(image, noise, t * TIMES), image)

    def velocity(self, x: Tensor, t: Tensor, image: Tensor, distance: Tensor, hole: Tensor) -> Tensor:
        """Velocity at `x`, of which the hole alone is noised; of `image` nothing in the hole is seen."""
        around = image * (1 - hole)
        return self.unet(torch.cat([x * hole + around, around, distance, hole], dim=1), t * TIMES)

    def paint(self, noise: Tensor, image: Tensor, distance: Tensor, hole: Tensor, num_steps: int) -> Tensor:
        """The image with its hole painted, by Heun steps from noise at t = 1; outside the hole it stays to the bit."""
        path = straight_path()
        path.set_timesteps(num_steps)
        times = [float(time) / TIMES for time in path.timesteps] + [0.0]

        def away_from_image(x: Tensor, time: float) -> Tensor:  # dx/dt is minus the velocity, which leads to t = 0
            t = torch.full((len(x),), time, device=x.device)
            return -self.velocity(x, t, image, distance, hole).float() * hole

        return torch.where(hole > 0, heun(away_from_image, noise, times), image)

    def forward(self, x: Tensor) -> Tensor:
        """Noise, image, signed distances and hole `(batch, channels, *size)`, to the painted image and its masks.

        The masks `(batch, labels, *size)` are the wanted ones, 1 where the distance is negative.
        """
        channels = self.num_image_channels
        noise, image, distance, hole = x.split([channels, channels, self.num_labels, 1], dim=1)
        return torch.cat([self.paint(noise, image, distance, hole, self.num_steps), (distance < 0).to(image)], dim=1)
