"""Second stage of latent diffusion: the training set as latents, a step of the denoiser, and its validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..data.training_set import TrainingSet
from ..networks.latent_diffusion import LatentDiffusion
from ..runtime.errors import InputError
from ..runtime.noise import draw_rows
from ..runtime.precision import autocast_dtype, check_finite
from .averaging import WeightAverage
from .parallel import average_gradients, mean_terms

NOISE_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}
QUARTILES = 4


class Conditions(Protocol):
    """What gives every training item its scaled condition, such as `ConditionModel`."""

    def training_conditions(self) -> Tensor:
        """Conditions (items, length) in [0, 1], in the order of the training set; NaN for an item without."""


class LatentSet(Dataset):
    """The training set, encoded once, with its latents' scale put into the network.

    Items are `{"mean", "std"}` of q(z | x), each (*latent_shape), divided by `latent_std`, and with `conditions` also
    `"condition"`. It is encoded when the training starts, by the autoencoder that the network then has: a resumed
    training goes on with its own, from the checkpoint. Attach it behind `Checkpoints`.

    Args:
        data: what is learnt from.
        network: gets `latent_std`, the standard deviation of the training latents, one number.
        conditions: of the items, or None.
        batch_size: items that are encoded at once.
    """

    def __init__(
        self, data: TrainingSet, network: LatentDiffusion, conditions: Conditions | None = None, batch_size: int = 1
    ):
        self.data, self.network, self.batch_size = data, network, batch_size
        self.conditions = None if conditions is None else conditions.training_conditions()
        self.mean = self.std = torch.empty(0)

    def attach(self, engine: Engine) -> None:
        """Act at the start."""
        engine.add_event_handler(Events.STARTED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Encode."""
        self.network.eval()
        self.network.latent_std.fill_(1)
        device = self.network.latent_std.device
        batches = [self.data.training[i : i + self.batch_size] for i in range(0, len(self), self.batch_size)]
        pairs = [
            self.network.encode_latents(torch.stack([item[Keys.IMAGE] for item in batch]).to(device))
            for batch in batches
        ]
        self.mean, self.std = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
        # The variance of a draw: that of the means and, on average, of the posteriors.
        variance = self.mean.double().var(correction=0) + self.std.double().square().mean()
        self.network.latent_std.copy_(variance.sqrt())
        self.mean, self.std = (part / variance.sqrt().float() for part in (self.mean, self.std))

    def as_handler(self) -> LatentSet:
        """Itself: config files need a call where a handler is named."""
        return self

    def __len__(self) -> int:
        return len(self.data.training)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Give the latents of a training item; see the class."""
        item = {"mean": self.mean[index], "std": self.std[index]}
        return item if self.conditions is None else {**item, "condition": self.conditions[index]}


class DiffusionUpdate:
    """A step on the noise loss (Ho et al. 2020, eq. 14; SBLDM, Kebaili et al. 2024b, section 2.1).

    Every step draws z_0 from q(z | x), a time, the noise, and which samples lose their condition (classifier-free
    guidance, Ho and Salimans 2022). Give it to MONAI's `SupervisedTrainer` as `iteration_update`.

    Args:
        generator: source of every random draw.
        average: of the denoiser's weights, updated after each step; or None.
        noise_loss: "l1" (the authors' code of SBLDM) or "l2", of noise or velocity (`prediction_type`).
        condition_dropout: probability that a sample is trained on without its condition.
        autocast: see `autocast_dtype`.
        device: where the network lies.
        gradient_clip: largest norm of the gradient, or None.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        generator: torch.Generator,
        average: WeightAverage | None = None,
        noise_loss: str = "l2",
        condition_dropout: float = 0.1,
        autocast: str | None = None,
        device: torch.device | str = "cpu",
        gradient_clip: float | None = 1.0,
    ):
        if noise_loss not in NOISE_LOSSES:
            raise InputError(f"noise_loss {noise_loss!r}", f"one of {sorted(NOISE_LOSSES)}", "set noise_loss")
        if not 0 <= condition_dropout <= 1:
            raise InputError(f"condition_dropout {condition_dropout}", "a number in [0, 1]", "set condition_dropout")
        self.generator, self.average = generator, average
        self.noise_loss, self.condition_dropout = noise_loss, condition_dropout
        self.autocast_dtype = autocast_dtype(autocast, device)
        self.gradient_clip = float("inf") if gradient_clip is None else gradient_clip

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on a batch of `LatentSet` and return its `loss`."""
        network, step, device = engine.network, engine.state.iteration, engine.state.device
        network.train()
        mean, std = batch["mean"].to(device), batch["std"].to(device)
        times = network.ddpm.num_train_timesteps
        t = self._rows(lambda n: torch.randint(0, times, (n,), generator=self.generator), mean)
        z_0 = mean + std * self._normal(mean)
        noise = self._normal(mean)
        condition, keep = self.drop(batch.get("condition"))
        z_t = network.ddpm.add_noise(z_0, noise, t)
        with torch.autocast(device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            predicted = network.denoiser(
                z_t, t, None if condition is None else condition.to(device), None if keep is None else keep.to(device)
            )
        loss = NOISE_LOSSES[self.noise_loss](predicted.float(), network.target(z_0, noise, t))
        check_finite({"loss": loss}, step)
        engine.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(network.denoiser)
        norm = torch.nn.utils.clip_grad_norm_(network.denoiser.parameters(), self.gradient_clip)
        check_finite({"gradient": norm}, step)
        engine.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(network.denoiser)
        return mean_terms({"loss": loss})

    def drop(self, condition: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Conditions (batch, length) with the flags of the samples that keep theirs, (batch,).

        A sample that has none (NaN) never keeps it; its numbers become 0, which the null embedding replaces.
        """
        if condition is None:
            return None, None
        kept = self._rows(lambda n: torch.rand(n, generator=self.generator), condition) >= self.condition_dropout
        return condition.nan_to_num(), kept & ~condition.isnan().any(1)

    def _normal(self, like: Tensor) -> Tensor:
        return self._rows(lambda n: torch.randn((n, *like.shape[1:]), generator=self.generator), like)

    def _rows(self, draw: Callable[[int], Tensor], like: Tensor) -> Tensor:
        """Drawn on the CPU, so that a seed gives the same numbers on every device, where `like` lies."""
        return draw_rows(draw, len(like), self.generator).to(like.device)


