"""Training cases deformed at random: what keeps a generator of few patients from learning them by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from nnunet_plugin.transplant.warp import ANISOTROPY, INTERVALS, Warp, interpolated, rotation
from scipy import ndimage

from .cases import Case

WARPING = 2  # raised where the same seed gives other copies than before
MAX_ANGLE = np.pi / 12
SCALE = 0.2  # largest logarithm of the scale, either way
SQUEEZE = 0.06  # standard deviation of the logarithm of each axis' own scale
BEND = 0.02  # standard deviation of the free-form deformation's displacement, as a share of the field of view


def warped_case(case: Case, spacing: Sequence[float], dimension: int, rng: np.random.Generator) -> Case:
    """A case turned, scaled, bent, and in half of the draws mirrored along its width, on its own grid.

    Rotation by up to 15 degrees, scale 0.82 to 1.22, a squeeze of each axis, and cubic B-splines between random knots
    (Rueckert et al. 1999), all in millimetres about the middle. What comes in from outside mirrors what lies
    inside, so that the edges of a cropped image stay where they are.

    Args:
        case: image interpolated by cubic splines, within its own range: straight lines take more of the grain, and a
            generator learns from the copies what images look like (`benchmarks/grain.py`); labels and what nnU-Net
            masked take the nearest voxel.
        spacing: millimetres along depth, height, width.
        dimension: 2: every slice alike and in its plane; 3: the volume, where slices lie apart by more than three
            times the finest spacing also in plane alone, each as it lies.
        rng: where the randomness comes from.
    """
    steps = np.asarray(spacing, float)[-dimension:]
    sides = np.array(case.label.shape[-dimension:])
    across = int(np.argmax(steps)) if dimension == 3 and max(steps) > ANISOTROPY * min(steps) else None
    axis = None if dimension == 2 else (rng.normal(size=3) if across is None else np.eye(3)[across])
    turned = rotation(rng.uniform(-MAX_ANGLE, MAX_ANGLE), axis)
    sizes = np.exp(rng.uniform(-SCALE, SCALE) + rng.normal(0, SQUEEZE, dimension))
    mirrored = rng.random() < 0.5
    reach = (sides - 1) / 2 * steps
    # The spline halves the knots' standard deviation along each axis, roughly to its root.
    knots = rng.normal(size=(dimension, *[INTERVALS + 3] * dimension)) * BEND * reach.max() * 2 * 2.0 ** (dimension / 2)
    if across is not None:
        sizes[across], knots[across] = 1, 0
    matrix = turned * sizes
    matrix[:, -1] *= -1 if mirrored else 1
    axes = [(np.arange(side) - (side - 1) / 2) * step for side, step in zip(sides, steps, strict=True)]
    warp = Warp(matrix, knots, np.maximum(reach, steps))
    shape = (dimension, *[1] * dimension)
    places = (warp.old_offsets(axes) + reach.reshape(shape)) / steps.reshape(shape)

    def nearest(values: np.ndarray, places: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(values, places, order=0, mode="mirror")

    def moved(values: np.ndarray, read: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        return np.stack([read(part, places) for part in values.reshape(-1, *sides)]).reshape(values.shape)

    return replace(
        case,
        image=moved(case.image, interpolated),
        label=moved(case.label, nearest),
        inside=moved(case.inside.astype(np.uint8), nearest).astype(bool),
    )
