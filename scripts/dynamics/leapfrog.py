"""One leapfrog step of Hamiltonian dynamics, as a pure function that knows no model."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class PhaseState(NamedTuple):
    """A point of phase space; both tensors are (batch, *latent)."""

    position: Tensor
    momentum: Tensor


def leapfrog_step(
    state: PhaseState, gradient_here: Tensor, grad_potential: Callable[[Tensor], Tensor], step_size: Tensor | float
) -> tuple[PhaseState, Tensor]:
    """Move a state by one leapfrog step with unit mass (dHVAE, Kebaili et al. 2024, eq. 7).

    The map is reversible, keeps volume, and its error in energy falls as the square of the step size.

    Args:
        state: position and momentum, both (batch, *latent).
        gradient_here: gradient of the potential at ``state.position``, (batch, *latent).
        grad_potential: position -> gradient of the potential there; called once.
        step_size: positive; one number, or one for each latent dimension, (*latent).

    Returns:
        The new state, and the gradient at its position, which is the ``gradient_here`` of the next step.
    """
    half = state.momentum - 0.5 * step_size * gradient_here  # momentum at k + 1/2
    position = state.position + step_size * half  # position at k + 1
    gradient_there = grad_potential(position)
    momentum = half - 0.5 * step_size * gradient_there  # momentum at k + 1
    return PhaseState(position, momentum), gradient_there
