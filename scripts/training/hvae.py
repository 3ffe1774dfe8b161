"""One training step of the VAE family, and its validation, for MONAI's supervised engines."""

from __future__ import annotations

from typing import Any

import torch
from monai.utils import CommonKeys as Keys
from torch import nn

from ..losses.adversarial import discriminator_loss, generator_loss
from ..losses.feature_reconstruction import FeatureReconstructionLoss
from ..losses.hvae import hvae_objective
from ..runtime.errors import InputError
from ..runtime.noise import draw_rows
from ..runtime.precision import autocast_dtype, check_finite
from .parallel import average_gradients, mean_terms


class HVAEUpdate:
    """dHVAE (Kebaili et al. 2024, eq. 12): minimise alpha * (-ELBO_H) + beta * (L_disc + L_rec), alpha = 1 - beta.

    With beta = 0 it is the HVAE, and with a network of K = 0 the VAE. Give it to MONAI's `SupervisedTrainer` as
    `iteration_update`; it returns the named terms of the step as floats, in nats per sample.

    Args:
        num_image_channels: how many of the channels are image, the others are mask.
        generator: source of the noise of the model and of the fakes.
        beta: weight of the regularisation, in [0, 1); the paper's best is 0.01.
        feature_loss: L_rec (eq. 10), or None to leave it out (ablation HVAE+disc).
        discriminator, discriminator_optimizer: L_disc (eq. 11), or None to leave it out (ablation HVAE+perc).
        discriminator_start: iteration from which the discriminator takes part (30,000 in the authors' code).
        discriminator_weight: factor of L_disc. Eq. 12 has none (1), but L_disc is a mean over patches and stands next
            to sums over thousands of pixels, so that it is hardly felt at 1.
        fakes: what the discriminator judges: "reconstruction" (the authors' code) or "prior" (eq. 11).
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
        beta: float = 0.0,
        feature_loss: FeatureReconstructionLoss | None = None,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
        discriminator_start: int = 30000,
        discriminator_weight: float = 1.0,
        fakes: str = "reconstruction",
        first_order: bool = False,
        autocast: str | None = None,
        device: torch.device | str = "cpu",
        gradient_clip: float | None = None,
    ):
        if not 0 <= beta < 1:
            raise InputError(f"beta {beta}", "a number in [0, 1)", "the paper's best is 0.01")
        if fakes not in ("reconstruction", "prior"):
            raise InputError(f"fakes {fakes!r}", "'reconstruction' or 'prior'", "set fakes")
        if not isinstance(first_order, bool):  # the command line makes a (true) string of "false"
            raise InputError(f"first_order {first_order!r}", "True or False", "write --first_order True")
        if beta > 0 and feature_loss is None and discriminator is None:
            raise InputError(f"beta {beta} without a regularisation", "a feature loss or a discriminator", "set beta 0")
        self.num_image_channels = num_image_channels
        self.generator = generator
        self.beta = beta
        self.feature_loss = feature_loss
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.discriminator_start = discriminator_start
        self.discriminator_weight = discriminator_weight
        self.fakes = fakes
        self.first_order = first_order
        self.autocast_dtype = autocast_dtype(autocast, device)
        self.gradient_clip = gradient_clip

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on `batch["image"]` `(batch, channels + labels, height, width)` and return its terms."""
        x = batch[Keys.IMAGE].to(engine.state.device, non_blocking=engine.non_blocking)
        x = x.as_tensor() if hasattr(x, "as_tensor") else x
        step = engine.state.iteration
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
            if self.feature_loss is not None:
                images = slice(0, self.num_image_channels)
                rec = self.feature_loss(probabilities[:, images], x[:, images])
                named |= {"feature": rec.feature, "pixel": rec.pixel}
                loss = loss + self.beta * rec.total
            if self.discriminator is not None and step > self.discriminator_start:
                fake = probabilities if self.fakes == "reconstruction" else self._prior_samples(engine.network, x)
                named["generator"] = generator_loss(self.discriminator, fake)
                loss = loss + self.beta * self.discriminator_weight * named["generator"]
        named = {"loss": loss, **named}
        check_finite(named, step)
        engine.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(engine.network)
        largest = float("inf") if self.gradient_clip is None else self.gradient_clip
        norm = torch.nn.utils.clip_grad_norm_(engine.network.parameters(), largest)
        check_finite({"gradient": norm}, step)
        engine.optimizer.step()
        if fake is not None:
            named["discriminator"] = self._train_discriminator(x, fake, step)
        return mean_terms(named)

    def _prior_samples(self, network: Any, x: torch.Tensor) -> torch.Tensor:
        noise = draw_rows(
            lambda n: torch.randn((n, *network.latent_shape), generator=self.generator), len(x), self.generator
        )
        return torch.sigmoid(network.decode(noise.to(x)))

    def _train_discriminator(self, real: torch.Tensor, fake: torch.Tensor, step: int) -> torch.Tensor:
        assert self.discriminator is not None and self.discriminator_optimizer is not None  # for the type checker
        loss = discriminator_loss(self.discriminator, real, fake)
        check_finite({"discriminator": loss}, step)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.discriminator)
        norm = torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), float("inf"))
        check_finite({"discriminator gradient": norm}, step)
        self.discriminator_optimizer.step()
        return loss


class HVAEEvaluation:
    """Objective on held-out slices, for MONAI's `SupervisedEvaluator`: the same noise at every validation."""

    def __init__(self, seed: int, autocast: str | None = None, device: torch.device | str = "cpu"):
        self.seed = seed
        self.autocast_dtype = autocast_dtype(autocast, device)

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Return `neg_elbo` in nats per sample."""
        x = batch[Keys.IMAGE].to(engine.state.device)
        generator = torch.Generator().manual_seed(self.seed + engine.state.iteration)
        engine.network.eval()
        with torch.no_grad():
            terms = hvae_objective(engine.network, x, generator, autocast_dtype=self.autocast_dtype)
        return {"neg_elbo": float(terms.loss)}
