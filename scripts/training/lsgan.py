"""One training step of the least-squares GAN, its validation, and the watch for mode collapse."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..data.training_set import TrainingSet
from ..losses.least_squares import discriminator_loss, generator_loss
from ..runtime.errors import InputError
from ..runtime.noise import draw_rows
from ..runtime.precision import autocast_dtype, check_finite
from ..sampling.sampler import latent_noise
from .handlers import TrainingRecord
from .parallel import average_gradients, mean_terms

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
        average: AveragedModel,
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
        self.device_type, self.autocast_dtype = torch.device(device).type, autocast_dtype(autocast, device)

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on `batch["image"]` (batch, channels + labels, ...) and return its terms."""
        real = batch[Keys.IMAGE].to(engine.state.device, non_blocking=engine.non_blocking)
        real = real.as_tensor() if hasattr(real, "as_tensor") else real
        step, network = engine.state.iteration, engine.network
        network.train()
        self.discriminator.train()
        shape = network.latent_shape
        noise = draw_rows(lambda n: torch.randn((n, *shape), generator=self.generator), len(real), self.generator)
        noise = noise.to(real)
        with self._autocast():
            fake = network(noise)
            seen = self._moved(real), self._moved(fake)
            on_real, on_fake = self.discriminator(torch.cat([seen[0], seen[1].detach()])).chunk(2)
        judging = discriminator_loss(on_real, on_fake, self.real_label)
        self._descend("discriminator", judging, self.discriminator, self.discriminator_optimizer, step)
        self.discriminator.requires_grad_(False)
        with self._autocast():
            making = generator_loss(self.discriminator(seen[1]), self.real_label)
        self._descend("generator", making, network, engine.optimizer, step)
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

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def _descend(
        self, name: str, loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, step: int
    ) -> None:
        check_finite({name: loss}, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(network)
        largest = float("inf") if self.gradient_clip is None else self.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), largest)
        check_finite({f"{name} gradient": norm}, step)
        optimizer.step()


class LSGANEvaluation:
    """Mean score of held-out real samples, for MONAI's `SupervisedEvaluator` with the discriminator as its network.

    Where it falls far below `score_real` of the training, the discriminator has learnt the training cases by heart,
    and what it still teaches the generator is to repeat them.
    """

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Return `score_held_out`."""
        engine.network.eval()
        with torch.no_grad():
            scores = engine.network(batch[Keys.IMAGE].to(engine.state.device))
        return {"score_held_out": float(scores.mean())}


class CollapseMonitor:
    """Watch for mode collapse, where a generator makes the same few samples whatever the noise.

    Measured is the mean Euclidean distance between two of `count` samples, always of the same noise, divided by
    that between two of as many training items; with all channels (`diversity`) and with the mask channels alone
    (`mask_diversity`). They join the terms of an epoch's last step, and so the log of the losses, and those at the
    end go into the provenance.

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

    def attach(self, engine: Engine) -> None:
        """Act in the last step of every `interval`-th epoch and of the training; attach it before what logs."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Measure, log and warn, if this is the step for it."""
        state: Any = engine.state
        if state.iteration % state.epoch_length or (state.epoch % self.interval and state.epoch != state.max_epochs):
            return
        measured = self.measure()
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


class HeldOutDistance:
    """How near a generator's samples come to held-out items, for MONAI's `SupervisedEvaluator`.

    The Euclidean distance of an item to the nearest of `count` samples, divided by that to the nearest of `count`
    training items, in the mean over the items: 1 where the samples lie as near as the training items do.

    Args:
        data: what was learnt from.
        count: samples, and training items spread evenly, to choose from.
        seed: of the samples' noise.
    """

    def __init__(self, data: TrainingSet, count: int = 64, seed: int = 0):
        self.data, self.count, self.seed = data, min(count, len(data.training)), seed
        self.samples = torch.empty(0)

    @torch.no_grad()
    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Return `held_out_distance`."""
        network, device = engine.network, engine.state.device
        if engine.state.iteration == 1:  # the weights may be others than at the last run
            network.eval()
            noise = torch.stack([latent_noise(network.latent_shape, self.seed, i) for i in range(self.count)])
            self.samples = torch.cat([network(part.to(device)).float().cpu() for part in noise.split(4)]).flatten(1)
        chosen = torch.linspace(0, len(self.data.training) - 1, self.count).long().tolist()
        real = torch.stack([self.data.training[index][Keys.IMAGE] for index in chosen]).flatten(1)
        x = torch.as_tensor(batch[Keys.IMAGE]).flatten(1)
        ratio = torch.cdist(x, self.samples).amin(1) / torch.cdist(x, real).amin(1).clamp_min(1e-12)
        return {"held_out_distance": float(ratio.mean())}
