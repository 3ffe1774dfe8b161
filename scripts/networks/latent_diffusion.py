"""Diffusion in the latent space of an autoencoder of image and mask channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from ..dynamics.dpm_solver import dpm_solver
from ..runtime.errors import InputError
from .autoencoder import FirstStage, JointAutoencoder, SliceAutoencoder, check_levels
from .scripting import ScriptedDiffusion
from .wavelets import WaveletTransform
from .whole import whole_weights

# As in the authors' code of SBLDM; the latents must not be clipped to [-1, 1], MONAI's default.
SCHEDULE: dict[str, Any] = {
    "schedule": "scaled_linear_beta",
    "beta_start": 0.002,
    "beta_end": 0.02,
    "clip_sample": False,
}

SCHEDULERS = ("ddim", "ddpm", "dpm")
PREDICTION_TYPES = ["epsilon", "v_prediction"]

# Half waves over the range of a condition in [0, 1]: without them, a short training hardly tells conditions apart.
CONDITION_WAVES = (1, 2, 4)


class ScaleShiftBlock(DiffusionUNetResnetBlock):
    """Residual block whose embedding scales and shifts the features behind their second normalisation.

    h = norm(h) * (1 + scale) + shift (Dhariwal and Nichol 2021; SBLDM, Kebaili et al. 2024b, section 2.3); MONAI's
    block adds the embedding in front of the normalisation, which takes a part of it out again.
    """

    def __init__(self, block: DiffusionUNetResnetBlock):
        super().__init__(
            block.spatial_dims, block.channels, block.emb_channels, block.out_channels, block.up, block.down,
            block.norm1.num_groups, block.norm1.eps,
        )  # fmt: skip
        self.time_emb_proj = nn.Linear(block.emb_channels, 2 * block.out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map (batch, channels, *size) and an embedding (batch, emb_channels) to (batch, out_channels, *size)."""
        h = self.conv1(self.nonlinearity(self.norm1(x)))
        scale_shift = self.time_emb_proj(self.nonlinearity(emb))
        scale, shift = scale_shift.reshape(*scale_shift.shape, *[1] * self.spatial_dims).chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip_connection(x) + self.conv2(self.nonlinearity(h))


