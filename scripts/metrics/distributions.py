"""Distances between two sets of features: FID and KID."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

Weights = np.ndarray  # (draws, items): how often each item counts; a row of ones is the plain figure
AT_ONCE = 2048  # items


def parts(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` (at least 1), which make up `count` items in their order."""
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def in_doubles(array: np.ndarray) -> np.ndarray:
    """The numbers as float64, in which all figures are computed."""
    return np.asarray(array, np.float64)


def frechet_distance(
    candidates: np.ndarray,
    reference: np.ndarray,
    candidate_weights: Weights,
    reference_weights: Weights,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Fréchet distance between Gaussians fitted to two sets of features, FID (Heusel et al. 2017; dHVAE, eq. 14).

    The trace of the root of the product of the covariances is the sum of the singular values of A B^T, where A^T A
    and B^T B are the covariances: no root of a matrix that is not symmetric, and no loss of precision when there
    are fewer items than features and the covariances are singular. Nothing is kept between calls.

    Args:
        candidates, reference: features (items, features), at least two items each.
        candidate_weights, reference_weights: (draws, items).
        progress: told of every draw.

    Returns:
        (draws,), NaN where a draw holds a single item.
    """
    result = np.empty(len(candidate_weights))
    for draw, (wc, wr) in enumerate(zip(candidate_weights, reference_weights, strict=True)):
        (mean, factor, trace), (mean_r, factor_r, trace_r) = _gaussian(candidates, wc), _gaussian(reference, wr)
        if progress is not None:
            progress(1)
        if factor is None or factor_r is None:
            result[draw] = np.nan
            continue
        cross = torch.linalg.svdvals(torch.from_numpy(factor @ factor_r.T)).sum().item()
        # Rounding may leave a tiny negative number for equal sets.
        result[draw] = max(0.0, float(((mean - mean_r) ** 2).sum()) + trace + trace_r - 2 * cross)
    return result


def _gaussian(features: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Mean, a factor A with A^T A the unbiased covariance (None for a single item), and the covariance's trace."""
    drawn = np.flatnonzero(weights > 0)
    weights = in_doubles(weights[drawn])
    total, size = weights.sum(), features.shape[1]
    steps = list(parts(len(drawn), AT_ONCE))
    mean = sum(weights[part] @ in_doubles(features[drawn[part]]) for part in steps) / total
    if len(drawn) < 2:
        return mean, None, 0.0
    spread = (
        (in_doubles(features[drawn[part]]) - mean) * np.sqrt(weights[part] / (total - 1))[:, None] for part in steps
    )
    if len(drawn) <= size:
        factor = np.concatenate(list(spread))
    else:  # many items: the factor that is a square matrix of the features
        values, vectors = np.linalg.eigh(sum(rows.T @ rows for rows in spread))
        factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return mean, factor, float((factor**2).sum())


def kernel_distance(
    candidates: np.ndarray,
    reference: np.ndarray,
    candidate_weights: Weights,
    reference_weights: Weights,
    progress: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Unbiased squared MMD with the kernel (x y / features + 1)^3: KID (Binkowski et al. 2018).

    All pairs are used, which is what the mean over random subsets estimates. The pair of an item with itself, or
    with a copy of itself in a draw, is left out. Arguments and result as of `frechet_distance`, but `progress` is told
    how many items were worked off, the candidates twice and the reference once; the result may be negative.
    """
    sums = [
        _sum_over_pairs(a, b, u, v, progress)
        for a, b, u, v in (
            (candidates, candidates, candidate_weights, candidate_weights),
            (reference, reference, reference_weights, reference_weights),
            (candidates, reference, candidate_weights, reference_weights),
        )
    ]
    (total, squares), (total_r, squares_r) = (
        (w.sum(axis=1, dtype=float), np.array([(in_doubles(row) ** 2).sum() for row in w]))
        for w in (candidate_weights, reference_weights)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        within, within_reference = (
            np.where(pairs > 0, found / pairs, np.nan)
            for found, pairs in ((sums[0], total**2 - squares), (sums[1], total_r**2 - squares_r))
        )
    return within + within_reference - 2 * sums[2] / total / total_r


def _sum_over_pairs(
    a: np.ndarray, b: np.ndarray, u: Weights, v: Weights, progress: Callable[[int], object] | None
) -> np.ndarray:
    """Sum (draws,) of the kernel over all pairs under both weights; within one set, without an item and itself."""
    result = np.zeros(len(u))
    for rows in parts(len(a), AT_ONCE):
        own, weights = in_doubles(a[rows]), in_doubles(u[:, rows])
        # The kernel is symmetric: of one set, pairs of different parts count twice.
        for columns in parts(len(b), AT_ONCE) if b is not a else parts(rows.stop, AT_ONCE):
            kernel = (own @ in_doubles(b[columns]).T / a.shape[1] + 1) ** 3
            if b is a and rows == columns:
                np.fill_diagonal(kernel, 0)
            found = ((weights @ kernel) * in_doubles(v[:, columns])).sum(axis=1)
            result += found if b is not a or rows == columns else 2 * found
        if progress is not None:
            progress(len(own))
    return result


def kernel_distance_subsets(
    candidates: np.ndarray, reference: np.ndarray, subsets: int = 100, size: int = 100, seed: int = 0
) -> dict[str, float | int]:
    """KID as it is usually printed: mean and standard deviation over random subsets, by torchmetrics.

    Returns {"subsets", "size" (at most the smaller set), "mean", "sd"}; the spread is one of subsets of this size,
    no interval of the figure.
    """
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(seed)
    size = min(size, len(candidates), len(reference))

    def drawn(features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(in_doubles(features[rng.permutation(len(features))[:size]]))

    found = [poly_mmd(drawn(reference), drawn(candidates)).item() for _ in range(subsets)]
    return {"subsets": subsets, "size": size, "mean": float(np.mean(found)), "sd": float(np.std(found, ddof=1))}
