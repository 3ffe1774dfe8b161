"""Intensities to [0, 1] and back: one affine map a channel, stored beside the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..runtime.errors import InputError
from .cases import Case

# Share of [0, 1] kept free below the tissue of masked spaces, so that outside (0) and tissue can be told apart.
MASK_MARGIN = 0.1
TAIL_PERCENT = 0.05


@dataclass(frozen=True)
class Scaling:
    """Map of intensities `low..high` to [0, 1] for each channel; values beyond are clipped.

    In a preprocessed space one map serves all cases: nnU-Net normalised whole volumes, and normalising slices or
    cases again would destroy what it kept. In a raw space the units differ between scanners, so each case has its
    own map (its own percentiles), and samples go back through the median case's.

    Attributes:
        low, high: intensities that become 0 and 1, one a channel.
        per_case: each case is scaled by its own percentiles; `low` and `high` are medians over the cases.
        masked: voxels outside the nonzero mask are 0, tissue starts at `MASK_MARGIN`.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    per_case: bool = False
    masked: bool = False

    @classmethod
    def fit(cls, cases: Iterable[Case], per_case: bool, masked: bool) -> Scaling:
        """Percentiles (0.05 and 99.95) of the training cases: their extremes, or in a raw space their medians.

        Raises:
            InputError: a channel has no range, so that nothing could come back from it.
        """
        names, ranges = [], []
        for case in cases:
            names.append(case.id)
            ranges.append(_percentiles(case))
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
        return cls(tuple(map(float, combined[0])), tuple(map(float, combined[1])), per_case, masked)

    def apply(self, case: Case) -> np.ndarray:
        """Image of a case, `(channel, depth, height, width)`, scaled to [0, 1]."""
        low, high = _percentiles(case) if self.per_case else (np.array(self.low), np.array(self.high))
        shape = (-1, 1, 1, 1)
        span = np.where(high > low, high - low, 1.0)  # an empty channel of a case that is only predicted becomes 0
        scaled = (case.image - low.reshape(shape)) / span.reshape(shape)
        scaled = np.clip(scaled, 0, 1).astype(np.float32)
        if self.masked:
            scaled = np.where(case.inside, MASK_MARGIN + (1 - MASK_MARGIN) * scaled, 0).astype(np.float32)
        return scaled

    def invert(self, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scaled image `(channel, ...)` back to the space's intensities, and where it is inside the mask `(...)`.

        In a masked space, outside voxels come back as exactly 0, as nnU-Net leaves them.
        """
        shape = (-1, *[1] * (scaled.ndim - 1))
        low, high = np.array(self.low).reshape(shape), np.array(self.high).reshape(shape)
        if not self.masked:
            return (low + (high - low) * scaled).astype(np.float32), np.ones(scaled.shape[1:], bool)
        inside = np.asarray((scaled > MASK_MARGIN / 2).any(axis=0))
        tissue = np.clip((scaled - MASK_MARGIN) / (1 - MASK_MARGIN), 0, 1)
        return np.where(inside, low + (high - low) * tissue, 0).astype(np.float32), inside

    def as_record(self) -> dict:
        """The fields that the provenance stores."""
        return {"low": list(self.low), "high": list(self.high), "per_case": self.per_case, "masked": self.masked}

    @classmethod
    def from_record(cls, record: dict) -> Scaling:
        """The scaling that `as_record` stored."""
        return cls(tuple(record["low"]), tuple(record["high"]), record["per_case"], record["masked"])


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
