"""Bootstrap over patients and samples: every figure is a function of how often each item was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .comparison import FEWEST_PATIENTS


@dataclass(frozen=True)
class Bootstrap:
    """Cluster bootstrap: whole groups (patients, or samples) are drawn with replacement, with all their items.

    A draw is a row of weights, the number of times that each item was drawn. The first row is all ones: the figure
    itself. Figures take weights instead of repeated items because a copy of an item is no neighbour and no second
    observation of it: nearest neighbours and pairwise kernels would see distances of 0 that no other patient
    brings.

    Attributes:
        resamples: number of draws.
        seed: of the draws.
        level: of the intervals.
    """

    resamples: int = 500
    seed: int = 0
    level: float = 0.95

    def weights(self, groups: np.ndarray, stream: int) -> np.ndarray:
        """Weights (1 + resamples, items) for items of the given groups (items,), numbered from 0 without a gap.

        `stream` keeps the draws of the two sides apart.
        """
        count = int(groups.max()) + 1
        rng = np.random.default_rng([self.seed, stream])
        drawn = np.ones((1 + self.resamples, len(groups)), np.int16)
        for row in drawn[1:]:
            row[:] = rng.multinomial(count, np.full(count, 1 / count))[groups]
        return drawn

    def summary(
        self, values: np.ndarray, fewest_groups: int, bounds: tuple[float, float] = (-np.inf, np.inf)
    ) -> dict[str, Any]:
        """Value, interval and shift of a figure from its `values` (1 + resamples,), the first being the figure.

        The interval has the width of the draws' percentile interval and is moved so that the mean of the draws
        comes to lie on the figure. Draws hold fewer different items, and many of these figures depend on how many
        there are (FID and Wasserstein distances grow, nearest neighbours recede); `shift`, the mean of the draws
        minus the figure, tells by how much. So the interval is about the figure at the same n, with other patients
        and samples. With 20 patients of 6 slices and 60 samples, nominal 95 % cover 87 to 96 % where the two sets
        differ by a standard deviation, and 95 to 100 % (too long) where they do not differ.

        What lies beyond `bounds`, the figure's possible values, is cut off. Without `FEWEST_PATIENTS` groups on
        the smaller side there is no interval. NaN: not defined.
        """
        value, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
        if not np.isfinite(value):
            return {"value": None, "interval": None, "shift": None}
        if fewest_groups < FEWEST_PATIENTS or len(draws) < max(2, 0.9 * self.resamples):
            return {"value": value, "interval": None, "shift": None}
        shift = float(draws.mean()) - value
        tail = 50 * (1 - self.level)
        low, high = np.clip(np.percentile(draws, [tail, 100 - tail]) - shift, *bounds)
        return {"value": value, "interval": [float(low), float(high)], "shift": shift}


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (draws,) of values (items,) or (draws, items) under weights (draws, items); NaN without weight."""
    total = weights.sum(axis=1, dtype=float)
    of_draws = np.broadcast_to(values, weights.shape)
    sums = np.array([(value * weight).sum(dtype=float) for value, weight in zip(of_draws, weights, strict=True)])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, sums / total, np.nan)
