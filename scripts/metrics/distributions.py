"""Distances between two sets of features: FID and KID."""

from __future__ import annotations

import numpy as np
import torch

Weights = np.ndarray  # (draws, items): how often each item counts; a row of ones is the plain figure


def frechet_distance(
    candidates: np.ndarray, reference: np.ndarray, candidate_weights: Weights, reference_weights: Weights
) -> np.ndarray:
    """Fréchet distance between Gaussians fitted to two sets of features, FID (Heusel et al. 2017; dHVAE, eq. 14).

    The trace of the root of the product of the covariances is the sum of the singular values of A B^T, where A^T A
    and B^T B are the covariances: no root of a matrix that is not symmetric, and no loss of precision when there
    are fewer items than features and the covariances are singular. Nothing is kept between calls.

    Args:
        candidates, reference: features (items, features), at least two items each.
        candidate_weights, reference_weights: (draws, items).

    Returns:
        (draws,), NaN where a draw holds a single item.
    """
    result = np.empty(len(candidate_weights))
    for draw, (wc, wr) in enumerate(zip(candidate_weights, reference_weights, strict=True)):
        (mean, factor, trace), (mean_r, factor_r, trace_r) = _gaussian(candidates, wc), _gaussian(reference, wr)
        if factor is None or factor_r is None:
            result[draw] = np.nan
            continue
        cross = torch.linalg.svdvals(torch.from_numpy(factor @ factor_r.T)).sum().item()
        # Rounding may leave a tiny negative number for equal sets.
        result[draw] = max(0.0, float(((mean - mean_r) ** 2).sum()) + trace + trace_r - 2 * cross)
    return result


def _gaussian(features: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Mean, a factor A with A^T A the unbiased covariance (None for a single item), and the covariance's trace."""
    drawn = weights > 0
    features, weights = features[drawn], weights[drawn]
    mean = np.average(features, axis=0, weights=weights)
    if len(features) < 2:
        return mean, None, 0.0
    rows = (features - mean) * np.sqrt(weights / (weights.sum() - 1))[:, None]
    trace = float((rows**2).sum())
    if len(rows) > rows.shape[1]:  # many items: the factor that is a square matrix of the features
        values, vectors = np.linalg.eigh(rows.T @ rows)
        rows = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return mean, rows, trace


def kernel_distance(
    candidates: np.ndarray, reference: np.ndarray, candidate_weights: Weights, reference_weights: Weights
) -> np.ndarray:
    """Unbiased squared MMD with the kernel (x y / features + 1)^3: KID (Binkowski et al. 2018).

    All pairs are used, which is what the mean over random subsets estimates. The pair of an item with itself, or
    with a copy of itself in a draw, is left out. Arguments and result as of `frechet_distance`; may be negative.
    """
    within = _mean_over_pairs(_kernel(candidates, candidates), candidate_weights)
    within_reference = _mean_over_pairs(_kernel(reference, reference), reference_weights)
    across = ((candidate_weights @ _kernel(candidates, reference)) * reference_weights).sum(axis=1)
    across = across / candidate_weights.sum(axis=1) / reference_weights.sum(axis=1)
    return within + within_reference - 2 * across


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_over_pairs(kernel: np.ndarray, weights: Weights) -> np.ndarray:
    kernel = kernel - np.diag(np.diag(kernel))
    pairs = weights.sum(axis=1) ** 2 - (weights**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, ((weights @ kernel) * weights).sum(axis=1) / pairs, np.nan)


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
    fake, real = torch.from_numpy(candidates), torch.from_numpy(reference)
    found = [
        poly_mmd(real[rng.permutation(len(real))[:size]], fake[rng.permutation(len(fake))[:size]]).item()
        for _ in range(subsets)
    ]
    return {"subsets": subsets, "size": size, "mean": float(np.mean(found)), "sd": float(np.std(found, ddof=1))}
