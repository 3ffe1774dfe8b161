"""DPM-Solver++(2M): a diffusion's deterministic path in few steps, with an error of second order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor


def dpm_solver(predict: Callable[[Tensor, int], Tensor], z: Tensor, signal: Sequence[float]) -> Tensor:
    """Follow the probability-flow ODE of a variance-preserving diffusion from noise to data.

    Between two times the equation is linear but for the data that the network predicts, and its solution is exact for
    a prediction that is linear in lambda = log(alpha / sigma) (Lu et al. 2022, "DPM-Solver++", algorithm 2, 2M):

        z(i) = sigma(i) / sigma(i-1) z(i-1) - alpha(i) (exp(-h(i)) - 1) D(i),    h(i) = lambda(i) - lambda(i-1)
        D(i) = x(i-1) + h(i) / (2 h(i-1)) (x(i-1) - x(i-2))

    with x(i) the data predicted at time i, and D(1) = x(0). One evaluation a step; the last takes the data as they
    are predicted at the last time.

    Args:
        predict: state and the number of its time -> the data, in the shape of the state.
        z: state at the first time.
        signal: alpha^2 of the times, rising, in (0, 1); sigma^2 = 1 - alpha^2.
    """
    alpha, sigma = ([math.sqrt(value) for value in values] for values in (signal, [1 - a for a in signal]))
    steps = [math.log(a) - math.log(s) for a, s in zip(alpha, sigma, strict=True)]
    steps = [0.0, *(there - here for here, there in pairwise(steps))]
    data = predict(z, 0)
    direction = data
    for i in range(1, len(alpha)):
        z = sigma[i] / sigma[i - 1] * z - alpha[i] * math.expm1(-steps[i]) * direction
        before, data = data, predict(z, i)
        direction = data if i + 1 == len(alpha) else data + steps[i + 1] / (2 * steps[i]) * (data - before)
    return data
