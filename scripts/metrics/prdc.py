"""Precision, recall, density and coverage from nearest neighbours in feature space."""

from __future__ import annotations

import numpy as np
import torch

from ..runtime.errors import InputError
from .distributions import Weights
from .resampling import weighted_mean


def prdc(
    candidates: np.ndarray,
    reference: np.ndarray,
    candidate_weights: Weights,
    reference_weights: Weights,
    neighbours: int = 5,
) -> dict[str, np.ndarray]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Each item's ball reaches to its k-th nearest other item of its own set. Precision: the share of candidates
    inside a ball of the reference. Recall: the share of the reference inside a ball of the candidates. Density: in
    how many balls of the reference a candidate lies, divided by k; 1 for equal distributions, and it may exceed 1.
    Coverage: the share of the reference whose ball holds a candidate. In a draw, an item that was drawn w times
    counts as w neighbours of others and as w items in every mean.

    Args:
        candidates, reference: features (items, features).
        candidate_weights, reference_weights: (draws, items).
        neighbours: k.

    Returns:
        {"precision", "recall", "density", "coverage"}, each (draws,).

    Raises:
        InputError: a set has not more than k items.
    """
    if min(len(candidates), len(reference)) <= neighbours or neighbours < 1:
        raise InputError(
            f"{len(candidates)} candidates and {len(reference)} reference items with {neighbours} neighbours",
            "a number of neighbours of at least 1 and below both",
            "choose fewer neighbours, or more items",
        )
    across = _distances(candidates, reference)
    own, own_reference = _Neighbours(candidates), _Neighbours(reference)
    result = {name: np.empty(len(candidate_weights)) for name in ("precision", "recall", "density", "coverage")}
    for draw, (wc, wr) in enumerate(zip(candidate_weights, reference_weights, strict=True)):
        in_real = (across < own_reference.radii(wr, neighbours)) & (wr > 0)
        in_fake = (across < own.radii(wc, neighbours)[:, None]) & (wc > 0)[:, None]
        covered = (in_real & (wc > 0)[:, None]).any(axis=0)
        result["precision"][draw] = _mean(in_real.any(axis=1), wc)
        result["recall"][draw] = _mean(in_fake.any(axis=0), wr)
        result["density"][draw] = _mean(in_real @ wr, wc) / neighbours
        result["coverage"][draw] = _mean(covered, wr)
    return result


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float(weighted_mean(values.astype(float), weights[None])[0])


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # The exact differences: by the product, an item would not be at distance 0 from its copy.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(torch.from_numpy(a), torch.from_numpy(b), compute_mode=mode).numpy()


class _Neighbours:
    """The other items of a set, sorted by distance from each."""

    def __init__(self, features: np.ndarray):
        distances = _distances(features, features)
        np.fill_diagonal(distances, np.inf)
        self.order = np.argsort(distances, axis=1, kind="stable")[:, :-1]
        self.sorted = np.take_along_axis(distances, self.order, axis=1)

    def radii(self, weights: np.ndarray, neighbours: int) -> np.ndarray:
        """Distance at which the others' weights reach `neighbours` (the farthest one, if they never do)."""
        reached = np.cumsum(weights[self.order], axis=1) >= neighbours
        position = np.where(reached.any(axis=1), reached.argmax(axis=1), self.order.shape[1] - 1)
        return np.take_along_axis(self.sorted, position[:, None], axis=1)[:, 0]
