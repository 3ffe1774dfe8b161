"""Negative evidence lower bound of the Hamiltonian VAE for image and mask channels."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dynamics.leapfrog import PhaseState
from ..dynamics.tempering import tempered_leapfrog
from ..networks.hvae import HVAE
from ..runtime.errors import InputError
from ..runtime.noise import draw_rows
from ..runtime.precision import casting


class HVAETerms(NamedTuple):
    """The objective and its parts: scalars in nats per sample, means over the batch.

    ``loss`` is the sum ``reconstruction + prior + kinetic + posterior``.
    """

    loss: Tensor
    reconstruction: Tensor  # -log p(x | z_K), summed over pixels and channels
    prior: Tensor  # -log N(z_K; 0, I)
    kinetic: Tensor  # kinetic energy gained, |rho_K|^2 / 2 - |gamma|^2 / 2; 0 without dynamics
    posterior: Tensor  # log q(z_0 | x)
    logits: Tensor  # of x at z_K, (batch, channels, height, width)
    mean: Tensor  # of q(z_0 | x), (batch, *latent_shape)
    log_var: Tensor  # of q(z_0 | x), (batch, *latent_shape)
    latent: Tensor  # z_K, (batch, *latent_shape)


class _Potential:
    """Potential -log p(x, z) of a batch; it keeps its last decoding, as the loss needs that at z_K."""

    def __init__(self, network: HVAE, x: Tensor, first_order: bool, autocast_dtype: torch.dtype | None):
        self.network = network
        self.x = x
        self.differentiable = torch.is_grad_enabled()
        self.create_graph = self.differentiable and not first_order
        self.autocast_dtype = autocast_dtype
        self.weights = network.standardised_weights(autocast_dtype)
        self.decoding: tuple[Tensor, ...] = ()  # -log p(x | z) summed over the batch, logits

    def encode(self) -> tuple[Tensor, Tensor]:
        return self._run(self.network.encode, self.x)

    def decode(self, z: Tensor) -> None:
        self.decoding = self._decode(z)

    def gradient(self, z: Tensor) -> Tensor:
        self.decoding = ()  # frees the graph of the last position, unless its gradient is part of one
        gradient, *decoding = self._differentiate(z)
        self.decoding = tuple(decoding)
        return gradient

    def _run(self, layers: Callable[[Tensor], Any], tensor: Tensor) -> Any:
        """Run encoder or decoder on the weights standardised once, under autocast if asked for."""
        with self.network.using_weights(self.weights), casting(tensor.device, self.autocast_dtype):
            return layers(tensor)

    def _decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._run(self.network.decode, z)
        # Summing over the batch before differentiating is right, as no layer mixes samples.
        return F.binary_cross_entropy_with_logits(logits, self.x, reduction="sum"), logits

    def _differentiate(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            nll, logits = self._decode(z)
            (of_nll,) = torch.autograd.grad(nll, z, create_graph=self.create_graph, retain_graph=True)
        if not self.differentiable:
            nll, logits = nll.detach(), logits.detach()
        return of_nll + (z if self.create_graph else z.detach()), nll, logits


def hvae_objective(
    network: HVAE,
    x: Tensor,
    generator: torch.Generator | None = None,
    first_order: bool = False,
    autocast_dtype: torch.dtype | None = None,
) -> HVAETerms:
    """Estimate the negative bound -ELBO_H of a batch.

    HVAE (Caterini et al. 2018), and dHVAE (Kebaili et al. 2024), eq. 8, on image and mask channels together.
    Draw z_0 ~ q(z | x) and gamma ~ N(0, I), start from the momentum rho_0 = gamma / sqrt(beta_0), and run K
    tempered leapfrog steps to (z_K, rho_K). The starting density is

        q(z_0 | x) N(rho_0; 0, I / beta_0) = q(z_0 | x) beta_0^(d/2) N(gamma; 0, I)

    and the map's log-determinant is (d/2) log beta_0: the leapfrog steps keep volume, and the coolings
    multiply the d momenta by sqrt(beta_0) in all. The density of (z_K, rho_K) is therefore
    q(z_0 | x) N(gamma; 0, I): the two terms (d/2) log beta_0 cancel. Against the target
    p(x, z_K) N(rho_K; 0, I),

        -ELBO_H = E[-log p(x | z_K) - log N(z_K; 0, I) + |rho_K|^2 / 2 - |gamma|^2 / 2 + log q(z_0 | x)].

    |gamma|^2 / 2 is taken at the draw, not as its mean d/2, since it cancels most of the noise of
    |rho_K|^2 / 2. With K = 0 the two are equal and this is the plain VAE's objective.

    Args:
        network: encoder, decoder, K, step sizes and beta_0.
        x: (batch, channels, height, width) in [0, 1].
        generator: source of every random draw: first of z_0, then of gamma.
        first_order: take the gradient of the potential as a constant when the loss is differentiated:
            faster and leaner, but the gradients of the loss are then approximate. The loss is the same.
        autocast_dtype: run encoder and decoder under autocast with this type; the terms stay in x's type.

    Raises:
        InputError: where x has another number of channels or another size than the network.
    """
    expected = (network.num_channels, *network.spatial_size)
    if x.shape[1:] != expected:
        raise InputError(
            f"a batch of shape {tuple(x.shape)}",
            f"(batch, channels, height, width) = (any, {', '.join(map(str, expected))})",
            "set num_channels and spatial_size of the network as the data has them",
        )
    potential = _Potential(network, x, first_order, autocast_dtype)
    mean, log_var = potential.encode()
    noise = _normal_like(mean, generator)
    position = mean + torch.exp(0.5 * log_var) * noise
    kinetic = torch.zeros_like(mean[0, 0, 0, 0])
    if network.num_leapfrog_steps == 0:
        potential.decode(position)
    else:
        gamma = _normal_like(mean, generator)
        start = PhaseState(position, gamma / math.sqrt(network.beta_zero))
        position, momentum = tempered_leapfrog(
            start, potential.gradient, network.step_size(), network.num_leapfrog_steps, network.beta_zero
        )
        kinetic = 0.5 * (momentum.square().sum() - gamma.square().sum()) / len(x)
    normaliser = 0.5 * math.log(2 * math.pi) * mean[0].numel()
    nll, logits = potential.decoding
    reconstruction = nll / len(x)
    prior = 0.5 * position.square().sum() / len(x) + normaliser
    posterior = -0.5 * (log_var.sum() + noise.square().sum()) / len(x) - normaliser
    loss = reconstruction + prior + kinetic + posterior
    return HVAETerms(loss, reconstruction, prior, kinetic, posterior, logits, mean, log_var, position)


def _normal_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw on the generator's device, so that a seed gives the same numbers on every device."""
    device = like.device if generator is None else generator.device
    noise = draw_rows(
        lambda n: torch.randn((n, *like.shape[1:]), generator=generator, device=device, dtype=like.dtype),
        len(like), generator,
    )  # fmt: skip
    return noise.to(like.device)
