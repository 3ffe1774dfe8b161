"""Heun's method: an ordinary differential equation from one time to another, with an error of second order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Time = float | Tensor  # a tensor of no axes where a step is traced


def heun(derivative: Callable[[Tensor, Time], Tensor], x: Tensor, times: Sequence[Time]) -> Tensor:
    """Follow dx/dt = `derivative(x, t)` along `times`, and return x at the last of them.

    A step goes ahead by Euler's method and then takes the mean of the slopes at both of its ends; two evaluations a
    step (Heun 1900; for samplers Karras et al. 2022, algorithm 1).

    Args:
        derivative: of x at a time, in the shape of x.
        x: state at `times[0]`.
        times: rising or falling, two or more.
    """
    for now, then in pairwise(times):
        slope = derivative(x, now)
        ahead = x + (then - now) * slope
        x = x + (then - now) * (slope + derivative(ahead, then)) / 2
    return x
