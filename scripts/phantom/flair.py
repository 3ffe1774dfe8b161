"""A brain with a glioma, as FLAIR alone or as T1, T1c, T2 and FLAIR; skull-stripped, with 0 outside."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .fields import Array, Case, ellipsoid, largest_part, mirrored, noise, patient_grid, soft, tube

FIELD_OF_VIEW = (192.0, 192.0, 110.0)  # mm, when the caller sets the grid
SEQUENCES = ("T1", "T1c", "T2", "FLAIR")
OEDEMA, NECROSIS, ENHANCING = 1, 2, 3

# Signal of each tissue in each sequence, white matter on FLAIR being 1.
_SIGNAL = {
    "white": (1.00, 1.00, 0.62, 1.00),
    "grey": (0.70, 0.74, 0.92, 1.34),
    "deep": (0.82, 0.85, 0.78, 1.17),
    "csf": (0.28, 0.30, 1.90, 0.20),
    "hyperintensity": (0.85, 0.86, 1.05, 1.65),
    "vessel": (0.45, 1.85, 0.25, 0.35),
    "oedema": (0.70, 0.73, 1.42, 1.72),
    "enhancing": (0.80, 1.75, 1.20, 1.62),
    "necrosis": (0.42, 0.45, 1.62, 0.95),
}
_CEREBRUM = (66.0, 84.0, 63.0)
_MIN_VOXELS = 8
_IN_PLANE = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])[:, :, None]


class _Tumour(NamedTuple):
    centre: Array  # mm
    radius: float  # of the core, mm
    core: Array  # signed distances, mm
    oedema: Array
    necrosis: Array


def make_case(rng: np.random.Generator, shape: tuple[int, ...] | None, channels: int) -> Case:
    """One patient. Images int16 (channels x y z), 0 exactly outside the brain and at least 1 inside.

    With one channel the label is 1 where FLAIR is abnormal; with four it is 1 oedema, 2 necrosis, 3 enhancing
    tumour.
    """
    if shape is None:
        shape = (int(rng.integers(46, 51)) * 2, int(rng.integers(46, 51)) * 2, int(rng.integers(18, 25)))
        spacing: tuple[float, ...] = (2.0, 2.0, 5.0)
    else:
        spacing = tuple(fov / n for fov, n in zip(FIELD_OF_VIEW, shape, strict=True))
    coords, affine = patient_grid(rng, shape, spacing, tilt=4)
    # The grid's middle lies above the brain's: the lowest slices of a brain scan still show the cerebellum.
    coords = (coords + np.array([0, 0, 5], dtype=np.float32)[:, None, None, None]) / np.float32(rng.normal(1, 0.03))
    age = rng.uniform(0, 1)

    # A grid may pass between the slices of a small tumour, or a ventricle fill its place: draw again.
    while True:
        tumour = _draw_tumour(rng, coords, spacing)
        depth, layers = _anatomy(rng, coords, tumour, age)
        # Cisterns that the brain encloses within a slice belong to what skull stripping leaves.
        brain = ndimage.binary_fill_holes(depth > 0, _IN_PLANE)
        label = _label(layers, brain)
        if min((label == OEDEMA).sum(), (label == ENHANCING).sum()) >= _MIN_VOXELS:
            break

    texture = 1 + 0.09 * noise(rng, coords, 30) + 0.04 * noise(rng, coords, 12)
    flair_gain = rng.uniform(0.85, 1.12)
    names = SEQUENCES if channels == 4 else ("FLAIR",)
    images = np.stack([_render(rng, name, layers, coords, brain, texture, flair_gain, spacing) for name in names])
    return Case(images, label if channels == 4 else (label > 0).astype(np.uint8), affine)


def _draw_tumour(rng: np.random.Generator, coords: Array, spacing: tuple[float, ...]) -> _Tumour:
    """A lobulated core with necrosis inside and oedema around, somewhere in the cerebrum."""
    side = rng.choice([-1, 1])
    if rng.uniform() < 0.2:  # temporal lobe
        centre = np.array([side * rng.uniform(34, 44), rng.uniform(-15, 18), rng.uniform(-30, -14)])
    else:
        while True:
            centre = np.array([side * rng.uniform(16, 50), rng.uniform(-60, 55), rng.uniform(-4, 42)])
            if np.linalg.norm(centre / _CEREBRUM) < 0.82:
                break
    radius = max(float(np.clip(rng.lognormal(np.log(12.5), 0.4), 6, 24)), 0.8 * max(spacing))
    stretch = tuple(radius * s for s in np.exp(rng.normal(0, 0.18, 3)))
    lobes = noise(rng, coords, 3 * radius)
    core = ellipsoid(coords, tuple(centre), stretch) + 0.22 * radius * lobes + 1.0 * noise(rng, coords, 13)
    margin = rng.uniform(2, 11)
    fingers = noise(rng, coords, 34)
    oedema = core + margin + 0.45 * margin * fingers + 0.6 * noise(rng, coords, 12)
    # A lobe of the noise field far away is no part of this tumour.
    reach = radius * 1.7 + 1.6 * margin
    oedema = np.minimum(oedema, ellipsoid(coords, tuple(centre), (reach,) * 3))
    core = np.minimum(core, oedema - 1)
    rim = rng.uniform(0.22, 0.75) * radius
    necrosis = core - rim * (1 + 0.35 * noise(rng, coords, 20))
    return _Tumour(centre.astype(np.float32), radius, core, oedema, necrosis)


def _anatomy(
    rng: np.random.Generator, coords: Array, tumour: _Tumour, age: float
) -> tuple[Array, list[tuple[str, Array]]]:
    """Depth below the brain's surface in mm, and the tissues as fractions in the order they are painted."""
    x, y, z = coords
    # Narrow in front, and flat below, where the orbits are.
    shaped = np.stack([x / (1 - 0.0011 * (y + 15)), y, np.where(z < 0, z * 1.7, z)])
    pair = mirrored(coords)
    cerebrum = ellipsoid(shaped, (0, 0, 0), _CEREBRUM)
    temporal = ellipsoid(pair, (38, 2, -24), (25, 42, 25))
    cerebellum = ellipsoid(pair, (16, -50, -38), (34, 31, 23))
    stem = tube(coords, [(0, -18, -10, 14), (0, -24, -34, 14), (0, -34, -70, 9)])
    upper = np.maximum(cerebrum, temporal)
    depth = np.maximum(np.maximum(upper, cerebellum), stem) + 1.2 * noise(rng, coords, 55)
    hind = soft(np.maximum(cerebellum, stem) - upper, 2)  # behind and below the tentorium: no cortex there

    # Mass effect: tissue has moved away from the tumour's centre.
    away = coords - tumour.centre[:, None, None, None]
    push = rng.uniform(0.2, 0.42) * np.exp(-(away**2).sum(0) / (2 * (1.7 * tumour.radius) ** 2))
    moved = coords - away * push
    # Nobody is symmetric.
    moved[0] += 1.6 * noise(rng, coords, 70)
    pair = mirrored(moved)

    grey, sulci = _cortex(rng, moved, shaped, depth, age)
    bent = moved.copy()
    bent[1] += 4 * noise(rng, moved, 45)
    bent[0] += 0.8 * noise(rng, moved, 40)
    fissure = _fissures(moved, mirrored(bent), age)
    grey = np.maximum(grey, soft(fissure + 3.5, 2) * soft(cerebrum - 1, 2))
    folia = np.sin(0.95 * np.sqrt(moved[0] ** 2 + (moved[1] + 30) ** 2 + (moved[2] + 30) ** 2))
    leaves = soft(13 - cerebellum + 2 * noise(rng, moved, 12), 7) * (0.6 + 0.4 * folia)
    grey = grey * (1 - hind) + hind * leaves * soft(cerebellum - stem, 3)
    sulci = np.maximum(sulci, soft(fissure, 2)) * (1 - hind) + hind * 0.3 * soft(-0.4 - folia, 0.6) * leaves
    tentorium = soft(1.6 - np.abs(cerebellum - upper), 2) * (depth > 2) * (z < -8)
    sulci = np.maximum(np.maximum(sulci, 0.7 * tentorium), depth < 0)

    deep = np.maximum(
        np.maximum(ellipsoid(pair, (14, 19, 12), (5, 12, 9)), ellipsoid(pair, (26, 4, 3), (6, 18, 11))),
        ellipsoid(pair, (11, -15, 6), (9, 14, 9)),
    )
    ventricles = _ventricles(rng, moved, pair, age)
    caps = soft(ventricles + rng.uniform(1.5, 3.5), 5) * (np.abs(pair[1] - 2) > 24) * rng.uniform(0.1, 0.5)
    spots = soft(4.2 * (noise(rng, moved, 13) - rng.uniform(2.6, 3.4) + 0.4 * age), 3) * soft(depth - 14, 6)

    filled = soft(ventricles, 2)
    vessel = soft(noise(rng, moved, 10) - 1.5, 1) * sulci + soft(3 - np.hypot(x, depth - 2), 3) * (z > 0) * 0.8
    # Vasogenic oedema spreads in white matter, stops at the cortex and does not fill sulci.
    spread = soft(tumour.oedema - 4.5 * grey - 3.5 * sulci, 3) * (1 - filled) * (1 - 0.75 * soft(fissure, 2))
    spread *= soft(depth - 1, 3) * (1 - hind)
    spread *= largest_part(spread > 0.5)
    inside = spread * soft(tumour.core, 2.5)
    return depth, [
        ("white", np.ones_like(depth)),
        ("grey", grey),
        ("deep", 0.9 * soft(deep, 3)),
        ("hyperintensity", np.maximum(caps, 0.8 * spots) * (1 - grey)),
        ("csf", sulci),
        ("vessel", np.minimum(vessel, 1)),
        ("csf", filled),
        ("oedema", spread),
        ("enhancing", inside),
        ("necrosis", inside * soft(tumour.necrosis, 2.5)),
    ]


