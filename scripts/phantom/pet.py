"""Head and neck in FDG PET: uptake in SUV, with a primary tumour among physiological hot spots."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .fields import Array, Case, ellipsoid, largest_part, mirrored, noise, patient_grid, soft, tube

FIELD_OF_VIEW = (225.0, 225.0, 120.0)  # mm, when the caller sets the grid
_MIN_VOXELS = 8

# Where a primary tumour of the head and neck sits (x to either side, y, z in mm), and its share of patients.
_SITES = {
    "tonsil": ((19, 20, 2), 0.40),
    "base of tongue": ((7, 28, -10), 0.25),
    "hypopharynx": ((11, 14, -34), 0.15),
    "larynx": ((7, 24, -46), 0.12),
    "nasopharynx": ((8, 16, 26), 0.08),
}

# Centre (|x|, y, z) and radii in mm, median SUV and spread of its logarithm, share of patients who show it.
_ORGANS = {
    "parotid": ((57, 2, 6), (10, 16, 22), 2.0, 0.25, 1.0),
    "submandibular": ((29, 27, -20), (8, 12, 8), 2.6, 0.25, 1.0),
    "sublingual": ((12, 48, -14), (6, 13, 6), 2.8, 0.35, 0.9),
    "palatine tonsil": ((17, 21, 2), (6, 8, 10), 5.2, 0.35, 0.9),
    "tongue base": ((0, 29, -10), (13, 6, 6), 3.2, 0.35, 0.8),
    "adenoid": ((0, 12, 27), (11, 6, 5), 3.4, 0.35, 0.6),
    "vocal cords": ((6, 26, -47), (4.5, 10, 5), 4.6, 0.45, 0.85),
    "nasal mucosa": ((9, 62, 26), (6, 20, 14), 1.9, 0.25, 1.0),
    "eye muscles": ((32, 66, 46), (11, 9, 9), 3.2, 0.25, 1.0),
    "thyroid": ((15, 18, -66), (9, 9, 15), 1.8, 0.4, 1.0),
}


def make_case(rng: np.random.Generator, shape: tuple[int, ...] | None) -> Case:
    """One patient. Images float32 SUV (1 x y z), label 1 the primary gross tumour volume (GTVp)."""
    if shape is None:
        shape = (int(rng.integers(46, 51)) * 2, int(rng.integers(46, 51)) * 2, int(rng.integers(22, 27)))
        spacing: tuple[float, ...] = (2.34, 2.34, 5.0)
    else:
        spacing = tuple(fov / n for fov, n in zip(FIELD_OF_VIEW, shape, strict=True))
    coords, affine = patient_grid(rng, shape, spacing, tilt=5)
    coords = coords / np.float32(rng.normal(1, 0.04))
    # The origin of the anatomy below is the oropharynx; the scan runs from the brain to the larynx.
    coords += np.array([0, 10, -4], dtype=np.float32)[:, None, None, None]
    bent = coords + np.stack([1.5 * noise(rng, coords, 60) for _ in range(3)])

    body = _body(rng, bent)
    # A grid may pass between the slices of a small tumour: draw again.
    while True:
        tumour, lesion_suv = _tumour(rng, bent, spacing)
        for limit in (body["tissue"] - 2, -body["air"], -4 - body["brain"]):
            tumour = np.minimum(tumour, limit)
        near = largest_part(tumour > 0)
        label = (near & (tumour > 0)).astype(np.uint8)
        if label.sum() >= _MIN_VOXELS:
            break

    uptake = _uptake(rng, bent, body)
    fraction = soft(tumour, 3) * near
    uptake += fraction * (lesion_suv - uptake)
    return Case(_scan(rng, uptake, spacing)[None], label, affine)


def _body(rng: np.random.Generator, coords: Array) -> dict[str, Array]:
    """Signed distances of the outline, the air ways, the brain and the bones."""
    pair = mirrored(coords)
    x, y, z = coords
    skull = ellipsoid(coords, (0, -2, 58), (76, 98, 88))
    face = ellipsoid(coords, (0, 42, 4), (52, 50, 62))
    width = rng.uniform(0.9, 1.12)
    neck = tube(coords, [(0, -12, 30, 60 * width), (0, -8, -40, 56 * width), (0, -14, -110, 64 * width)])
    tissue = np.maximum(np.maximum(skull, face), neck)
    airway = tube(
        coords, [(0, 70, 20, 5), (0, 26, 24, 6), (0, 16, 12, 6), (0, 17, -20, 6), (0, 22, -46, 5), (0, 14, -110, 9)]
    )
    mouth = ellipsoid(coords, (0, 62, 6), (18, 20, 3))
    sinus = ellipsoid(pair, (27, 56, 22), (10, 14, 14))
    air = np.maximum(np.maximum(airway, mouth), sinus) + 1.0 * noise(rng, coords, 25)
    brain = ellipsoid(coords, (0, -4, 80), (64, 82, 52))
    cerebellum = ellipsoid(pair, (18, -50, 36), (31, 28, 18))
    spine = tube(coords, [(0, -28, 22, 11), (0, -22, -30, 11), (0, -34, -110, 13)])
    cord = tube(coords, [(0, -36, 40, 7), (0, -42, -30, 6), (0, -54, -110, 5)])
    jaw = tube(pair, [(46, 8, 26, 6), (44, 14, -14, 7), (26, 56, -24, 7), (0, 74, -24, 8)])
    return {
        "tissue": tissue,
        "air": air,
        "brain": brain,
        "cerebellum": cerebellum,
        "spine": spine,
        "cord": cord,
        "jaw": jaw,
    }


def _uptake(rng: np.random.Generator, coords: Array, body: dict[str, Array]) -> Array:
    """SUV of everything that is not tumour, before the scanner."""
    pair = mirrored(coords)
    image = np.zeros(coords.shape[1:], dtype=np.float32)

    def paint(distance: Array, suv: float | Array, width: float = 4) -> None:
        inside = np.minimum(distance, body["tissue"] - 3) if image.any() else distance
        image[...] += soft(inside, width) * (suv - image)

    muscle = rng.uniform(0.6, 1.0)
    texture = 1 + 0.16 * noise(rng, coords, 16)
    paint(body["tissue"], 0.35)  # skin and fat
    paint(body["tissue"] - rng.uniform(5, 9), muscle * texture)
    paint(body["spine"], rng.uniform(1.1, 1.9) * texture)
    paint(body["jaw"], 0.55)
    paint(body["cord"], rng.uniform(1.3, 2.0))
    blood = tube(pair, [(26, -4, 20, 4.5), (28, 2, -20, 5), (22, 0, -110, 5)])
    paint(blood, rng.uniform(1.2, 1.8))
    nape = ellipsoid(pair, (26, -58, -30), (17, 16, 75))
    paint(nape, muscle * 1.15 * texture)
    mastoid = tube(pair, [(60, -24, 16, 7), (46, -2, -30, 8), (22, 18, -90, 8)])
    paint(mastoid, muscle * rng.choice([1.2, 2.6], p=[0.8, 0.2]) * (1 + 0.4 * rng.uniform() * np.sign(coords[0])))
    tongue = ellipsoid(coords, (0, 42, -4), (20, 24, 12))
    paint(tongue, rng.uniform(1.2, 2.2) * texture)

    lobules = noise(rng, coords, 12)
    for centre, radii, mean, spread, share in _ORGANS.values():
        # The two of a pair differ, and so do the patients.
        common, present = rng.normal(0, spread), rng.uniform() < share
        for side in (-1, 1):
            place = (side * centre[0], *(np.array(centre[1:]) + rng.normal(0, 1.5, 2)))
            size = tuple(r * s for r, s in zip(radii, rng.uniform(0.8, 1.15, 3), strict=True))
            suv = mean * np.exp(common + rng.normal(0, 0.18))
            if present:
                paint(ellipsoid(coords, place, size) + 1.3 * lobules, suv * (1 + 0.15 * lobules))
    for _ in range(rng.poisson(1.5)):  # reactive lymph nodes
        place = (rng.choice([-1, 1]) * rng.uniform(34, 48), rng.uniform(-12, 16), rng.uniform(-50, 0))
        paint(ellipsoid(coords, place, tuple(rng.uniform(3.5, 6, 3))), rng.uniform(2.5, 5))

    grey, white = rng.uniform(8, 13), rng.uniform(3, 4.5)
    folds = 6 * np.abs(noise(rng, coords, 34))
    paint(body["brain"], white)
    cortex = np.minimum(body["brain"], np.maximum(6 - body["brain"], np.minimum(3.5 - folds, 24 - body["brain"])))
    paint(cortex, grey)
    paint(ellipsoid(pair, (20, 2, 70), (12, 26, 14)), 0.95 * grey)  # basal ganglia and thalamus
    paint(ellipsoid(pair, (10, -4, 84), (6, 32, 9)), 1.2)  # ventricles
    paint(1.5 - np.abs(coords[0]) + np.minimum(body["brain"], 0), 3.5)
    paint(body["cerebellum"], 0.75 * grey)
    paint(tube(coords, [(0, -20, 62, 12), (0, -30, 26, 8)]), 0.45 * grey)
    paint(body["air"], 0.05, width=3)
    return image


def _tumour(rng: np.random.Generator, coords: Array, spacing: tuple[float, ...]) -> tuple[Array, Array]:
    """Signed distance and SUV of a primary tumour, the large ones with a necrotic middle."""
    names = list(_SITES)
    site, _ = _SITES[str(rng.choice(names, p=[_SITES[name][1] for name in names]))]
    centre = np.array([rng.choice([-1, 1]) * site[0], site[1], site[2]]) + rng.normal(0, 3, 3)
    radius = max(float(np.clip(rng.lognormal(np.log(12.5), 0.33), 8, 22)), 0.8 * max(spacing))
    stretch = tuple(radius * s for s in np.exp(rng.normal(0, 0.18, 3)))
    distance = ellipsoid(coords, tuple(centre), stretch) + 0.16 * radius * noise(rng, coords, 3 * radius)
    # A lobe of the noise field far away is no part of this tumour.
    distance = np.minimum(distance, ellipsoid(coords, tuple(centre), (1.6 * radius,) * 3))
    peak = float(np.clip(rng.lognormal(np.log(8.5), 0.4), 5, 22))
    suv = peak * (1 + 0.15 * noise(rng, coords, 10))
    if radius > 12:
        suv = suv * (1 - rng.uniform(0, 0.7) * soft(distance - rng.uniform(4, 7), 5))
    return distance, suv


def _scan(rng: np.random.Generator, uptake: Array, spacing: tuple[float, ...]) -> Array:
    """What the scanner makes of an uptake: point spread, then noise that grows with it and is correlated."""
    sigma = rng.uniform(4.5, 7) / 2.355  # mm, from the full width at half maximum
    blurred = ndimage.gaussian_filter(uptake, [sigma / s for s in spacing])
    grain = ndimage.gaussian_filter(rng.standard_normal(uptake.shape, dtype=np.float32), [2.6 / s for s in spacing])
    grain /= grain.std()
    level = rng.uniform(0.06, 0.13)
    image = np.maximum(blurred + level * np.sqrt(blurred + 0.02) * grain, 0)
    # A scanner stores whole numbers and a scale, too; and the last bit depends on the processor.
    return (np.round(image * 1024) / 1024).astype(np.float32)
