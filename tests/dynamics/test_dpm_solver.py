"""DPM-Solver++(2M): second order, and exact where the data are one point."""

import numpy as np
import pytest
import torch

from scripts.dynamics.dpm_solver import dpm_solver


def signals(count, low=-3.0, high=2.0):
    """alpha^2 at times that are even in log(alpha / sigma)."""
    return (1 / (1 + np.exp(-2 * np.linspace(low, high, count)))).tolist()


def test_the_error_falls_as_the_square_of_the_step():
    """Gaussian data of deviation s: the flow keeps z / sqrt(alpha^2 s^2 + sigma^2)."""
    s, start = 0.5, torch.ones(1, dtype=torch.float64)

    def end(count):
        alpha2, seen = signals(count), []

        def predict(z, i):
            seen.append(z)
            a = alpha2[i]
            return a**0.5 * s**2 / (a * s**2 + 1 - a) * z

        dpm_solver(predict, start, alpha2)
        return float(seen[-1])

    first, last = signals(2)
    exact = ((last * s**2 + 1 - last) / (first * s**2 + 1 - first)) ** 0.5
    steps = np.array([32, 64, 128, 256])
    errors = [abs(end(n + 1) - exact) for n in steps]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.25) and errors[0] < 1e-3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_point_is_reached_in_any_number_of_steps(count):
    point, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    seen = []

    def predict(z, i):
        seen.append(z)
        return point

    alpha2 = signals(count)
    start = alpha2[0] ** 0.5 * point + (1 - alpha2[0]) ** 0.5 * noise
    assert torch.equal(dpm_solver(predict, start, alpha2), point)
    expected = alpha2[-1] ** 0.5 * point + (1 - alpha2[-1]) ** 0.5 * noise
    assert torch.allclose(seen[-1], expected)
