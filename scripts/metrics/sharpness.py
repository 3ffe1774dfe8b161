"""How sharp synthetic slices are beside real ones, on the pixels that a segmenter will see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import laplace

from ..data.cases import Case, Cases
from ..pool.writing import load_sample, read_pool

SLICES = 24  # of each side


def sharpness(image: np.ndarray) -> float:
    """The share of fine detail in a slice: SD of its Laplacian over SD of its values, inside the body.

    It does not change with brightness and contrast, is 0 for a ramp, and falls with every blur.

    Args:
        image: `(height, width)`, not the same everywhere; exactly 0 outside a masked body.
    """
    image = np.asarray(image, np.float64)
    inside = image != image.min() if (image == image.min()).mean() > 0.05 else np.ones(image.shape, bool)
    inside &= image != 0
    if inside.sum() < 16 or image[inside].std() == 0:
        return float("nan")
    return float(laplace(image)[inside].std() / image[inside].std())


def pool_sharpness(pool_dir: str | Path, cases: Cases | None) -> float | None:
    """Median sharpness of a pool's slices over that of real training slices, both with foreground; 1 is as sharp.

    Args:
        pool_dir: a finished pool.
        cases: the cases that its generator learnt from.

    Returns None where either side has no such slice.
    """
    if cases is None:
        return None
    record = read_pool(pool_dir)
    channels = len(record["dataset"]["channel_names"])
    names = [sample["id"] for sample in record["samples"]]
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(SLICES, len(names))).astype(int)]
    synthetic = _median(slice_ for name in chosen for slice_ in _slices(*load_sample(pool_dir, name, channels)))
    train = cases.fold.train[:: max(1, len(cases.fold.train) // SLICES)][:SLICES]
    real = _median(slice_ for name in train for slice_ in _of_case(cases.load(name)))
    return None if not real or synthetic is None else synthetic / real


def _of_case(case: Case) -> Iterator[np.ndarray]:
    return _slices(case.image, case.label)


def _slices(image: np.ndarray, label: np.ndarray) -> Iterator[np.ndarray]:
    """The slice with the median area of foreground, channel by channel: `(height, width)`."""
    areas = (label > 0).sum(axis=(1, 2))
    marked = np.flatnonzero(areas)
    if len(marked):
        index = marked[np.argsort(areas[marked])[len(marked) // 2]]
        yield from image[:, index]


def _median(slices: Iterable[np.ndarray]) -> float | None:
    values = [value for slice_ in slices if np.isfinite(value := sharpness(slice_))]
    return float(np.median(values)) if values else None