def _cortex(rng: np.random.Generator, moved: Array, shaped: Array, depth: Array, age: float) -> tuple[Array, Array]:
    """Grey matter and sulcal fluid.

    Sulci are the zero set of a field that hardly changes along the radius, so that they run inwards.
    """
    rho = np.sqrt(sum((c / r) ** 2 for c, r in zip(shaped, _CEREBRUM, strict=True)))
    surface = moved * ((0.68 + 0.32 * rho) / np.maximum(rho, 0.3))
    fold = np.abs(noise(rng, surface, 31) + 0.12 * noise(rng, moved, 16))
    reach = 19 + 5 * noise(rng, moved, 50)
    left = np.clip(1 - depth / reach, -1, 1)
    open_at = (0.06 + 0.16 * age) * np.sqrt(np.maximum(left, 0)) + 0.07
    to_fluid = np.where(left > 0, open_at - fold, -1) * 4.9  # 4.9 mm = wavelength / 2 pi
    grey = soft(np.maximum(np.minimum(to_fluid + 2.9, left * reach), 3.4 - depth), 2)
    sulci = np.maximum(soft(to_fluid, 1.6), soft(0.4 + 0.9 * age - depth, 2.5))
    return grey, sulci


def _fissures(moved: Array, pair: Array, age: float) -> Array:
    """Signed distance to the interhemispheric and Sylvian fissures."""
    y, z = moved[1], moved[2]
    wide = 0.6 + 0.9 * age
    around_callosum = np.hypot(y / 46, (z - 4) / 27) - 1
    falx = np.minimum(wide - pair[0], around_callosum * 25) - 60 * (z < -28)
    sheet = wide + 0.6 - np.abs(pair[1] - 17 - 0.30 * (pair[0] - 45) - 0.55 * (z - 2)) * 0.8
    sylvian = np.minimum(np.minimum(sheet, pair[0] - 36), 17 - np.abs(z - 1))
    return np.maximum(falx, sylvian)


