"""Tempered Hamiltonian dynamics with a schedule of inverse temperatures fixed in advance."""

import math
from collections.abc import Callable

from torch import Tensor

from .leapfrog import PhaseState, leapfrog_step


def quadratic_inverse_temperatures(num_steps: int, beta_zero: float) -> list[float]:
    """Give the inverse temperatures beta_0, ..., beta_K, which rise to beta_K = 1.

    HVAE (Caterini et al. 2018), fixed tempering: 1 / sqrt(beta_k) goes from 1 / sqrt(beta_0) to 1 as a
    quadratic in k / K. With no step there is no schedule: the one value is 1.

    Args:
        num_steps: K >= 0.
        beta_zero: beta_0 itself, not its root, in (0, 1].
    """
    if num_steps == 0:
        return [1.0]
    hottest = 1.0 / math.sqrt(beta_zero)
    return [((1.0 - hottest) * (k / num_steps) ** 2 + hottest) ** -2 for k in range(num_steps + 1)]


def tempered_leapfrog(
    state: PhaseState,
    grad_potential: Callable[[Tensor], Tensor],
    step_size: Tensor | float,
    num_steps: int,
    beta_zero: float,
) -> PhaseState:
    """Run K leapfrog steps, each followed by a cooling of the momentum (HVAE, Caterini et al. 2018).

    After step k the momentum is multiplied by sqrt(beta_{k-1} / beta_k). The leapfrog steps keep volume, so
    the logarithm of the determinant of the whole map is (d / 2) log beta_0, with d the latent dimension.
    The gradient is evaluated once per position: K + 1 times, the last time at the returned position (and
    never for K = 0).

    Args:
        state: position and momentum, both (batch, *latent).
        grad_potential: position -> gradient of the potential there, (batch, *latent).
        step_size: positive; one number, or one for each latent dimension, (*latent).
        num_steps: K >= 0; with 0 the state is returned as it is.
        beta_zero: first inverse temperature beta_0, in (0, 1].
    """
    if num_steps == 0:
        return state
    betas = quadratic_inverse_temperatures(num_steps, beta_zero)
    gradient = grad_potential(state.position)
    for before, after in zip(betas[:-1], betas[1:], strict=True):
        state, gradient = leapfrog_step(state, gradient, grad_potential, step_size)
        state = PhaseState(state.position, math.sqrt(before / after) * state.momentum)
    return state
