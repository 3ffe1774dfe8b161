"""Samples that are nearer to each other than different patients are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .items import AuditData, Track
from .memorisation import Nearest, thumbnails
from .thresholds import Check


@dataclass(frozen=True)
class Duplicates:
    """The check, and which samples are near each other.

    Attributes:
        check: its scores are of the nearest other sample; `drop` says which of a group goes.
        near: earlier samples within the threshold of each sample, nearest first.
    """

    check: Check
    near: list[list[int]]

    def drop(self, kept: np.ndarray) -> dict[int, int]:
        """Duplicates among the samples that are `kept` otherwise: each with the earlier one that stays for it."""
        found: dict[int, int] = {}
        for index in np.flatnonzero(kept).tolist():
            stays = next((other for other in self.near[index] if kept[other] and other not in found), None)
            if stays is not None:
                found[index] = stays
        return found


def find_duplicates(
    audit: AuditData, real: Nearest, samples: Nearest, levels: dict[str, float], track: Track
) -> Duplicates:
    """Compare all samples with each other, over flips and small shifts.

    The distance to the nearest other sample is relative to the same scale as in memorisation, the distances to
    training patients; of a real item it is the distance to the nearest item of any other patient. The more samples
    there are, the nearer is the nearest one, also when all are new. So a pool larger than the set of real items is
    judged at a level that is smaller by the same factor.

    Args:
        audit: real items and samples.
        real, samples: their pixel distances to training cases, for the scales.
        levels: of the checks.
        track: shows bars.
    """
    descriptor = thumbnails()
    patients, members = np.unique(audit.real.groups, return_inverse=True)
    apart = np.empty((len(audit.real), len(patients)))  # of each item to the nearest one of each other patient
    for chosen, best, *_ in descriptor.distances(audit.real, audit.real, track, "pixels: real to real"):
        best[audit.real.groups[chosen][:, None] == audit.real.groups[None]] = np.inf
        apart[chosen] = np.stack([best[:, members == i].min(axis=1) for i in range(len(patients))], axis=1)

    def of_others(nearest: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.where(audit.judged, nearest / np.maximum(scale, 1e-12), np.nan)

    of_real = of_others(apart.min(axis=1), real.scale)

    def without(patient: str) -> np.ndarray:
        return of_others(apart[:, patients != patient].min(axis=1), real.without(patient)[2])

    level = levels["duplicates"] * min(1.0, len(audit.real) / len(audit.samples))
    words = "distance to the nearest other sample, relative to that to training cases:"
    empty = np.full(len(audit.samples), np.nan)
    blank = Check("duplicates", words, True, level, of_real, empty, audit.real.groups, audit.held_out, without=without)
    limit, of_samples, near = float(blank.thresholds[0]), empty.copy(), []
    for chosen, best, *_ in descriptor.distances(audit.samples, audit.samples, track, "pixels: pool to pool"):
        best[np.arange(len(chosen)), chosen] = np.inf
        relative = best / np.maximum(samples.scale[chosen], 1e-12)[:, None]
        of_samples[chosen] = relative.min(axis=1)
        for row, index in zip(relative, chosen.tolist(), strict=True):
            earlier = np.argsort(row[:index], kind="stable")
            near.append([int(i) for i in earlier[: int((row[:index] < limit).sum())]])
    of_samples[~np.isfinite(of_samples)] = np.nan  # a pool of one
    return Duplicates(replace(blank, samples=of_samples), near)