class DiffusionEvaluation:
    """Noise loss on held-out items, without condition, for MONAI's `SupervisedEvaluator`.

    At every validation the same noise, and for each item a time in every quarter of the diffusion: the loss at large
    times falls within minutes, that at small ones says how fine the details are.
    """

    def __init__(self, seed: int, noise_loss: str = "l2"):
        self.seed, self.noise_loss = seed, noise_loss

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Return `noise_loss` and, from small to large times, `noise_loss_q1` to `noise_loss_q4`."""
        network, device = engine.network, engine.state.device
        network.eval()
        generator = torch.Generator().manual_seed(self.seed + engine.state.iteration)
        losses = []
        with torch.no_grad():
            mean, _ = network.encode_latents(batch[Keys.IMAGE].to(device))
            size = network.ddpm.num_train_timesteps // QUARTILES
            for quartile in range(QUARTILES):
                t = torch.randint(quartile * size, (quartile + 1) * size, (len(mean),), generator=generator).to(device)
                noise = torch.randn(mean.shape, generator=generator).to(mean)
                predicted = network.predict_noise(network.ddpm.add_noise(mean, noise, t), t)
                losses.append(float(NOISE_LOSSES[self.noise_loss](predicted, noise)))
        named = {f"noise_loss_q{i + 1}": loss for i, loss in enumerate(losses)}
        return {"noise_loss": sum(losses) / QUARTILES, **named}
