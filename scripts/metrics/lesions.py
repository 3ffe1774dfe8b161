"""Lesion by lesion, and slice by slice: what is found, and what is seen where nothing is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

LESIONS = ("lesion_sensitivity", "false_positive_slices")


def lesion_measures(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> dict[str, float | None]:
    """Compare two masks of one patient by their lesions and by their slices without any.

    A lesion is a connected part of the reference (corners connect), and found where a voxel of the prediction lies in
    it, so that one large prediction may find several. Slices are those across the axis with the largest spacing, the
    last one of equal axes.

    Args:
        prediction, reference: bool `(x, y, z)`.
        spacing: millimetres along these axes.

    Returns:
        "lesion_sensitivity": found lesions over all, None without any. "false_positive_slices": slices with a
        prediction over all slices without reference, None where every slice has some.
    """
    parts, count = ndimage.label(reference, np.ones((3,) * reference.ndim))
    found = len(np.unique(parts[prediction & reference]))
    axis = max(range(reference.ndim), key=lambda i: (round(float(spacing[i]), 3), i))
    across = tuple(i for i in range(reference.ndim) if i != axis)
    empty = ~reference.any(axis=across)
    seen = prediction.any(axis=across) & empty
    return {
        "lesion_sensitivity": found / count if count else None,
        "false_positive_slices": float(seen.sum() / empty.sum()) if empty.any() else None,
    }
