"""Figures of two sets of masks: divergence of class probabilities, and distances of tumour features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance
from torch import Tensor

from ..data.mask_features import mask_features
from ..runtime.tensor_store import StoredRows
from .distributions import AT_ONCE, Weights, in_doubles, parts
from .resampling import weighted_mean

# Added to the count of every class at every pixel before KLD (Jeffreys' prior): a class that one set never shows
# somewhere would make it infinite.
SMOOTHING = 0.5
Masks = np.ndarray | Tensor | StoredRows
_AXES = ("depth", "height", "width")
_CHUNK = 4096  # pixels at once


def mask_divergences(
    candidates: Masks,
    reference: Masks,
    classes: Sequence[int],
    candidate_weights: Weights,
    reference_weights: Weights,
    smoothing: float = SMOOTHING,
) -> dict[str, np.ndarray]:
    """Divergence of the class probabilities of each pixel over all masks (dHVAE, section 4.6.3), a mean over pixels.

    `jsd`: Jensen-Shannon divergence of the plain frequencies (0 to ln 2). `kld`: Kullback-Leibler divergence
    KL(reference || candidates) with `smoothing` added to every count. Both in nats. The paper leaves direction,
    smoothing and base open. Empty masks count: they are background everywhere.

    Args:
        candidates, reference: integer label maps (masks, [depth,] height, width) on one grid.
        classes: every integer that they may hold, background included.
        candidate_weights, reference_weights: (draws, masks).
        smoothing: of KLD, above 0.

    Returns:
        {"jsd", "kld"}, each (draws,).
    """
    pixels = math.prod(candidates.shape[1:])
    jsd, kld = np.zeros(len(candidate_weights)), np.zeros(len(candidate_weights))
    for start in range(0, pixels, _CHUNK):
        part = slice(start, start + _CHUNK)
        q_count = _counts(candidates, part, classes, candidate_weights)
        p_count = _counts(reference, part, classes, reference_weights)
        p, q = _frequencies(p_count, 0.0), _frequencies(q_count, 0.0)
        middle = (p + q) / 2
        jsd += 0.5 * (_relative_entropy(p, middle) + _relative_entropy(q, middle)).sum(axis=1)
        kld += _relative_entropy(_frequencies(p_count, smoothing), _frequencies(q_count, smoothing)).sum(axis=1)
    return {"jsd": jsd / pixels, "kld": kld / pixels}


def _counts(masks: Masks, pixels: slice, classes: Sequence[int], weights: Weights) -> np.ndarray:
    """How often each class shows at each of some pixels: (draws, pixels, classes)."""
    counts: Any = 0.0
    for part in parts(len(masks), AT_ONCE):
        labels = np.asarray(masks[part]).reshape(part.stop - part.start, -1)[:, pixels]
        drawn = in_doubles(weights[:, part])
        counts = counts + np.stack([drawn @ in_doubles(labels == value) for value in classes], axis=-1)
    return counts


def _frequencies(counts: np.ndarray, smoothing: float) -> np.ndarray:
    counts = counts + smoothing
    return counts / counts.sum(axis=-1, keepdims=True)


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Sum over classes of p log(p / q), with 0 log 0 = 0: (draws, pixels)."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum(axis=-1)


def tumour_features(mask: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """The features of `mask_features` under one name each, the centre measured from the middle of the array.

    From the middle, because slices and volumes of several sizes are centred on each other. NaN for an empty mask:
    it has no place and no shape, and as zeros it would pass for a small tumour; `empty` counts it.

    Args:
        mask: binary ([depth,] height, width).
        spacing: millimetres per voxel along these axes.

    Returns:
        `volume` (mm^3, of a slice the area in mm^2), `surface_area` (mm^2, of a slice the perimeter in mm),
        `sphericity`, `centre_AXIS` and `extent_AXIS` (mm).
    """
    found = mask_features(mask, spacing)
    axes = _AXES[-mask.ndim :]
    middle = [length * step / 2 for length, step in zip(mask.shape, spacing, strict=True)]
    features = {name: found[name] for name in ("volume", "surface_area", "sphericity")}
    features |= {f"centre_{axis}": c - m for axis, c, m in zip(axes, found["centre"], middle, strict=True)}
    features |= {f"extent_{axis}": value for axis, value in zip(axes, found["extent"], strict=True)}
    return features if mask.any() else dict.fromkeys(features, float("nan"))


def feature_unit(name: str, dimension: int) -> str:
    """The unit of a tumour feature of slices (2) or volumes (3)."""
    powers = {"volume": dimension, "surface_area": dimension - 1, "sphericity": 0}
    power = powers.get(name, 1)
    return "" if power == 0 else "mm" if power == 1 else f"mm^{power}"


def feature_distance(
    candidates: np.ndarray, reference: np.ndarray, candidate_weights: Weights, reference_weights: Weights
) -> np.ndarray:
    """Wasserstein distance of order 1 between the distributions of one feature, in the feature's unit: (draws,).

    Features (masks,), NaN for empty masks, which are left out (`empty_share` counts them); NaN where a draw leaves
    none on one side.
    """
    used, used_reference = ~np.isnan(candidates), ~np.isnan(reference)
    a, b = candidates[used], reference[used_reference]
    found = []
    for u, v in zip(candidate_weights, reference_weights, strict=True):
        u, v = u[used], v[used_reference]
        found.append(wasserstein_distance(a, b, u, v) if u.any() and v.any() else np.nan)
    return np.array(found)


def empty_share(candidates: np.ndarray, candidate_weights: Weights) -> np.ndarray:
    """Share of masks ([draws]) without any foreground, from one feature (masks,) that is NaN for these."""
    return weighted_mean(np.isnan(candidates).astype(float), candidate_weights)
