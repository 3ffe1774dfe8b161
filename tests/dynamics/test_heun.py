"""Heun's method: second order, exact on straight paths, and back again."""

import numpy as np
import pytest
import torch

from scripts.dynamics.heun import heun


def grow(x, t):
    return x * torch.cos(torch.tensor(t, dtype=torch.float64))


def test_the_error_falls_as_the_square_of_the_step():
    start, exact = torch.ones(1, dtype=torch.float64), np.exp(np.sin(2.0))
    steps = np.array([8, 16, 32, 64])
    errors = [abs(float(heun(grow, start, np.linspace(0, 2, n + 1).tolist())) - exact) for n in steps]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.15)


def test_a_straight_path_takes_one_step_and_leads_back():
    image, noise = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert torch.allclose(heun(lambda x, t: noise - image, noise, [1.0, 0.0]), image)
    assert torch.allclose(heun(lambda x, t: noise - image, image, [0.0, 0.3, 1.0]), noise)