def _ventricles(rng: np.random.Generator, moved: Array, pair: Array, age: float) -> Array:
    """Signed distance to the lateral, third and fourth ventricles."""
    size = rng.uniform(0.75, 1.15) + 0.7 * age
    lateral = tube(
        pair,
        [
            (14, 35, 9, 2.2 * size),
            (9, 22, 14, 3.4 * size),
            (7, 4, 20, 3.2 * size),
            (12, -18, 21, 3.4 * size),
            (22, -34, 12, 4.0 * size),
            (24, -48, 6, 2.0 * size),
        ],
    )
    horn = tube(pair, [(22, -34, 10, 2.6 * size), (31, -22, -10, 1.6 * size), (30, -2, -18, 1.3 * size)])
    septum = pair[0] - 1.4  # keeps the two apart
    third = ellipsoid(moved, (0, -6, 0), (1.3 + size, 13, 9))
    fourth = ellipsoid(moved, (0, -38, -30), (5 * np.sqrt(size), 4.5, 9))
    return np.maximum(np.maximum(np.minimum(np.maximum(lateral, horn), septum), third), fourth)


def _label(layers: list[tuple[str, Array]], brain: Array) -> Array:
    """Integer labels where a tumour tissue fills more than half of a voxel."""
    label = np.zeros(brain.shape, dtype=np.uint8)
    for (_, fraction), value in zip(layers[-3:], (OEDEMA, ENHANCING, NECROSIS), strict=True):
        label[(fraction > 0.5) & brain] = value
    return label


def _render(
    rng: np.random.Generator,
    sequence: str,
    layers: list[tuple[str, Array]],
    coords: Array,
    brain: Array,
    texture: Array,
    abnormal_gain: float,
    spacing: tuple[float, ...],
) -> Array:
    """One sequence in scanner units: tissue signal, point spread, coil shading and Rician noise."""
    column = SEQUENCES.index(sequence)
    signal = np.zeros(brain.shape, dtype=np.float32)
    level = {tissue: values[column] * np.exp(rng.normal(0, 0.04)) for tissue, values in _SIGNAL.items()}
    for tissue, fraction in layers:
        value = level[tissue]
        if tissue in ("oedema", "enhancing", "necrosis"):
            value = value * texture * (abnormal_gain if sequence == "FLAIR" else 1)
        signal += fraction * (value - signal)
    signal *= 1 + 0.035 * noise(rng, coords, 16)
    blur = [0.9 / spacing[0], 0.9 / spacing[1], 0]
    signal = ndimage.gaussian_filter(signal, blur)
    direction = rng.normal(0, 1, 3)
    ramp = sum(d * c for d, c in zip(direction / np.linalg.norm(direction), coords, strict=True)) / 80
    bowl = (coords**2).sum(0) / 80**2  # coils are nearer to the surface
    shading = rng.uniform(0.04, 0.16) * ramp + rng.uniform(0, 0.12) * bowl + 0.04 * noise(rng, coords, 120)
    signal *= np.exp(shading)
    sigma = rng.uniform(0.025, 0.06)
    real, imaginary = sigma * rng.standard_normal((2, *brain.shape), dtype=np.float32)
    scanner = rng.lognormal(np.log(400), 0.35)
    image = np.round(scanner * np.hypot(signal + real, imaginary))
    return np.where(brain, np.clip(image, 1, 32767), 0).astype(np.int16)
