"""One rule for every check: a sample is dropped where it is further out than all but a small share of real items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..metrics.comparison import FEWEST_PATIENTS
from ..runtime.errors import InputError, nearest

# Which share of real items each check may drop. Copies score far below any real item, and five checks look for them:
# with fewer than 500 real items, the nearest pair of patients that was seen is the limit of each.
LEVELS = {
    "fragments": 0.01,
    "largest_fragment": 0.01,
    "outside_body": 0.01,
    "mask_range": 0.01,
    "mask_joint": 0.01,
    "image_range": 0.01,
    "image_unlike": 0.01,
    "agreement": 0.05,
    "memorisation_pixels": 0.002,
    "memorisation_features": 0.002,
    "memorisation_structure": 0.002,
    "memorisation_detail": 0.002,
    "memorisation_halves": 0.002,
    "duplicates": 0.01,
}


def check_levels(given: Mapping[str, Any] | None) -> dict[str, float]:
    """The levels of all checks, those of `given` in place of the defaults.

    Raises:
        InputError: an unknown check, or no share from 0 to 0.5.
    """
    if not isinstance(given, Mapping | None):
        raise InputError(
            f"--thresholds {given!r}", "levels by name", """write --thresholds '{"agreement": 0.05, ...}'"""
        )
    for name, level in (given or {}).items():
        if name not in LEVELS:
            near = nearest(name, LEVELS)
            raise InputError(
                f"unknown threshold {name!r}",
                f"one of {', '.join(LEVELS)}",
                f"did you mean {near!r}?" if near else "see the list",
            )
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= 0.5:
            raise InputError(
                f"threshold {name} {level!r}",
                "the share of real items that the check may drop, 0 to 0.5 (0: none that were seen)",
                f"such as {LEVELS[name]}",
            )
    return {**LEVELS, **{name: float(level) for name, level in (given or {}).items()}}


@dataclass(frozen=True)
class Check:
    """Scores of real items, each judged as a sample is with its own patient taken out, and of samples.

    Attributes:
        key: its name in `LEVELS`.
        words: what the score is.
        low: small scores are suspicious, not large ones.
        level: share of real items beyond the threshold.
        real, samples: scores (items,); NaN where it is not defined, which flags nothing.
        groups: (real,) patients.
        held_out: (real,) bool, those that the generator never saw.
        real_bins, sample_bins: (items,) each bin has its own threshold; by default there is one.
        notes: (samples,) what a reason says besides, such as the feature that is out of range.
        without: (real,) the scores where a patient is not among those that the others are compared with, either; None
            where one patient hardly changes another's score. Of two patients who are alike by chance each would hide
            that the other, as a new one, is called a copy.
    """

    key: str
    words: str
    low: bool
    level: float
    real: np.ndarray
    samples: np.ndarray
    groups: np.ndarray
    held_out: np.ndarray
    real_bins: np.ndarray | None = None
    sample_bins: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    without: Callable[[str], np.ndarray] | None = None

    @cached_property
    def thresholds(self) -> np.ndarray:
        """The threshold of each bin: the last real item within it, so that what real items reach is never dropped."""
        return self._thresholds(self.real)

    def _thresholds(self, scores: np.ndarray) -> np.ndarray:
        """From scores (real,), NaN for items that have no say; NaN, which flags nothing, for a bin without any."""
        used = ~np.isnan(scores)
        bins = np.zeros(len(self.real), int) if self.real_bins is None else self.real_bins
        count = 1 if self.real_bins is None else int(self.real_bins.max()) + 1
        rule = (self.level, "lower") if self.low else (1 - self.level, "higher")
        found = [scores[used & (bins == i)] for i in range(count)]
        return np.array([np.quantile(x, rule[0], method=rule[1]) if len(x) else np.nan for x in found])  # type: ignore[call-overload]

    def beyond(self, scores: np.ndarray, bins: np.ndarray | None, thresholds: np.ndarray | None = None) -> np.ndarray:
        """Which scores (items,) are beyond the threshold of their bin: (items,) bool."""
        limits = (self.thresholds if thresholds is None else thresholds)[0 if bins is None else bins]
        return scores < limits if self.low else scores > limits

    @cached_property
    def flagged(self) -> np.ndarray:
        """Which samples are beyond: (samples,) bool."""
        return self.beyond(self.samples, self.sample_bins)

    @cached_property
    def real_flagged(self) -> np.ndarray:
        """Which real items the thresholds of all other patients flag: (real,) bool, what to expect of real data."""
        result = np.zeros(len(self.real), bool)
        for group in np.unique(self.groups):
            own = self.groups == group
            bins = None if self.real_bins is None else self.real_bins[own]
            others = self.real if self.without is None else self.without(group)
            if np.isnan(others[~own]).all():  # of three patients nobody is left to be relative to
                others = self.real
            result[own] = self.beyond(self.real[own], bins, self._thresholds(np.where(own, np.nan, others)))
        return result

    @property
    def defined(self) -> np.ndarray:
        """Which real items have a score: (real,) bool."""
        return ~np.isnan(self.real)

    def limit(self, index: int) -> float:
        """The threshold of sample `index`."""
        return float(self.thresholds[0 if self.sample_bins is None else self.sample_bins[index]])

    def reason(self, index: int) -> str:
        """Why sample `index` is dropped."""
        note = f" ({self.notes[index]})" if self.notes and self.notes[index] else ""
        score, limit = f"{self.samples[index]:.3g}", f"{self.limit(index):.3g}"
        return f"{self.words} {score}{note}, in real cases at {'least' if self.low else 'most'} {limit}"


def wilson_interval(count: int, n: int, level: float = 0.95) -> list[float] | None:
    """Interval of a share of independent items (Wilson 1927); None without items."""
    if n == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(int(count), int(n)).proportion_ci(level, "wilson")
    return [float(interval.low), float(interval.high)]


def patient_interval(
    values: np.ndarray, groups: np.ndarray, seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> list[float] | None:
    """Interval of the share of true `values` (items,), patients resampled whole (bootstrap, percentiles).

    Where all values are the same, resampling cannot tell how sure that is: then Wilson's, with patients as items. None
    for too few patients.
    """
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_PATIENTS:
        return None
    if values.min() == values.max():
        return wilson_interval(len(names) * int(values[0]), len(names), level)
    sums, counts = np.bincount(members, values.astype(float)), np.bincount(members)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return [float(low), float(high)]
