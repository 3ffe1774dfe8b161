"""Voxels as their files hold them, and whether a float32 image and whole-number labels can hold all of it."""

from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

# What rounding may move a voxel by, as a share of the range of its image.
ROUNDING = 1e-3
_REAL = "biuf"  # kinds of numpy's types


def as_image(array: np.ndarray, file: str | Path) -> np.ndarray:
    """The voxels of a file as float32, of the same shape; those that are float32 already are not copied.

    Raises:
        InputError: they are complex or colours, or float32 cannot tell them apart.
    """
    check_type(array.dtype, file)
    with np.errstate(over="ignore"):
        image = array.astype(np.float32, copy=False)
    if array.dtype.itemsize <= 2 or array.dtype == np.float32:
        return image
    low, high = _range(array)
    largest, allowed, moved = max(abs(low), abs(high)), ROUNDING * (high - low), float("inf")
    if largest <= float(np.finfo(np.float32).max):
        computed = 4 * np.finfo(array.dtype).eps * largest if array.dtype.kind == "f" else 0
        if high - low <= computed:  # one value, but for the rounding of what was computed
            return image
        if max(largest * 2.0**-24, 2.0**-150) <= allowed:  # half a step of float32
            return image
        moved = _moved(array, image)
    if moved > allowed or moved == float("inf"):
        raise InputError(
            f"{file} with voxels from {low:.17g} to {high:.17g} ({array.dtype}), which rounding to float32 moves "
            f"by up to {moved:.3g}",
            f"images that float32 holds to a {1 / ROUNDING:g}th of their range",
            "subtract an offset or divide, and write the image again",
        )
    return image


def _range(array: np.ndarray) -> tuple[Any, Any]:
    """The smallest and the largest finite voxel, as Python's numbers, whose difference does not wrap; or 0 and 0."""
    if not array.size:
        return 0, 0
    with np.errstate(invalid="ignore"):
        low, high = array.min(), array.max()
    if array.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
        given = np.isfinite(array)
        low, high = array.min(where=given, initial=np.inf), array.max(where=given, initial=-np.inf)
    return (low.item(), high.item()) if low <= high else (0, 0)


def _moved(array: np.ndarray, image: np.ndarray) -> float:
    """What rounding moves a finite voxel by at most, in pieces, as whole volumes in double precision need much room."""
    wide = np.longdouble if array.dtype.itemsize >= 8 else np.float64
    pieces = np.nditer([array, image], ["external_loop", "buffered"], op_dtypes=[wide, wide], buffersize=2**16)  # type: ignore[arg-type]
    with np.errstate(invalid="ignore"):
        return max(float(np.abs(b - a)[np.isfinite(a)].max(initial=0)) for a, b in pieces)


def as_label(array: np.ndarray, file: str | Path) -> np.ndarray:
    """The voxels of a label's file as int16, of the same shape.

    Raises:
        InputError: not all are whole numbers that int16 holds.
    """
    check_type(array.dtype, file)
    with np.errstate(invalid="ignore"):
        label = array.astype(np.int16)
    if not np.array_equal(label, array):
        wrong = array[label != array].ravel()[:1].tolist()
        raise InputError(f"{file} with the label {wrong[0]}", "whole numbers that int16 holds", "mend the label")
    return label


def check_type(dtype: np.dtype, file: str | Path) -> None:
    """Raise `InputError` for voxels that are no single real numbers."""
    if dtype.kind not in _REAL:
        what = "complex numbers" if dtype.kind == "c" else f"colours or the like ({dtype})"
        raise InputError(
            f"{file}, whose voxels are {what}", "one real number a voxel", "write magnitude, or a file a channel"
        )