class Denoiser(nn.Module):
    """MONAI's DiffusionModelUNet with scale-shift residual blocks and, if asked for, a vector as condition.

    Attention stands where `attention_levels` say so; in the middle block, where MONAI always has it, only when the
    deepest level has it. The condition, as sines and cosines, goes through an MLP and is added to the embedding of the
    time; for a sample without condition a learned null embedding takes its place. It scales and shifts a feature map
    by the same numbers everywhere, while some of it names a place: so a conditioned network gets the coordinates of
    its voxels beside its input (Liu et al. 2018, CoordConv).

    Args:
        spatial_dims: 2 or 3.
        latent_channels: of the latent map.
        channels: feature channels of each level, multiples of `norm_groups`.
        num_res_blocks: residual blocks per level.
        attention_levels: which levels have self-attention.
        head_channels: channels of an attention head.
        norm_groups: groups of each group normalisation.
        num_conditions: length of the condition, 0 for none.
        seen_channels: of what the network sees beside the latent map, behind it.
    """

    def __init__(
        self,
        spatial_dims: int,
        latent_channels: int,
        channels: Sequence[int],
        num_res_blocks: int,
        attention_levels: Sequence[bool],
        head_channels: int = 32,
        norm_groups: int = 32,
        num_conditions: int = 0,
        seen_channels: int = 0,
    ):
        super().__init__()
        check_levels("denoiser_channels", channels, attention_levels, norm_groups)
        if any(attention and c % head_channels for attention, c in zip(attention_levels, channels, strict=True)):
            raise InputError(
                f"denoiser_channels {list(channels)} with head_channels {head_channels}",
                "multiples of head_channels where there is attention",
                "change one of them",
            )
        self.unet = DiffusionModelUNet(
            spatial_dims=spatial_dims,
            in_channels=latent_channels + seen_channels + (spatial_dims if num_conditions else 0),
            out_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            channels=channels,
            attention_levels=attention_levels,
            norm_num_groups=norm_groups,
            # one head where there is no attention: MONAI checks the middle block's, which is taken out below
            num_head_channels=[head_channels if a else c for a, c in zip(attention_levels, channels, strict=True)],
            num_class_embeds=1 if num_conditions else None,
        )
        for parent in list(self.unet.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is DiffusionUNetResnetBlock:
                    setattr(parent, name, ScaleShiftBlock(child))
        if not attention_levels[-1]:
            self.unet.middle_block.attention = nn.Identity()
        self.num_conditions = num_conditions
        if num_conditions:
            width = 4 * channels[0]  # of MONAI's time embedding
            # what is given as class is the embedding itself
            self.unet.class_embedding = nn.Identity()  # type: ignore[assignment]
            self.condition_embedding = nn.Sequential(
                nn.Linear(len(CONDITION_WAVES) * 2 * num_conditions, 256), nn.SiLU(), nn.Linear(256, width)
            )
            self.null_embedding = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor, t: Tensor, condition: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """What is to be predicted of z (batch, channels, *size) at t (batch,): noise or velocity, the latents' shape.

        `condition` and `keep`: see `LatentDiffusion.predict_noise`.
        """
        if not self.num_conditions:
            return self.unet(z, t)
        embedding = self.null_embedding.expand(z.shape[0], -1)
        if condition is not None:
            angles = torch.cat([torch.pi * wave * condition for wave in CONDITION_WAVES], dim=1)
            asked = self.condition_embedding(torch.cat([angles.sin(), angles.cos()], dim=1))
            embedding = asked if keep is None else torch.where(keep[:, None], asked, embedding)
        axes = [torch.linspace(-1, 1, size, device=z.device, dtype=z.dtype) for size in z.shape[2:]]
        places = torch.stack(torch.meshgrid(axes, indexing="ij")).expand(z.shape[0], *[-1] * (z.ndim - 1))
        return self.unet(torch.cat([z, places], dim=1), t, class_labels=embedding)


class EvenDDIMScheduler(DDIMScheduler):
    """MONAI's DDIM whose times are as far apart as its step assumes.

    Its own times for 50 steps are 20.4 apart, while a step goes back by 20: the network would be told less noise than
    there is. Here step k of n stands at k * (1000 / n) - 1 ("trailing", Lin et al. 2024), and the last one ends
    without noise.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the times.

        Raises:
            InputError: the number of steps does not divide that of the training.
        """
        total = self.num_train_timesteps
        if not 1 <= num_inference_steps <= total or total % num_inference_steps:
            allowed = [n for n in range(1, total + 1) if total % n == 0]
            raise InputError(
                f"num_steps {num_inference_steps} of DDIM", f"one of {allowed}", "set num_steps to one of these"
            )
        self.num_inference_steps = num_inference_steps
        stride = total // num_inference_steps
        self.timesteps = torch.arange(total - 1, -1, -stride, device=device)


class LatentDiffusion(nn.Module):
    """Autoencoder of image and mask channels, and a denoiser of its latents.

    LDM (Rombach et al. 2022) with a `JointAutoencoder`, SBLDM (Kebaili et al. 2024b) with a `SliceAutoencoder`, WDM
    (Friedrich et al. 2024) with a `WaveletTransform` in the autoencoder's place. The latents are divided by
    `latent_std`, one number, before the diffusion.

    Args:
        num_channels: image channels + mask channels.
        spatial_size: `[height, width]` or `[height, width, depth]`.
        slice_wise: encode volumes slice by slice.
        channels, num_res_blocks, latent_channels, attention_levels: of the autoencoder, see `JointAutoencoder`.
        position_channels: see `SliceAutoencoder`; only with `slice_wise`.
        wavelet_levels: of a `WaveletTransform` in the place of an autoencoder, whose settings then do not count but
            `slice_wise`; 0 for an autoencoder.
        denoiser_channels, denoiser_res_blocks, denoiser_attention, head_channels: see `Denoiser`.
        norm_groups: groups of each group normalisation.
        num_conditions: length of the condition, 0 for none.
        prediction_type: what the denoiser's output means: "epsilon", the noise, as in the papers; "v_prediction", v =
            sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) z_0 (Salimans and Ho 2022, section 4), which turns from the
            noise at small times to the latents at large ones. There a network that gives the noise must copy its
            input with a tiny error, since the little that it says about z_0, and so about what the condition asks for,
            is the difference.
        num_train_timesteps: steps of the forward diffusion.
        num_inference_steps: DDIM steps that `forward` takes.
        chunk_size: see `SliceAutoencoder`.

    Raises:
        InputError: for sizes and widths that do not fit each other.
    """

    latent_std: Tensor

    def __init__(
        self,
        num_channels: int,
        spatial_size: Sequence[int],
        channels: Sequence[int],
        num_res_blocks: int,
        latent_channels: int,
        attention_levels: Sequence[bool],
        denoiser_channels: Sequence[int],
        denoiser_res_blocks: int,
        denoiser_attention: Sequence[bool],
        slice_wise: bool = False,
        position_channels: int = 8,
        head_channels: int = 32,
        norm_groups: int = 32,
        num_conditions: int = 0,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        num_inference_steps: int = 50,
        chunk_size: int = 16,
        wavelet_levels: int = 0,
    ):
        super().__init__()
        whole_weights(self)
        autoencoder = (num_channels, spatial_size, channels, num_res_blocks, latent_channels, attention_levels)
        self.autoencoder: FirstStage
        if wavelet_levels:
            self.autoencoder = WaveletTransform(num_channels, spatial_size, wavelet_levels, in_plane=slice_wise)
        elif slice_wise:
            self.autoencoder = SliceAutoencoder(*autoencoder, norm_groups, position_channels, chunk_size)
        else:
            self.autoencoder = JointAutoencoder(*autoencoder, norm_groups)
        self.latent_shape = self.autoencoder.code_shape
        factor = 2 ** (len(denoiser_channels) - 1)
        if any(side % factor for side in self.latent_shape[1:]):
            raise InputError(
                f"latents of size {list(self.latent_shape[1:])} with {len(denoiser_channels)} levels of the denoiser",
                f"multiples of {factor}",
                "change spatial_size, or use fewer levels (denoiser_channels)",
            )
        if prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"prediction_type {prediction_type!r}", f"one of {PREDICTION_TYPES}", "set prediction_type"
            )
        self.num_conditions, self.prediction_type = num_conditions, prediction_type
        self.denoiser = Denoiser(
            len(spatial_size), self.latent_shape[0], denoiser_channels, denoiser_res_blocks, denoiser_attention,
            head_channels, norm_groups, num_conditions,
        )  # fmt: skip
        self.num_inference_steps = num_inference_steps
        self.ddpm = DDPMScheduler(num_train_timesteps, **SCHEDULE)
        self.ddim = EvenDDIMScheduler(num_train_timesteps, **SCHEDULE)
        self.ddim.set_timesteps(num_inference_steps)  # refused here, not after the training
        self.register_buffer("latent_std", torch.ones(()))

    def encode_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give mean and standard deviation of the diffusion's latents, each (batch, *latent_shape).

        Args:
            x: (batch, num_channels, *spatial_size) in [0, 1].
        """
        mean, std = self.autoencoder.encode(x)
        return mean / self.latent_std, std / self.latent_std

    def decode_latents(self, z: Tensor) -> Tensor:
        """Give image and mask probabilities (batch, num_channels, *spatial_size) of z (batch, *latent_shape)."""
        return self.autoencoder.probabilities(z * self.latent_std)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Encode and decode: the shape of x, in [0, 1]."""
        return self.autoencoder.reconstruct(x)

    def predict_noise(
        self, z_t: Tensor, t: Tensor, condition: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Predict the noise in z_t (batch, *latent_shape), the same shape.

        Args:
            z_t: noised latents.
            t: (batch,) times from 0 to `num_train_timesteps` - 1.
            condition: (batch, num_conditions) in [0, 1]; None for no sample.
            keep: (batch,) bool, which samples keep their condition, the others get the null embedding; None for all.
        """
        output = self.denoiser(z_t, t, condition, keep)
        if self.prediction_type == "epsilon":
            return output
        alpha_bar = self.ddpm.alphas_cumprod.to(z_t)[t].reshape(-1, *[1] * (z_t.ndim - 1))
        return alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * z_t

    def target(self, z_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the denoiser is to give for z_0 (batch, *latent_shape) noised to times t (batch,); the same shape."""
        return noise if self.prediction_type == "epsilon" else self.ddpm.get_velocity(z_0, noise, t)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        condition: Tensor | None = None,
        *,
        scheduler: str = "ddim",
        num_steps: int = 50,
        guidance_scale: float = 1.0,
        noises: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """Make image and mask probabilities (batch, num_channels, *spatial_size) in [0, 1] from noise.

        Args:
            noise: standard normal, (batch, *latent_shape).
            condition: (batch, num_conditions) in [0, 1], or None.
            scheduler: "ddim" (Song et al. 2021, deterministic), "ddpm" (Ho et al. 2020, every step of the training), or
                "dpm" (DPM-Solver++, see `dpm_solver`, deterministic): for some 10 steps, even in the logarithm of
                signal over noise.
            num_steps: of the scheduler; a divisor of `num_train_timesteps`, for "ddpm" that number itself, for "dpm"
                any number up to where two steps would share a time.
            guidance_scale: s of classifier-free guidance (Ho and Salimans 2022), eps_null + s (eps_cond - eps_null):
                0 ignores the condition, 1 takes it as it is, more exaggerates it.
            noises: for "ddpm": step index -> standard normal noise like `noise`, so that the caller decides the
                randomness of each sample. The last step needs none.

        Raises:
            InputError: these settings do not fit each other or the network.
        """
        self.check_sampling(scheduler, num_steps, guidance_scale)
        if (condition is not None and not self.num_conditions) or (scheduler == "ddpm") != (noises is not None):
            raise InputError(
                f"scheduler {scheduler}, noises {noises}, condition {condition}",
                "noises with ddpm alone, a condition for a conditioned network alone",
                "change the call",
            )

        def predict(z: Tensor, t: int) -> Tensor:
            times = z.new_full((z.shape[0],), t, dtype=torch.long)
            return self._guided_noise(z, times, condition, guidance_scale)

        if scheduler == "dpm":
            times = self._even_times(num_steps)
            signal = [float(self.ddpm.alphas_cumprod[t]) for t in times]

            def data(z: Tensor, index: int) -> Tensor:
                return (z - (1 - signal[index]) ** 0.5 * predict(z, times[index])) / signal[index] ** 0.5

            return self.decode_latents(dpm_solver(data, noise, signal))
        steps = self.ddim if scheduler == "ddim" else self.ddpm
        steps.set_timesteps(num_steps)
        z = noise
        for index, t in enumerate(steps.timesteps.tolist()):
            eps = predict(z, t)
            if noises is None:
                z, _ = self.ddim.step(eps, t, z)
            else:
                z = self._ddpm_step(eps, t, z, noises(index) if t > 0 else None)
        return self.decode_latents(z)

    def check_sampling(self, scheduler: str, num_steps: int, guidance_scale: float) -> None:
        """Raise `InputError` for settings that `sample` cannot follow."""
        if scheduler not in SCHEDULERS:
            raise InputError(f"scheduler {scheduler!r}", f"one of {list(SCHEDULERS)}", "set scheduler")
        if scheduler == "ddpm" and num_steps != self.ddpm.num_train_timesteps:
            raise InputError(
                f"num_steps {num_steps} of DDPM",
                f"{self.ddpm.num_train_timesteps}, every step of the training",
                "set num_steps, or use scheduler ddim",
            )
        if scheduler == "ddim":
            copy.copy(self.ddim).set_timesteps(num_steps)
        if scheduler == "dpm":
            self._even_times(num_steps)
        if guidance_scale != 1 and not self.num_conditions:
            raise InputError(
                f"guidance_scale {guidance_scale} of an unconditional network", "1", "leave guidance_scale out"
            )

    def forward(self, noise: Tensor) -> Tensor:
        """Sample with `num_inference_steps` steps of DDIM and no condition; see `sample`."""
        return self.sample(noise, num_steps=self.num_inference_steps)

    def ddim_step(self, z: Tensor, step: Tensor) -> Tensor:
        """One step of DDIM as `ScriptedDiffusion` takes it; `step` is (time, weight of z, weight of the noise)."""
        t = step[0].long().expand(z.shape[0])
        return step[1].to(z) * z + step[2].to(z) * self.predict_noise(z, t)

    def __prepare_scriptable__(self) -> nn.Module:
        scheduler = copy.copy(self.ddim)
        scheduler.set_timesteps(self.num_inference_steps)
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        # A step is linear in z and in the noise, so that the scheduler itself tells their weights.
        steps = [
            (float(t), float(scheduler.step(zero, t, one)[0]), float(scheduler.step(one, t, zero)[0]))
            for t in scheduler.timesteps.tolist()
        ]
        return ScriptedDiffusion(self, torch.tensor(steps, dtype=torch.float64, device=self.latent_std.device))

    def with_denoiser(self, denoiser: nn.Module) -> LatentDiffusion:
        """The same network, sharing everything but the denoiser (to sample from averaged weights)."""
        other = copy.copy(self)
        other._modules = {**self._modules, "denoiser": denoiser}
        return other

    def _even_times(self, num_steps: int) -> list[int]:
        """Falling times from the last of the training to 0 that are even in log(alpha / sigma)."""
        ratio = self.ddpm.alphas_cumprod.cpu().double().logit()  # twice that logarithm; it falls
        places = torch.linspace(float(ratio[-1]), float(ratio[0]), max(int(num_steps), 1), dtype=torch.float64)
        times = (ratio[None] - places[:, None]).abs().argmin(1).tolist()
        if num_steps < 1 or len(set(times)) < num_steps:
            raise InputError(
                f"num_steps {num_steps} of dpm, of which two would be at one time",
                "some 10 (8 to 20)", "set num_steps, or use scheduler ddim, which takes more steps",
            )  # fmt: skip
        return times

    def _guided_noise(self, z: Tensor, t: Tensor, condition: Tensor | None, scale: float) -> Tensor:
        if condition is None or scale == 0:
            return self.predict_noise(z, t)
        if scale == 1:
            return self.predict_noise(z, t, condition)
        keep = torch.arange(2 * len(z), device=z.device) >= len(z)
        both = self.predict_noise(torch.cat([z, z]), torch.cat([t, t]), torch.cat([condition, condition]), keep)
        null, conditional = both.chunk(2)
        return null + scale * (conditional - null)

    def _ddpm_step(self, eps: Tensor, t: int, z: Tensor, noise: Tensor | None) -> Tensor:
        """Step of MONAI's DDPM (Ho et al. 2020, algorithm 2) with noise from outside, which its `step` draws itself."""
        alpha_bar = self.ddpm.alphas_cumprod[t]
        z_0 = (z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        mean = self.ddpm._get_mean(t, z_0, z)
        return mean if noise is None else mean + self.ddpm._get_variance(t).sqrt() * noise
