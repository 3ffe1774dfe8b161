"""Second stage of latent diffusion: the training set as latents, a step of the denoiser, and its validation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..data.conditions import ConditionModel
from ..data.training_set import TrainingSet
from ..networks.latent_diffusion import LatentDiffusion
from ..runtime.errors import InputError
from ..runtime.noise import draw_rows
from ..runtime.precision import autocast_dtype, casting
from .averaging import WeightAverage
from .evaluation import ItemEvaluation, item_means
from .parallel import mean_terms
from .steps import descend

NOISE_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}
QUARTILES = 4
QUARTILE_LOSSES = tuple(f"noise_loss_q{i + 1}" for i in range(QUARTILES))


class Conditions(Protocol):
    """What gives every training item its scaled condition, such as `ConditionModel`."""

    def training_conditions(self) -> Tensor:
        """Conditions (items, length) in [0, 1], in the order of the training set; NaN for an item without."""


def condition_model(data: TrainingSet, num_conditions: int) -> ConditionModel | None:
    """What a network of so many conditions is asked for; None without.

    Raises:
        InputError: another number of conditions.
    """
    if not num_conditions:
        return None
    model = ConditionModel.fit(data)
    if num_conditions != (length := model.training_conditions().shape[1]):
        raise InputError(f"num_conditions {num_conditions}", f"0 or {length}", f"write --num_conditions {length}")
    return model


def sample_of(network: LatentDiffusion, conditions: ConditionModel | None, num_steps: int) -> Callable | None:
    """For `SampleGrid`: samples as the first training item with a condition is; None without conditions."""
    if conditions is None:
        return None
    table = conditions.training_conditions()
    first = table[~table.isnan().any(1)][:1].to(network.latent_std.device)
    return functools.partial(network.sample, num_steps=num_steps, condition=first)


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
        items = self.data.training_tensor()
        self.network.autoencoder.fit(items.split(self.batch_size))
        pairs = [self.network.encode_latents(batch.to(device)) for batch in items.split(self.batch_size)]
        self.mean, self.std = (torch.cat(parts).cpu() for parts in zip(*pairs, strict=True))
        # The variance of a draw: that of the means and, on average, of the posteriors.
        variance = self.mean.double().var(correction=0) + self.std.double().square().mean()
        self.network.latent_std.copy_(variance.sqrt())
        self.mean, self.std = (part / variance.sqrt().float() for part in (self.mean, self.std))

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
        self.condition_dropout = condition_dropout
        self.loss = NOISE_LOSSES[noise_loss]
        self.autocast_dtype = autocast_dtype(autocast, device)
        self.gradient_clip = gradient_clip

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
        with casting(device, self.autocast_dtype):
            predicted = network.denoiser(
                z_t, t, None if condition is None else condition.to(device), None if keep is None else keep.to(device)
            )
        loss = self.loss(predicted.float(), network.target(z_0, noise, t))
        descend({"loss": loss}, network.denoiser, engine.optimizer, step, self.gradient_clip)
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


class DiffusionEvaluation(ItemEvaluation):
    """Noise loss on held-out items, without condition.

    `noise_loss` and, from small to large times, `noise_loss_q1` to `noise_loss_q4`: for each item a time in every
    quarter of the diffusion, as the loss at large times falls within minutes, and that at small ones says how fine the
    details are.
    """

    def __init__(self, seed: int, noise_loss: str = "l2"):
        super().__init__(seed)
        self.noise_loss = noise_loss

    def item(self, network: Any, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """Evaluate one."""
        mean, _ = network.encode_latents(x)
        size, losses = network.ddpm.num_train_timesteps // QUARTILES, []
        for quartile in range(QUARTILES):
            t = torch.randint(quartile * size, (quartile + 1) * size, (len(mean),), generator=noise).to(x.device)
            added = torch.randn(mean.shape, generator=noise).to(mean)
            predicted = network.predict_noise(network.ddpm.add_noise(mean, added, t), t)
            losses.append(NOISE_LOSSES[self.noise_loss](predicted, added))
        named = dict(zip(QUARTILE_LOSSES, losses, strict=True))
        return {"noise_loss": torch.stack(losses).mean(), **named}


def noise_loss_means() -> dict[str, Metric]:
    """Metrics of a `DiffusionEvaluation` under their names after `val_`; the key metric is the noise loss."""
    return item_means(**{f"val_{name}": name for name in ("noise_loss", *QUARTILE_LOSSES)})
