"""Windows, holes and intensities: there and back, in millimetres."""

import numpy as np
import pytest

from scripts.data.holes import FAR, FRAME, Intensities, Window, hole_around, signed_distances, window_around
from scripts.runtime.errors import InputError


@pytest.mark.parametrize("start", [(2, 3), (-4, 5), (9, -2), (-3, -3)])
def test_a_window_goes_there_and_back(start):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 12, 10)).astype(np.float32)
    window, copy = Window(start, (8, 6)), image.copy()
    cut = window.cut(image)
    assert cut.shape == (2, 8, 6)
    window.put(copy, cut, np.ones((8, 6), bool))
    assert np.array_equal(copy, image)
    where = rng.random((8, 6)) < 0.3
    window.put(copy, cut + 1, where)
    changed = Window(start, (8, 6)).cut((copy != image).any(axis=0)[None])[0]
    inside = window.cut(np.ones((1, 12, 10), bool))[0]
    assert np.array_equal(changed, where & inside)


def test_a_window_holds_its_hole_and_what_is_around_it():
    hole = np.zeros((60, 50), bool)
    hole[20:45, 30:33] = True
    window = window_around(hole, (24, 24), 4)
    assert window.size == (40, 24) and all(size % 4 == 0 for size in window.size)
    rows = np.flatnonzero(window.cut(hole[None])[0].any(axis=1))
    assert rows[0] >= FRAME and rows[-1] < window.size[0] - FRAME and len(rows) == 25
    with pytest.raises(InputError, match="no voxel"):
        window_around(np.zeros((9, 9), bool), (8, 8), 4)


def test_intensities_come_back_from_the_model():
    rng = np.random.default_rng(1)
    image = np.stack([rng.lognormal(0, 2, (5, 6)), 1e4 + rng.normal(0, 300, (5, 6))]).astype(np.float32)
    map_ = Intensities(np.array([1.0, 1e4]), np.array([0.7, 250.0]))
    assert np.allclose(map_.invert(map_.apply(image)), image, rtol=1e-5, atol=1e-5)
    shifted = Intensities(map_.median * 3 + 5, map_.scale * 3)  # an affine change of the unit changes nothing
    assert np.allclose(shifted.apply(3 * image.astype(float) + 5), map_.apply(image.astype(float)), atol=1e-5)


def test_holes_and_distances_are_measured_in_millimetres():
    mask = np.zeros((1, 9, 21, 21), bool)
    mask[0, 4, 10, 10] = True
    hole = hole_around(mask[0], 4.0, (3.0, 1.0, 1.0))
    assert hole.any(axis=(1, 2)).sum() == 3 and hole.any(axis=(0, 1)).sum() == 9
    distance = signed_distances(mask, (3.0, 1.0, 1.0))[0]
    assert distance[5, 10, 10] == pytest.approx(3 / FAR) and distance[4, 10, 13] == pytest.approx(3 / FAR)
    assert distance[4, 10, 10] < 0 and distance.max() == 1
    assert (signed_distances(np.zeros((2, 5, 5), bool), (1.0, 1.0)) == 1).all()  # an empty mask: no lesion anywhere
    assert not hole_around(np.zeros((5, 5), bool), 3.0, (1.0, 1.0)).any()
