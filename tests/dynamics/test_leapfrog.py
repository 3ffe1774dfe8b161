import math

import torch

from scripts.dynamics.leapfrog import PhaseState, leapfrog_step

STEP_SIZE = torch.tensor([0.05, 0.1, 0.2, 0.15], dtype=torch.float64)


def quartic(position):
    """A potential without symmetry, coupled between dimensions."""
    coupling = torch.tensor([1.0, -0.5, 0.7, 0.2], dtype=torch.float64)
    return 0.5 * position.square().sum() + 0.3 * (position @ coupling).sum() ** 4 + position.sin().sum()


def grad_quartic(position):
    if not position.requires_grad:
        position = position.detach().requires_grad_()
    return torch.autograd.grad(quartic(position), position, create_graph=True)[0]


def walk(state, grad_potential, step_size, num_steps):
    gradient = grad_potential(state.position)
    for _ in range(num_steps):
        state, gradient = leapfrog_step(state, gradient, grad_potential, step_size)
    return state


def random_state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    position, momentum = torch.randn(2, 1, 4, generator=generator, dtype=torch.float64)
    return PhaseState(position, momentum)


def test_walk_is_reversed_by_flipping_the_momentum():
    start = random_state()
    there = walk(start, grad_quartic, STEP_SIZE, 7)
    assert (there.position - start.position).abs().min() > 1e-2  # it went somewhere in every dimension
    back = walk(PhaseState(there.position, -there.momentum), grad_quartic, STEP_SIZE, 7)
    torch.testing.assert_close(back.position, start.position, rtol=0, atol=1e-11)
    torch.testing.assert_close(-back.momentum, start.momentum, rtol=0, atol=1e-11)


def test_determinant_is_one():
    def flat_walk(flat):
        end = walk(PhaseState(flat[None, :4], flat[None, 4:]), grad_quartic, STEP_SIZE, 3)
        return torch.cat([end.position[0], end.momentum[0]])

    start = random_state()
    flat = torch.cat([start.position[0], start.momentum[0]])
    jacobian = torch.autograd.functional.jacobian(flat_walk, flat)
    assert (jacobian - torch.eye(8, dtype=torch.float64)).norm() > 0.5
    assert abs(torch.linalg.det(jacobian).item() - 1) < 1e-11


def test_oscillator_follows_the_circle_with_second_order():
    errors, energies = [], []
    step_sizes = [0.2, 0.1, 0.05, 0.025]
    for step_size in step_sizes:
        start = PhaseState(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
        end = walk(start, lambda position: position, step_size, round(1.0 / step_size))
        errors.append(abs(end.position.item() - math.cos(1.0)) + abs(end.momentum.item() + math.sin(1.0)))
        energies.append(abs(0.5 * (end.position**2 + end.momentum**2).item() - 0.5))
    for values in (errors, energies):
        order = math.log(values[0] / values[-1]) / math.log(step_sizes[0] / step_sizes[-1])
        assert 1.9 < order < 2.1


def test_given_gradient_is_used_and_the_new_one_is_that_of_the_new_position():
    start = random_state()
    kicked, gradient = leapfrog_step(start, torch.zeros_like(start.position), grad_quartic, STEP_SIZE)
    torch.testing.assert_close(kicked.position, start.position + STEP_SIZE * start.momentum)
    torch.testing.assert_close(gradient, grad_quartic(kicked.position))
