"""One training step of the least-squares GAN, its validation, and the watch for mode collapse."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn

from ..data.training_set import TrainingSet
from ..losses.least_squares import discriminator_loss, generator_loss
from ..metrics.energy import EnergyScore
from ..runtime.errors import InputError
from ..runtime.noise import draw_rows
from ..runtime.precision import autocast_dtype, casting
from ..sampling.sampler import latent_noise
from .averaging import WeightAverage
from .evaluation import ItemEvaluation
from .parallel import mean_terms
from .record import TrainingRecord
from .steps import descend, images

logger = logging.getLogger(__name__)


class LSGANUpdate:
    """LSGAN (Mao et al. 2017): a step of the discriminator on real and fake samples, then one of the generator.

    Give it to MONAI's `SupervisedTrainer`, whose network and optimizer are the generator's, as `iteration_update`. It
    returns as floats `generator` and `discriminator`, the two losses, `loss`, their sum, and `score_real` and
    `score_fake`, the mean scores: apart at `real_label` and 0 where the discriminator wins, together where it cannot
    tell.

    Args:
        discriminator, discriminator_optimizer: the judge; `scripts.networks.lsgan.Discriminator`.
        generator: source of the noise.
        average: running mean of the generator's weights, which is what samples are drawn from.
        real_label: target of the real samples' scores, in (0, 1]; below 1 it is one-sided label smoothing.
        shift: largest translation of what the discriminator sees, as a share of the grid, in [0, 0.5]; 0 is none.
            Real and fake samples are moved at random alike (DiffAugment, Zhao et al. 2020): a discriminator of few
            cases then learns them by heart later.
        gradient_clip: largest norm of the gradient of either network, or None.
        autocast: see `scripts.runtime.precision.autocast_dtype`.
        device: where the networks lie.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        discriminator_optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        average: WeightAverage,
        real_label: float = 0.9,
        shift: float = 0.0,
        gradient_clip: float | None = None,
        autocast: str | None = None,
        device: torch.device | str = "cpu",
    ):
        if not 0 < real_label <= 1:
            raise InputError(f"real_label {real_label}", "a number in (0, 1]", "1 is no label smoothing, use 0.9")
        if not 0 <= shift <= 0.5:
            raise InputError(f"shift {shift}", "a number in [0, 0.5], a share of the grid", "use 0 or 0.125")
        self.discriminator, self.discriminator_optimizer = discriminator, discriminator_optimizer
        self.generator, self.average = generator, average
        self.real_label, self.shift, self.gradient_clip = real_label, shift, gradient_clip
        self.autocast_dtype = autocast_dtype(autocast, device)

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on `batch["image"]` (batch, channels + labels, ...) and return its terms."""
        real, step, network = images(batch, engine.state.device), engine.state.iteration, engine.network
        network.train()
        self.discriminator.train()
        shape = network.latent_shape
        noise = draw_rows(lambda n: torch.randn((n, *shape), generator=self.generator), len(real), self.generator)
        noise = noise.to(real)
        with casting(real.device, self.autocast_dtype):
            fake = network(noise)
            seen = self._moved(real), self._moved(fake)
            on_real, on_fake = self.discriminator(torch.cat([seen[0], seen[1].detach()])).chunk(2)
        judging = discriminator_loss(on_real, on_fake, self.real_label)
        judge, judge_optimizer = self.discriminator, self.discriminator_optimizer
        descend({"discriminator": judging}, judge, judge_optimizer, step, self.gradient_clip)
        self.discriminator.requires_grad_(False)
        with casting(real.device, self.autocast_dtype):
            making = generator_loss(self.discriminator(seen[1]), self.real_label)
        descend({"generator": making}, network, engine.optimizer, step, self.gradient_clip)
        self.discriminator.requires_grad_(True)
        self.average.update_parameters(network)
        named = {
            "loss": judging + making,
            "generator": making,
            "discriminator": judging,
            "score_real": on_real.mean(),
            "score_fake": on_fake.mean(),
        }
        return mean_terms(named)

    def _moved(self, x: Tensor) -> Tensor:
        """Every sample of a batch translated by whole pixels, zeros coming in, with gradients."""
        if not self.shift:
            return x
        size = torch.tensor(x.shape[2:])
        largest = (self.shift * size).long()
        drawn = draw_rows(lambda n: torch.rand((n, len(size)), generator=self.generator), len(x), self.generator)
        steps = (drawn * (2 * largest + 1)).long() - largest
        # `pad` counts from the last axis; a negative width crops
        widths = torch.stack([steps, -steps], dim=-1).flip(1).flatten(1).tolist()
        return torch.stack([nn.functional.pad(item, width) for item, width in zip(x, widths, strict=True)])


class LSGANEvaluation(ItemEvaluation):
    """Held-out items against a generator's samples, `energy` (see `EnergyScore`), and before the discriminator.

    `score_held_out` is the discriminator's score of a held-out item: where it falls far below `score_real` of the
    training, the discriminator has learnt the training cases by heart, and what it still teaches the generator is to
    repeat them.

    Args:
        data: what is learnt from.
        discriminator: None: no `score_held_out`.
        count: samples, and training items spread evenly that set the unit; no more than there are items.
        seed: of the samples' noise, the same at every validation.
    """

    def __init__(self, data: TrainingSet, discriminator: nn.Module | None = None, count: int = 64, seed: int = 0):
        super().__init__(seed)
        self.discriminator, self.count = discriminator, max(2, min(count, len(data.training)))
        chosen = torch.linspace(0, len(data.training) - 1, self.count).long().tolist()
        self.reference = torch.stack([data.training[index][Keys.IMAGE] for index in chosen])

    def start(self, network: Any, device: torch.device) -> None:
        """Draw the samples: the weights may be others than at the last run."""
        noise = torch.stack([latent_noise(network.latent_shape, self.seed, i) for i in range(self.count)])
        samples = torch.cat([network(part.to(device)).float() for part in noise.split(4)])
        self.score = EnergyScore(samples, self.reference.to(device))
        if self.discriminator is not None:
            self.discriminator.eval()

    def item(self, network: Any, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """Evaluate one."""
        found = {"energy": self.score(x)}
        return found if self.discriminator is None else {**found, "score_held_out": self.discriminator(x).mean()}


class CollapseMonitor:
    """Watch for mode collapse, where a generator makes the same few samples whatever the noise.

    Measured is the mean Euclidean distance between two of `count` samples, always of the same noise, divided by
    that between two of as many training items; with all channels (`diversity`) and with the mask channels alone
    (`mask_diversity`). They join the terms of an epoch's last step, and so the log of the losses, and those at the
    end go into the provenance, also when a resumed training finds all its steps done.

    Args:
        data: what is learnt from.
        network: what samples are drawn from, with `latent_shape`.
        record: of the training, where the last values are noted.
        interval: epochs between measurements.
        threshold: warn when one of the two values is below it.
        count: samples, and items, to compare; no more than there are items.
        seed: of the noise.
    """

    def __init__(
        self,
        data: TrainingSet,
        network: Any,
        record: TrainingRecord,
        interval: int,
        threshold: float,
        count: int = 32,
        seed: int = 0,
    ):
        self.data, self.network, self.record = data, network, record
        self.interval, self.threshold, self.seed = interval, threshold, seed
        self.count = min(count, len(data.training))
        self.measured: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Act in the last step of every `interval`-th epoch and of the training; attach it before what logs."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.measured or self.record.noting(**self.measure()))

    def __call__(self, engine: Engine) -> None:
        """Measure, log and warn, if this is the step for it."""
        state: Any = engine.state
        if state.iteration % state.epoch_length or (state.epoch % self.interval and state.epoch != state.max_epochs):
            return
        self.measured = measured = self.measure()
        state.output |= measured
        self.record.noting(**measured)
        if min(measured.values()) < self.threshold:
            logger.warning(
                "epoch %d: %d samples of the generator differ from each other %.2f times as much as %d training items "
                "(their masks %.2f times; usual is 0.5 to 1). Below %g it makes nearly the same sample from any noise: "
                "mode collapse. In the first epochs this passes. If it stays, train anew in another bundle_root with "
                "another --seed or a lower --discriminator_learning_rate, or use a bundle that is not a GAN.",
                state.epoch, self.count, measured["diversity"], self.count, measured["mask_diversity"], self.threshold,
            )  # fmt: skip

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """`diversity` and `mask_diversity` now."""
        chosen = torch.linspace(0, len(self.data.training) - 1, self.count).long().tolist()
        real = torch.stack([self.data.training[index]["image"] for index in chosen])
        noise = torch.stack([latent_noise(self.network.latent_shape, self.seed, i) for i in range(self.count)])
        device = next(self.network.parameters()).device
        self.network.eval()
        fake = torch.cat([self.network(part.to(device)).float().cpu() for part in noise.split(4)])
        masks = slice(self.data.num_image_channels, None)
        return {
            "diversity": _spread(fake) / _spread(real),
            "mask_diversity": _spread(fake[:, masks]) / _spread(real[:, masks]),
        }


def _spread(x: Tensor) -> float:
    """Mean Euclidean distance between two different items of a batch; not 0, so that ratios exist."""
    return max(float(torch.pdist(x.flatten(1)).mean()), 1e-12)
