"""Intensities to [0, 1] and back: one affine map a channel, and where it is needed a curve, stored beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..runtime.errors import InputError
from .cases import Case

# Share of [0, 1] kept free below the tissue of masked spaces, so that outside (0) and tissue can be told apart.
MASK_MARGIN = 0.1
TAIL_PERCENT = 0.05
# A channel is curved where nine tenths of its voxels lie in the lowest fifth of its range.
BULK_PERCENT, LOWEST = 90, 0.2
LINEAR, AUTO = "linear", "auto"


@dataclass(frozen=True)
class Scaling:
    """Map of intensities `low..high` to [0, 1] for each channel; values beyond are clipped.

    In a preprocessed space one map serves all cases: nnU-Net normalised whole volumes, and normalising slices or
    cases again would destroy what it kept. In a raw space the units differ between scanners, so each case has its
    own map (its own percentiles), and samples go back through the median case's.

    Uptake in PET spans two orders of magnitude: on a straight line nine tenths of a slice lie below 0.1, and a model
    that draws in [0, 1] sees no anatomy. A curved channel goes on by asinh(t / knee) / asinh(1 / knee), which is
    straight among ordinary tissue and logarithmic far above it, as the intensities of `data.holes` are.

    Attributes:
        low, high: intensities that become 0 and 1, one a channel.
        per_case: each case is scaled by its own percentiles; `low` and `high` are medians over the cases.
        masked: voxels outside the nonzero mask are 0, tissue starts at `MASK_MARGIN`.
        knee: of each channel, as a share of its range; infinite where it is straight.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    per_case: bool = False
    masked: bool = False
    knee: tuple[float, ...] | None = None

    @classmethod
    def fit(cls, cases: Iterable[Case], per_case: bool, masked: bool, curved: bool = False) -> Scaling:
        """Percentiles (0.05 and 99.95) of the training cases: their extremes, or in a raw space their medians.

        With `curved`, a channel whose bulk lies low (`BULK_PERCENT`, `LOWEST`) gets a knee: the median over the cases
        of their interquartile range.

        Raises:
            InputError: a channel has no range, so that nothing could come back from it.
        """
        names, ranges, bulks = [], [], []
        for case in cases:
            names.append(case.id)
            ranges.append(_percentiles(case))
            bulks.append(np.percentile(case.image[:, case.inside].astype(np.float64), (25, 75, BULK_PERCENT), axis=1))
        found = np.array(ranges)  # (case, low/high, channel)
        constant = [
            f"channel {channel} of case {name}"
            for name, (lows, highs) in zip(names, ranges, strict=True)
            for channel in np.flatnonzero(~(highs > lows) | ~np.isfinite(highs - lows))
        ]
        if constant:
            raise InputError(
                f"intensities that cannot be scaled: {', '.join(constant[:5])}",
                "finite intensities of more than one value in every channel",
                "mend or remove these cases",
            )
        combined = np.median(found, 0) if per_case else np.stack([found[:, 0].min(0), found[:, 1].max(0)])
        (low, high), knee = combined, None
        if curved:
            start, span = (found[:, :1], np.ptp(found, axis=1)[:, None]) if per_case else (low, high - low)
            first, third, bulk = np.median((np.array(bulks) - start) / span, axis=0)
            # Where most voxels have one value, such as air, there is no tissue to be straight among.
            bent = (bulk < LOWEST) & (third > first)
            knee = tuple(np.where(bent, third - first, np.inf).tolist()) if bent.any() else None
        return cls(tuple(map(float, low)), tuple(map(float, high)), per_case, masked, knee)

    def apply(self, case: Case) -> np.ndarray:
        """Image of a case, `(channel, depth, height, width)`, scaled to [0, 1]."""
        low, high = _percentiles(case) if self.per_case else (np.array(self.low), np.array(self.high))
        shape = (-1, 1, 1, 1)
        span = np.where(high > low, high - low, 1.0)  # an empty channel of a case that is only predicted becomes 0
        scaled = (case.image - low.reshape(shape)) / span.reshape(shape)
        scaled = np.clip(scaled, 0, 1)
        if self.knee is not None:
            scaled = _channels(_curve, scaled, self.knee)
        scaled = scaled.astype(np.float32)
        if self.masked:
            scaled = np.where(case.inside, MASK_MARGIN + (1 - MASK_MARGIN) * scaled, 0).astype(np.float32)
        return scaled

    def invert(self, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scaled image `(channel, ...)` back to the space's intensities, and where it is inside the mask `(...)`.

        In a masked space, outside voxels come back as exactly 0, as nnU-Net leaves them.
        """
        shape = (-1, *[1] * (scaled.ndim - 1))
        low, high = np.array(self.low).reshape(shape), np.array(self.high).reshape(shape)
        inside = np.ones(scaled.shape[1:], bool)
        if self.masked:
            inside = np.asarray((scaled > MASK_MARGIN / 2).any(axis=0))
            scaled = np.clip((scaled - MASK_MARGIN) / (1 - MASK_MARGIN), 0, 1)
        if self.knee is not None:
            scaled = _channels(_straight, scaled, self.knee)
        return np.where(inside, low + (high - low) * scaled, 0).astype(np.float32), inside

    def as_record(self) -> dict:
        """The fields that the provenance stores."""
        record = {"low": list(self.low), "high": list(self.high), "per_case": self.per_case, "masked": self.masked}
        # JSON has no infinity; weights from before knew no curve.
        return record if self.knee is None else {**record, "knee": [k if np.isfinite(k) else None for k in self.knee]}

    @classmethod
    def from_record(cls, record: dict) -> Scaling:
        """The scaling that `as_record` stored."""
        knee = record.get("knee")
        return cls(
            tuple(record["low"]), tuple(record["high"]), record["per_case"], record["masked"],
            knee and tuple(np.inf if k is None else float(k) for k in knee),
        )  # fmt: skip


def sample_scaling(provenance: dict, dimension: int) -> Scaling:
    """The map of a pool's samples to [0, 1].

    That of their generator, by which they came to the space's units. Raw volumes that another program made have units
    of their own, as raw cases do, and are scaled as those are.

    Args:
        provenance: of the pool.
        dimension: of the pool.
    """
    scaling = Scaling.from_record(provenance["scaling"])
    return replace(scaling, per_case=scaling.per_case and dimension == 3 and "adopted" in provenance)


def _channels(
    curve: Callable[[np.ndarray, float], np.ndarray], scaled: np.ndarray, knees: Iterable[float]
) -> np.ndarray:
    """Every channel by its curve; those with an infinite knee as they are."""
    pairs = zip(scaled, knees, strict=True)
    return np.stack([curve(channel, knee) if np.isfinite(knee) else channel for channel, knee in pairs])


def _curve(straight: np.ndarray, knee: float) -> np.ndarray:
    return np.arcsinh(straight / knee) / np.arcsinh(1 / knee)


def _straight(curved: np.ndarray, knee: float) -> np.ndarray:
    return knee * np.sinh(curved.astype(np.float64) * np.arcsinh(1 / knee))


def _percentiles(case: Case) -> np.ndarray:
    """Lowest and highest intensity of each channel `(2, channel)`, float64, without the tails.

    Where all but the tails is one value, as in a map that is mostly constant, the tails are what the channel shows.
    """
    ranges = []
    for channel in case.image:
        tissue = channel[case.inside].astype(np.float64)
        tails, lowest, highest = (TAIL_PERCENT, 100 - TAIL_PERCENT), tissue.min(), tissue.max()
        low, high = np.percentile(tissue, tails)
        # Between voxels, the percentiles of a constant may differ by a trace of what lies in the tails.
        if high - low < 0.01 * (highest - lowest) and np.ptp(np.percentile(tissue, tails, method="nearest")) == 0:
            low, high = lowest, highest
        ranges.append((low, high))
    return np.array(ranges).T
