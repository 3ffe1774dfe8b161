"""Precision, recall, density and coverage from nearest neighbours in feature space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..runtime.errors import InputError
from .distributions import Weights, in_doubles, parts
from .resampling import weighted_mean

KEPT = 128  # neighbours of an item; a draw in which their weights do not reach k looks at all items
ROOM = 2**23  # numbers that are computed at once


def prdc(
    candidates: np.ndarray,
    reference: np.ndarray,
    candidate_weights: Weights,
    reference_weights: Weights,
    neighbours: int = 5,
    progress: Callable[[int], object] | None = None,
) -> dict[str, np.ndarray]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Each item's ball reaches to its k-th nearest other item of its own set. Precision: the share of candidates
    inside a ball of the reference. Recall: the share of the reference inside a ball of the candidates. Density: in
    how many balls of the reference a candidate lies, divided by k; 1 for equal distributions, and it may exceed 1.
    Coverage: the share of the reference whose ball holds a candidate. In a draw, an item that was drawn w times
    counts as w neighbours of others and as w items in every mean.

    Memory grows with the number of items, not with its square: of the distances within a set the smallest are kept,
    of those between the sets the ones that reach into the largest ball of all draws.

    Args:
        candidates, reference: features (items, features).
        candidate_weights, reference_weights: (draws, items).
        neighbours: k.
        progress: told how many items were worked off, the candidates twice and the reference once.

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
    told = progress or (lambda _: None)
    radii = ball_radii(candidates, candidate_weights, neighbours, told)
    radii_reference = ball_radii(reference, reference_weights, neighbours, told)
    draws = len(candidate_weights)
    in_ball, balls = np.zeros(draws), np.zeros(draws)
    covered, found = (np.zeros((draws, len(reference)), bool) for _ in range(2))
    for rows, near in _near_pairs(candidates, reference, radii.max(axis=0), radii_reference.max(axis=0)):
        i, j, weights = near.candidate, near.reference, in_doubles(candidate_weights[:, rows])
        for draw in range(draws):
            counts, weight = reference_weights[draw, j], weights[draw]
            in_real = (near.distance < radii_reference[draw, j]) & (counts > 0)
            inside = np.zeros(len(weight), bool)
            inside[i[in_real]] = True
            in_ball[draw] += weight[inside].sum()
            balls[draw] += (counts[in_real] * weight[i[in_real]]).sum()
            there = weight[i] > 0
            covered[draw, j[in_real & there]] = True
            found[draw, j[there & (near.distance < radii[draw, rows][i])]] = True
        told(len(weights[0]))
    total = candidate_weights.sum(axis=1, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, density = in_ball / total, balls / total / neighbours
    recall, coverage = weighted_mean(found, reference_weights), weighted_mean(covered, reference_weights)
    return {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def ball_radii(features: np.ndarray, weights: Weights, neighbours: int, told: Callable[[int], object]) -> np.ndarray:
    """Distance of each item at which the other items' weights reach `neighbours`: (draws, items).

    The farthest other item, where they never do.
    """
    count, size = features.shape
    kept = min(count - 1, KEPT)
    radii, norms = np.empty((len(weights), count)), _norms(features)
    for rows in parts(count, ROOM // max(count, kept * max(size, len(weights)))):
        own = in_doubles(features[rows])
        near = np.sort(_nearest(own, features, norms, rows.start, kept), axis=1)
        distance = _distances(own[:, None], in_doubles(features[near]))
        order = np.argsort(distance, axis=1, kind="stable")
        near, distance = (np.take_along_axis(x, order, axis=1) for x in (near, distance))
        reached = np.cumsum(weights[:, near], axis=2) >= neighbours
        place = np.where(reached.any(axis=2), reached.argmax(axis=2), kept - 1)
        radii[:, rows] = distance[np.arange(len(own)), place]
        if kept < count - 1:
            for row in np.flatnonzero(~reached.any(axis=2).all(axis=0)):
                missing = ~reached[:, row].any(axis=1)
                radii[missing, rows.start + row] = _among_all(features, rows.start + row, weights[missing], neighbours)
        told(len(own))
    return radii


def _among_all(features: np.ndarray, item: int, weights: Weights, neighbours: int) -> np.ndarray:
    """Radii (draws,) of one item from its distances to all others."""
    own = in_doubles(features[item])
    steps = parts(len(features), ROOM // features.shape[1])
    distance = np.concatenate([_distances(own, in_doubles(features[rows])) for rows in steps])
    order = np.argsort(distance, kind="stable")
    order = order[order != item]
    radii = np.empty(len(weights))
    for draw, row in enumerate(weights):
        reached = np.cumsum(row[order]) >= neighbours
        radii[draw] = distance[order[reached.argmax() if reached.any() else -1]]
    return radii


def _nearest(own: np.ndarray, features: np.ndarray, norms: np.ndarray, start: int, kept: int) -> np.ndarray:
    """The `kept` nearest other items of the items from `start` on, in any order: (rows, kept)."""
    if kept == len(features) - 1:
        others = np.broadcast_to(np.arange(kept), (len(own), kept))
        return others + (others >= start + np.arange(len(own))[:, None])
    squares = _squares(own, features, norms)
    squares[np.arange(len(own)), start + np.arange(len(own))] = np.inf
    return np.argpartition(squares, kept - 1, axis=1)[:, :kept]


class _Near(NamedTuple):
    """Pairs: the candidate's number in its part, the reference item's, and their distance, each (pairs,)."""

    candidate: np.ndarray
    reference: np.ndarray
    distance: np.ndarray


def _near_pairs(
    candidates: np.ndarray, reference: np.ndarray, reach: np.ndarray, reach_reference: np.ndarray
) -> Iterator[tuple[slice, _Near]]:
    """For some candidates at a time, the pairs that are nearer than the larger reach (items,) of the two."""
    norms = _norms(reference)
    for rows in parts(len(candidates), ROOM // max(reference.shape)):
        own = in_doubles(candidates[rows])
        limit = np.maximum(reach[rows][:, None], reach_reference[None])
        # By the product of the features, which is fast, with room for its rounding; what is left, by differences: an
        # item is at distance 0 from its copy, and as far from others as the copy is.
        rounding = 1e-10 * ((own**2).sum(axis=1)[:, None] + norms[None])
        i, j = np.nonzero(_squares(own, reference, norms) <= limit**2 + rounding)
        distance = np.concatenate(
            [np.empty(0)]
            + [_distances(own[i[part]], in_doubles(reference[j[part]])) for part in parts(len(i), ROOM // own.shape[1])]
        )
        yield rows, _Near(i, j, distance)


def _norms(features: np.ndarray) -> np.ndarray:
    """Squared norms (items,)."""
    steps = parts(len(features), ROOM // features.shape[1])
    return np.concatenate([(in_doubles(features[rows]) ** 2).sum(axis=1) for rows in steps])


def _squares(own: np.ndarray, features: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Squared distances, rounded to about 1e-15 of the squared norms: (rows, items)."""
    result = np.empty((len(own), len(features)))
    for rows in parts(len(features), ROOM // features.shape[1]):
        np.matmul(-2 * own, in_doubles(features[rows]).T, out=result[:, rows])
    result += (own**2).sum(axis=1)[:, None]
    result += norms
    return result


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances over the last axis."""
    return np.sqrt(((a - b) ** 2).sum(axis=-1))
