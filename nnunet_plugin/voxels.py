"""Voxels as their files hold them, and whether a float32 image and whole-number labels can hold all of it."""

from pathlib import Path

import numpy as np

from .errors import InputError

# What rounding may move a voxel by, as a share of the range of its image.
ROUNDING = 1e-3
_REAL = "biuf"  # kinds of numpy's types


def as_image(array: np.ndarray, file: str | Path) -> np.ndarray:
    """The voxels of a file as float32, of the same shape.

    Raises:
        InputError: they are complex or colours, or float32 cannot tell them apart.
    """
    check_type(array.dtype, file)
    with np.errstate(over="ignore"):
        image = array.astype(np.float32)
    if array.dtype.itemsize > 2 and array.dtype != np.float32 and array.size:
        wide = np.longdouble if array.dtype.kind in "iu" and array.dtype.itemsize == 8 else np.float64
        exact = array.astype(wide)
        given = np.isfinite(exact)
        low, high = (exact[given].min(), exact[given].max()) if given.any() else (0, 0)
        moved = np.abs(image[given] - exact[given]).max(initial=0)
        if high > low and moved > ROUNDING * (high - low):
            raise InputError(
                f"{file} with voxels from {low:.17g} to {high:.17g} ({array.dtype}), which rounding to float32 moves "
                f"by up to {moved:.3g}",
                f"images that float32 holds to a {1 / ROUNDING:g}th of their range",
                "subtract an offset or divide, and write the image again",
            )
    return image


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
