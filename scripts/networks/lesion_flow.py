"""A rectified flow that paints into a hole of a real image: a lesion of a wanted shape, or healthy tissue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.networks.schedulers import RFlowScheduler
from torch import Tensor, nn

from ..dynamics.heun import Time, heun
from ..runtime.errors import InputError
from .latent_diffusion import Denoiser
from .scripting import ScriptedPainting
from .whole import whole_weights

TIMES = 1000  # what MONAI's time embedding counts in
SHIFT = 3.0  # of times towards noise, where it is decided how bright a whole lesion is


def straight_path() -> RFlowScheduler:
    """MONAI's rectified flow. It calls itself a module and is none: torch could not hold it in a network."""
    return RFlowScheduler(num_train_timesteps=TIMES, use_discrete_timesteps=False)


def shifted(t: Tensor) -> Tensor:
    """Times in [0, 1], even ones brought nearer to the noise at 1 (Esser et al. 2024, eq. 23).

    A mean over hundreds of voxels shows through noise that hides each of them: what is large is decided near t = 1.
    """
    return SHIFT * t / (1 + (SHIFT - 1) * t)


class LesionFlow(nn.Module):
    """Velocity of the straight path between noise and what is in the hole (Liu et al. 2023; Lipman et al. 2023).

    MONAI's `DiffusionModelUNet`, as `Denoiser` has it.
    x_t = (1 - t) x_0 + t noise, velocity x_0 - noise, as MONAI's `RFlowScheduler` has it: t = 1 is noise, t = 0 the
    image. Outside the hole the network sees x_0 itself, and nothing of it is ever changed.

    Shapes: images `(batch, image_channels, *size)` in the units of `Intensities`; `distance` `(batch, labels, *size)`,
    the signed distances to the wanted masks (see `signed_distances`); `hole` `(batch, 1, *size)` in {0, 1}. Sizes are
    multiples of `multiple`; those of the training need not be kept.

    Args:
        num_channels: image channels and labels of the data set together, as in other bundles.
        num_labels: labels or regions alone.
        spatial_size: of the crops that it is trained on; its length is the dimension.
        channels: features of each level, multiples of `norm_groups`.
        num_res_blocks: residual blocks of a level.
        attention_levels: which levels have self-attention.
        head_channels: channels of an attention head.
        norm_groups: groups of the group normalisation.
        num_steps: Heun steps of the painting.
    """

    def __init__(
        self,
        num_channels: int,
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
        whole_weights(self)
        self.spatial_size = tuple(int(size) for size in spatial_size)
        self.multiple = 2 ** (len(channels) - 1)
        if num_steps < 1:
            raise InputError(f"num_steps {num_steps}", "at least 1; 10 to 20 are usual", "set num_steps")
        num_image_channels = num_channels - num_labels
        self.num_image_channels, self.num_labels, self.num_steps = num_image_channels, num_labels, num_steps
        self.denoiser = Denoiser(
            len(self.spatial_size), num_image_channels, channels, num_res_blocks, attention_levels, head_channels,
            norm_groups, seen_channels=num_image_channels + num_labels + 1,
        )  # fmt: skip

    def noised(self, image: Tensor, noise: Tensor, t: Tensor, hole: Tensor) -> Tensor:
        """The image with its hole at the times `t` `(batch,)` in [0, 1] of the path."""
        return torch.where(hole > 0, straight_path().add_noise(image, noise, t * TIMES), image)

    def velocity(self, x: Tensor, t: Tensor, image: Tensor, distance: Tensor, hole: Tensor) -> Tensor:
        """Velocity at `x`, of which the hole alone is noised; of `image` nothing in the hole is seen."""
        around = image * (1 - hole)
        return self.denoiser(torch.cat([x * hole + around, around, distance, hole], dim=1), t * TIMES)

    def paint(self, noise: Tensor, image: Tensor, distance: Tensor, hole: Tensor) -> Tensor:
        """The image with its hole painted, by `num_steps` Heun steps from noise; outside it stays to the bit."""
        painted = heun(self._away_from_image(image, distance, hole), noise, self.times().tolist())
        return torch.where(hole > 0, painted, image)

    def forward(self, x: Tensor) -> Tensor:
        """Noise, image, signed distances and hole `(batch, channels, *size)`, to the painted image and its masks.

        The masks `(batch, labels, *size)` are the wanted ones, 1 where the distance is negative.
        """
        noise, image, distance, hole = self.parts(x)
        return self.finished(self.paint(noise, image, distance, hole), image, distance, hole)

    @property
    def num_input_channels(self) -> int:
        """Of what `forward` takes."""
        return 2 * self.num_image_channels + self.num_labels + 1

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noise, image, signed distances and hole in {0, 1} of the input of `forward`."""
        channels = self.num_image_channels
        noise, image, distance, hole = x.split([channels, channels, self.num_labels, 1], dim=1)
        return noise, image, distance, (hole > 0).to(image)

    def finished(self, painted: Tensor, image: Tensor, distance: Tensor, hole: Tensor) -> Tensor:
        """What `forward` gives: the painted image, the image itself outside the hole, and the masks."""
        return torch.cat([torch.where(hole > 0, painted, image), (distance < 0).to(image)], dim=1)

    def times(self) -> Tensor:
        """Of the path, where the painting steps: `(num_steps + 1,)` in float64, from 1 to 0."""
        return shifted(torch.linspace(1, 0, self.num_steps + 1, dtype=torch.float64))

    def heun_step(self, x: Tensor, times: Tensor, image: Tensor, distance: Tensor, hole: Tensor) -> Tensor:
        """One step of `paint`, from `times[0]` to `times[1]`, as `ScriptedPainting` takes it."""
        return heun(self._away_from_image(image, distance, hole), x, list(times.unbind()))

    def __prepare_scriptable__(self) -> nn.Module:
        return ScriptedPainting(self, self.times().to(next(self.parameters()).device))

    def _away_from_image(self, image: Tensor, distance: Tensor, hole: Tensor) -> Callable[[Tensor, Time], Tensor]:
        def derivative(x: Tensor, time: Time) -> Tensor:  # minus the velocity, which leads to t = 0
            t = torch.zeros(x.shape[0], device=x.device) + time
            return -self.velocity(x, t, image, distance, hole).float() * hole

        return derivative
