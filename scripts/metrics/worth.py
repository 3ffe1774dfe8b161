"""How many real patients an arm is worth: where the curve of real patients alone reaches what the arm reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..runtime.errors import InputError
from .comparison import FEWEST_PATIENTS


def patients_worth(
    curve: Mapping[int, Mapping[str, float]],
    arm: Mapping[str, float],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """The number of real training patients with which real only reaches the arm's mean.

    Between two numbers the curve is a straight line over the logarithm of the number; where it goes down and up, its
    first crossing counts. The interval resamples evaluated patients, the same ones for curve and arm (percentiles); it
    covers neither trainings nor which patients were drawn for training.

    Args:
        curve: number of training patients -> evaluated patient -> value of real only; two numbers or more.
        arm: evaluated patient -> value, the same patients; those with NaN anywhere are left out everywhere.
        level: of the interval.
        resamples, seed: of the bootstrap.

    Returns:
        {"worth", "interval" [low, high] or None for too few patients, "smallest", "largest" number of the curve, "n"}.
        0 stands for fewer than the smallest number, infinity for more than the largest.

    Raises:
        InputError: fewer than two numbers, other patients, or none that is defined.
    """
    numbers = sorted(curve)
    if len(numbers) < 2:
        raise InputError(f"a curve over {numbers} real patients", "two numbers or more", "train with another number")
    if any(set(values) != set(arm) for values in curve.values()):
        raise InputError("other patients in the curve than in the arm", "the same", "evaluate all on the same patients")
    names = sorted(arm)
    table = np.array([*([curve[n][name] for name in names] for n in numbers), [arm[name] for name in names]], float)
    table = table[:, ~np.isnan(table).any(axis=0)]
    count = table.shape[1]
    if not count:
        raise InputError("no patient with a value in all of them", "one or more", "evaluate them")
    found: dict[str, Any] = {"smallest": numbers[0], "largest": numbers[-1], "n": count, "interval": None}
    found["worth"] = float(_crossing(numbers, table.mean(axis=1)[:, None])[0])
    if count >= FEWEST_PATIENTS:
        drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
        worth = _crossing(numbers, table[:, drawn].mean(axis=2))
        tail = (1 - level) / 2
        # Of values as they are: between a number and infinity there is no mean.
        low, high = (float(np.quantile(worth, at, method=how)) for at, how in ((tail, "lower"), (1 - tail, "higher")))  # type: ignore[call-overload]
        found["interval"] = [low, high]
    return found


def _crossing(numbers: list[int], means: np.ndarray) -> np.ndarray:
    """Where each curve first reaches its arm: (draws,), of means (numbers + 1, draws), the arm's last."""
    *curve, value = means
    logs = np.log(numbers)
    worth = np.where(curve[0] >= value, 0.0, np.inf)
    worth = np.where(curve[0] == value, numbers[0], worth)
    for i in range(len(numbers) - 1):
        rise = curve[i + 1] - curve[i]
        part = np.divide(value - curve[i], rise, out=np.zeros_like(value), where=rise != 0)
        crosses = np.isinf(worth) & (curve[i] < value) & (curve[i + 1] >= value)
        worth = np.where(crosses, np.exp(logs[i] + part * (logs[i + 1] - logs[i])), worth)
    return worth


def worth_words(value: float, found: Mapping[str, Any]) -> str:
    """A number of patients as a clinician reads it: "17", "more than 30", "fewer than 10"."""
    if np.isinf(value):
        return f"more than {found['largest']}"
    return f"fewer than {found['smallest']}" if value == 0 else f"{value:.0f}"
