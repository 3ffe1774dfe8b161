"""Size, shape and place of a mask, in physical units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mask_features(mask: np.ndarray, spacing: Sequence[float]) -> dict:
    """Volume, surface area, sphericity, centre and extent of a binary mask (the condition of Kebaili et al. 2024b).

    A slice `(height, width)` gives the planar counterparts: area, perimeter and circularity.

    Args:
        mask: binary array of two or three dimensions.
        spacing: millimetres per voxel along each axis.

    Returns:
        `volume` (mm^d), `surface_area` (mm^(d-1)), `sphericity` (0 to about 1; 1 is a ball), `centre` and `extent`
        (mm along each axis, from the corner of the array). All zero for an empty mask.
    """
    mask, step = np.asarray(mask, bool), np.asarray(spacing, float)
    zeros = [0.0] * mask.ndim
    if not mask.any():
        return {"volume": 0.0, "surface_area": 0.0, "sphericity": 0.0, "centre": zeros, "extent": list(zeros)}
    places = np.argwhere(mask)
    volume = float(mask.sum() * step.prod())
    surface = _boundary_measure(mask, step)
    if mask.ndim == 3:  # Wadell: surface of the ball of equal volume, over the surface
        sphericity = np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / surface
    else:
        sphericity = 2 * np.sqrt(np.pi * volume) / surface
    return {
        "volume": volume,
        "surface_area": float(surface),
        "sphericity": float(sphericity),
        "centre": [float(value) for value in (places.mean(0) + 0.5) * step],
        "extent": [float(value) for value in (np.ptp(places, axis=0) + 1) * step],
    }


def _boundary_measure(mask: np.ndarray, step: np.ndarray) -> float:
    """Length or area of the half-level contour, which is smoother than counting voxel faces."""
    padded = np.zeros([side + 2 for side in mask.shape], np.uint8)
    padded[(slice(1, -1),) * mask.ndim] = mask
    if mask.ndim == 2:  # marching squares: of every four pixels it is known what of the contour lies between them
        quads = padded[:-1, :-1] + 2 * padded[:-1, 1:] + 4 * padded[1:, :-1] + 8 * padded[1:, 1:]
        counts = np.bincount(quads.ravel(), minlength=16)
        corners = counts[[1, 2, 4, 7, 8, 11, 13, 14]].sum() + 2 * counts[[6, 9]].sum()
        across, along = counts[[3, 12]].sum(), counts[[5, 10]].sum()  # one row differs from the other, one column
        return float(corners * np.hypot(*step) / 2 + across * step[1] + along * step[0])
    from skimage import measure

    padded = padded.astype(np.float32)
    vertices, faces, _, _ = measure.marching_cubes(padded, 0.5, spacing=tuple(step))
    return float(measure.mesh_surface_area(vertices, faces))
