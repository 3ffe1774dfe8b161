"""One training step of the VAE family, its validation, and where its samples are drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from ..data.training_set import TrainingSet
from ..losses.adversarial import discriminator_loss, generator_loss
from ..losses.feature_reconstruction import FeatureReconstructionLoss
from ..losses.hvae import hvae_objective
from ..networks.features import FeatureExtractor, feature_extractor
from ..runtime.errors import InputError
from ..runtime.precision import autocast_dtype
from .averaging import WeightAverage
from .evaluation import ItemEvaluation
from .parallel import mean_terms
from .steps import descend, images


class HVAEUpdate:
    """dHVAE (Kebaili et al. 2024, eq. 12): minimise alpha * (-ELBO_H) + beta * (L_disc + L_rec), alpha = 1 - beta.

    With beta = 0 it is the HVAE, and with a network of K = 0 the VAE. Give it to MONAI's `SupervisedTrainer` as
    `iteration_update`; it returns the named terms of the step as floats, in nats per sample.

    Args:
        num_image_channels: how many of the channels are image, the others are mask.
        generator: source of the noise of the model.
        average: of the network's weights, updated after each step; or None.
        beta: weight of the regularisation, in [0, 1); the paper's best is 0.01.
        feature_loss: L_rec (eq. 10), or None to leave it out (ablation HVAE+disc).
        discriminator, discriminator_optimizer: L_disc (eq. 11), or None to leave it out (ablation HVAE+perc). Its fakes
            are the reconstructions, as in the authors' code.
        discriminator_start: iteration from which the discriminator takes part (30,000 in the authors' code).
        discriminator_weight: factor of L_disc. Eq. 12 has none (1), but L_disc is a mean over patches and stands next
            to sums over thousands of pixels, so that it is hardly felt at 1.
        adaptive_weight: balance L_disc as VQGAN does (Esser et al. 2021, eq. 7): instead of beta, its factor is
            `discriminator_weight` times the ratio of the gradients' norms, of reconstruction and L_rec over L_disc. So
            `discriminator_weight` says how loud the discriminator is beside what the decoder is told otherwise. The
            gradients are those at the decoder's logits, one linear layer behind VQGAN's: nearly the same, and cheap,
            as nothing is differentiated through the dynamics.
        first_order: take the potential's gradient as constant when differentiating the loss: faster, approximate.
        autocast: see `autocast_dtype`.
        device: where the network lies.
        gradient_clip: largest norm of the gradient, or None.

    Raises:
        InputError: a setting is out of range.
    """

    def __init__(
        self,
        num_image_channels: int,
        generator: torch.Generator,
        average: WeightAverage | None = None,
        beta: float = 0.0,
        feature_loss: FeatureReconstructionLoss | None = None,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
        discriminator_start: int = 30000,
        discriminator_weight: float = 1.0,
        adaptive_weight: bool = False,
        first_order: bool = False,
        autocast: str | None = None,
        device: torch.device | str = "cpu",
        gradient_clip: float | None = None,
    ):
        if not 0 <= beta < 1:
            raise InputError(f"beta {beta}", "a number in [0, 1)", "the paper's best is 0.01")
        for name, value in (("first_order", first_order), ("adaptive_weight", adaptive_weight)):
            if not isinstance(value, bool):  # the command line makes a (true) string of "false"
                raise InputError(f"{name} {value!r}", "True or False", f"write --{name} True")
        if beta > 0 and feature_loss is None and discriminator is None:
            raise InputError(f"beta {beta} without a regularisation", "a feature loss or a discriminator", "set beta 0")
        self.num_image_channels = num_image_channels
        self.generator, self.average = generator, average
        self.beta = beta
        self.feature_loss = feature_loss
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.discriminator_start = discriminator_start
        self.discriminator_weight, self.adaptive_weight = discriminator_weight, adaptive_weight
        self.first_order = first_order
        self.autocast_dtype = autocast_dtype(autocast, device)
        self.gradient_clip = gradient_clip

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on `batch["image"]` `(batch, channels + labels, height, width)` and return its terms."""
        x, step = images(batch, engine.state.device), engine.state.iteration
        engine.network.train()
        terms = hvae_objective(engine.network, x, self.generator, self.first_order, self.autocast_dtype)
        named = {
            "neg_elbo": terms.loss,
            "reconstruction": terms.reconstruction,
            "prior": terms.prior,
            "kinetic": terms.kinetic,
            "posterior": terms.posterior,
        }
        loss = (1 - self.beta) * terms.loss
        fake = None
        if self.beta > 0:
            probabilities = torch.sigmoid(terms.logits)
            told = (1 - self.beta) * terms.reconstruction
            if self.feature_loss is not None:
                image = slice(0, self.num_image_channels)
                rec = self.feature_loss(probabilities[:, image], x[:, image])
                named |= {"feature": rec.feature, "pixel": rec.pixel}
                loss, told = loss + self.beta * rec.total, told + self.beta * rec.total
            if self.discriminator is not None and step > self.discriminator_start:
                fake = probabilities
                named["generator"] = generator_loss(self.discriminator, fake)
                weight: float | Tensor = self.beta
                if self.adaptive_weight:
                    named["balance"] = weight = gradient_ratio(told, named["generator"], terms.logits)
                loss = loss + weight * self.discriminator_weight * named["generator"]
        named = {"loss": loss, **named}
        descend(named, engine.network, engine.optimizer, step, self.gradient_clip)
        if self.average is not None:
            self.average.update_parameters(engine.network)
        if fake is not None and self.discriminator is not None and self.discriminator_optimizer is not None:
            named["discriminator"] = discriminator_loss(self.discriminator, x, fake)
            descend({"discriminator": named["discriminator"]}, self.discriminator, self.discriminator_optimizer, step)
        return mean_terms(named)


def gradient_ratio(one: Tensor, other: Tensor, at: Tensor) -> Tensor:
    """Norm of the gradient of one scalar over that of another, both at the same tensor; a constant, at most 1e4.

    With several processes it is the ratio over the batch of all of them.
    """
    squares = []
    for scalar in (one, other):
        (gradient,) = torch.autograd.grad(scalar, at, retain_graph=True)
        squares.append(gradient.detach().float().square().sum())
    both = torch.as_tensor(idist.all_reduce(torch.stack(squares)))
    return (both[0].sqrt() / both[1].sqrt().clamp_min(1e-6)).clamp(max=1e4)


def features_of(
    data: TrainingSet, weights: str | Path | None, steps: int, seed: int, device: torch.device | str
) -> FeatureExtractor:
    """The extractor of the feature loss: with given weights, or trained on the masks of the training items."""
    items, channels = data.training_tensor(), data.num_image_channels
    images, masks = items.changed(lambda x: x[:, :channels]), items.changed(lambda x: x[:, channels:])
    return feature_extractor(weights, images, masks, steps=steps, seed=seed, device=device)


class HVAEEvaluation(ItemEvaluation):
    """Objective on held-out slices: `neg_elbo` in nats per sample."""

    def __init__(self, seed: int, autocast: str | None = None, device: torch.device | str = "cpu"):
        super().__init__(seed)
        self.autocast_dtype = autocast_dtype(autocast, device)

    def item(self, network: Any, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """Evaluate one."""
        return {"neg_elbo": hvae_objective(network, x, noise, autocast_dtype=self.autocast_dtype).loss}


class LatentDensity:
    """Where samples are drawn from: the prior, or a Gaussian fitted to the posterior of the training items.

    Attach it before the handlers that draw or save.

    Args:
        data: what is learnt from.
        network: module with `fit_latent_density`.
        density: "prior" (the papers) or "aggregate" (see `HVAE.fit_latent_density`).
        interval: epochs between fits; the last is at the end.
    """

    def __init__(self, data: TrainingSet, network: Any, density: str, interval: int):
        if density not in ("prior", "aggregate"):
            raise InputError(f"latent_density {density!r}", "'prior' or 'aggregate'", "set latent_density")
        self.data, self.network, self.density, self.interval = data, network, density, interval

    def attach(self, engine: Engine) -> None:
        """Act every `interval` epochs and at the end."""
        if self.density == "aggregate":
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval) | Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Fit."""
        self.network.eval()
        self.network.fit_latent_density(self.data.training_tensor())
