"""Smooth random fields and soft shapes in patient coordinates, from which the phantoms are built.

Everything is a function of millimetres and not of voxels, so that another grid shows the same patient. A
shape is a signed distance in mm, positive inside; `soft` turns it into the fraction of a voxel that it fills.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

Array = np.ndarray

_LATTICE = 64  # samples a side of one period of a random field: fine enough for linear interpolation
_PERIOD = 6  # in wavelengths
_MODES = np.arange(-20, 21)


def _envelope() -> Array:
    """Amplitude of each Fourier mode: a difference of Gaussians with its peak at one wavelength."""
    square = sum(m.astype(np.float32) ** 2 for m in np.ix_(_MODES, _MODES, _MODES[_MODES >= 0])) / _PERIOD**2
    return np.exp(-0.46 * square) - np.exp(-1.85 * square)


_ENVELOPE = _envelope()


class Case(NamedTuple):
    """One patient: images (channel x y z), label map (x y z) and voxel-to-world affine (RAS+, mm)."""

    images: Array
    label: Array
    affine: Array


def patient_grid(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...], tilt: float
) -> tuple[Array, Array]:
    """Coordinates (3, x, y, z) in mm in the patient's frame (right, anterior, superior), and the affine.

    Voxel axes run to left, posterior and superior, as in a volume made from axial DICOM slices. The patient
    lies up to `tilt` degrees and a few mm off the axes, and the scanner's origin is elsewhere.
    """
    size, step = np.array(shape), np.array(spacing)
    direction = np.array([-1.0, -1.0, 1.0])
    corner = -direction * step * (size - 1) / 2
    affine = np.diag([*(direction * step), 1.0])
    affine[:3, 3] = corner + np.round(rng.uniform(-15, 15, 3), 2)

    angles = np.deg2rad(rng.uniform(-tilt, tilt, 3))
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    start = corner - rng.uniform(-3, 3, 3)
    x, y, z = np.ix_(*(start[a] + direction[a] * step[a] * np.arange(size[a]) for a in range(3)))
    # No matrix product: the last bit of BLAS depends on the number of threads.
    return np.stack([r[0] * x + r[1] * y + r[2] * z for r in rotation]).astype(np.float32), affine


def noise(rng: np.random.Generator, coords: Array, wavelength: float) -> Array:
    """Gaussian field of mean 0 and standard deviation 1 with one dominant wavelength in mm, at `coords`."""
    spectrum = np.zeros((_LATTICE, _LATTICE, _LATTICE // 2 + 1), dtype=np.complex64)
    parts = rng.standard_normal((*_ENVELOPE.shape, 2), dtype=np.float32)
    spectrum[np.ix_(_MODES, _MODES, _MODES[_MODES >= 0])] = _ENVELOPE * parts.view(np.complex64)[..., 0]
    field = fft.irfftn(spectrum, s=(_LATTICE,) * 3, overwrite_x=True)
    field /= field.std()
    at = coords * np.float32(_LATTICE / (_PERIOD * wavelength))
    return ndimage.map_coordinates(field, at, order=1, mode="grid-wrap")


def soft(distance: Array, width: float) -> Array:
    """Fraction of a voxel inside a shape: 0 to 1 over `width` mm around the shape's surface."""
    return np.clip(0.5 + distance / width, 0, 1)


def ellipsoid(coords: Array, centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """Signed distance in mm to an ellipsoid, exact to first order at its surface."""
    rho = np.sqrt(sum(((c - m) / r) ** 2 for c, m, r in zip(coords, centre, radii, strict=True)))
    return (1 - rho) * np.float32(np.cbrt(np.prod(radii)))


def tube(coords: Array, path: list[tuple[float, float, float, float]]) -> Array:
    """Signed distance in mm to a tube along `path`, whose points are x, y, z and the radius there."""
    nodes = np.array(path, dtype=np.float32)
    inside = np.full(coords.shape[1:], -np.inf, dtype=np.float32)
    for start, end in zip(nodes[:-1], nodes[1:], strict=True):
        run = end[:3] - start[:3]
        along = sum((c - s) * d for c, s, d in zip(coords, start, run, strict=False)) / (run @ run)
        along = np.clip(along, 0, 1)
        gap = np.sqrt(sum((c - s - along * d) ** 2 for c, s, d in zip(coords, start, run, strict=False)))
        np.maximum(inside, start[3] + along * (end[3] - start[3]) - gap, out=inside)
    return inside


def mirrored(coords: Array) -> Array:
    """The same points folded onto the right half, so that one shape stands for its pair."""
    return np.stack([np.abs(coords[0]), coords[1], coords[2]])


def largest_part(mask: Array) -> Array:
    """The largest connected part of a mask, with the voxels next to it."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    return ndimage.binary_dilation(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))
