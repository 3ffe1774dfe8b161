import math

import pytest
import torch

from scripts.dynamics.leapfrog import PhaseState, leapfrog_step
from scripts.dynamics.tempering import quadratic_inverse_temperatures, tempered_leapfrog


def potential(position):
    return 0.5 * position.square().sum() + (position[..., :1] * position[..., 1:] ** 2).sum()


def grad_potential(position):
    if not position.requires_grad:
        position = position.detach().requires_grad_()
    return torch.autograd.grad(potential(position), position, create_graph=True)[0]


def random_state():
    position, momentum = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return PhaseState(position, momentum)


def test_schedule_rises_from_beta_zero_to_one_and_is_quadratic():
    betas = quadratic_inverse_temperatures(4, 0.3)
    assert betas[0] == pytest.approx(0.3, abs=1e-15)
    assert betas[-1] == 1.0
    assert all(before < after for before, after in zip(betas[:-1], betas[1:], strict=True))
    temperatures = [1 / math.sqrt(beta) for beta in betas]
    falls = [temperatures[0] - temperature for temperature in temperatures]
    assert [fall / falls[1] for fall in falls] == pytest.approx([0, 1, 4, 9, 16])


@pytest.mark.parametrize("num_steps", [1, 3])
def test_log_determinant_of_the_tempered_map(num_steps):
    beta_zero, step_size = 0.3, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    def flat_map(flat):
        start = PhaseState(flat[None, :3], flat[None, 3:])
        end = tempered_leapfrog(start, grad_potential, step_size, num_steps, beta_zero)
        return torch.cat([end.position[0], end.momentum[0]])

    start = random_state()
    jacobian = torch.autograd.functional.jacobian(flat_map, torch.cat([start.position[0], start.momentum[0]]))
    sign, log_determinant = torch.linalg.slogdet(jacobian)
    assert sign == 1
    assert log_determinant.item() == pytest.approx(3 / 2 * math.log(beta_zero), abs=1e-12)


def test_without_tempering_it_is_leapfrog():
    start = state = random_state()
    gradient = grad_potential(start.position)
    for _ in range(3):
        state, gradient = leapfrog_step(state, gradient, grad_potential, 0.1)
    tempered = tempered_leapfrog(start, grad_potential, 0.1, 3, beta_zero=1.0)
    torch.testing.assert_close(tempered, state, rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_one_gradient_per_position_and_the_last_at_the_end(num_steps):
    seen = []

    def counted(position):
        seen.append(position)
        return grad_potential(position)

    start = random_state()
    end = tempered_leapfrog(start, counted, 0.1, num_steps, beta_zero=0.3)
    if num_steps == 0:
        assert end is start and not seen
    else:
        assert len(seen) == num_steps + 1
        assert seen[0] is start.position and seen[-1] is end.position
