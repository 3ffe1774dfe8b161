"""Mask figures against scipy, against geometry, and where masks are empty."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from scripts.metrics import masks
from scripts.metrics.masks import empty_share, feature_distance, feature_unit, mask_divergences, tumour_features
from scripts.runtime.tensor_store import TensorStore


def labels(n, seed, shape=(9, 8), classes=3):
    return np.random.default_rng(seed).integers(0, classes, (n, *shape)).astype(np.uint8)


def plain(a, b, classes=(0, 1, 2), **more):
    found = mask_divergences(a, b, classes, np.ones((1, len(a))), np.ones((1, len(b))), **more)
    return {name: float(values[0]) for name, values in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(9, 8), (3, 5, 4), (90, 70)])  # the last is longer than a chunk
def test_divergences_are_those_of_scipy_at_every_pixel(shape):
    a, b = labels(7, 1, shape), np.minimum(labels(5, 2, shape), 1)  # the reference never shows class 2
    found = plain(a, b)
    jsd, kld = [], []
    for q, p in zip(a.reshape(7, -1).T, b.reshape(5, -1).T, strict=True):
        count_q, count_p = np.bincount(q, minlength=3), np.bincount(p, minlength=3)
        jsd.append(jensenshannon(count_p, count_q) ** 2)
        kld.append(entropy(count_p + 0.5, count_q + 0.5))
    assert found["jsd"] == pytest.approx(np.mean(jsd))
    assert found["kld"] == pytest.approx(np.mean(kld))


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_parts_of_the_masks_give_the_same(monkeypatch, at_once):
    a, b = labels(7, 1), labels(5, 2)
    whole = plain(a, b)
    monkeypatch.setattr(masks, "AT_ONCE", at_once)
    assert plain(a, b) == pytest.approx(whole, rel=1e-12)
    store = TensorStore(room=100)  # one of them in memory, the others in a file
    for mask in a:
        store.append(torch.from_numpy(mask))
    assert plain(store.rows(), b) == pytest.approx(whole, rel=1e-12)


def test_divergence_of_equal_sets_is_zero_and_of_opposite_ones_the_bound():
    a = labels(6, 0)
    assert plain(a, a[::-1]) == pytest.approx({"jsd": 0, "kld": 0}, abs=1e-12)
    opposite = plain(np.zeros((4, 3, 3), np.uint8), np.ones((4, 3, 3), np.uint8))
    assert opposite["jsd"] == pytest.approx(np.log(2))
    assert np.isfinite(opposite["kld"]) and opposite["kld"] > plain(a, labels(6, 1))["kld"]


def test_divergence_grows_as_pixels_flip():
    rng = np.random.default_rng(0)
    real = (np.arange(64).reshape(8, 8) % 8 < 3).astype(np.uint8)[None].repeat(40, 0)
    chance = rng.random(real.shape)
    found = [plain(np.where(chance < level, 1 - real, real), real, (0, 1)) for level in (0, 0.1, 0.3, 0.5)]
    for name in ("jsd", "kld"):
        assert np.all(np.diff([values[name] for values in found]) > 0)


def test_weights_count_as_repeated_masks():
    a, b = labels(5, 1), labels(4, 2)
    u, v = np.array([0, 2, 1, 1, 3]), np.array([1, 0, 2, 1])
    found = mask_divergences(a, b, (0, 1, 2), u[None].astype(float), v[None].astype(float))
    assert {k: x[0] for k, x in found.items()} == pytest.approx(plain(a.repeat(u, axis=0), b.repeat(v, axis=0)))


def test_empty_masks_are_background_for_the_divergences():
    real = np.zeros((4, 4, 4), np.uint8)
    real[:, 1:3, 1:3] = 1
    empty = np.zeros_like(real)
    quarter = 4 / 16 * np.log(2)  # a quarter of the pixels is certain to differ
    assert plain(empty, real, (0, 1))["jsd"] == pytest.approx(quarter)
    assert plain(empty, empty, (0, 1)) == pytest.approx({"jsd": 0, "kld": 0})


def test_features_are_in_millimetres_from_the_middle():
    mask = np.zeros((10, 20), bool)
    mask[2:6, 12:18] = True
    found = tumour_features(mask, (2.0, 0.5))
    assert found["volume"] == 24 * 1.0
    assert (found["centre_height"], found["centre_width"]) == (4 * 2 - 10, 15 * 0.5 - 5)
    assert (found["extent_height"], found["extent_width"]) == (8, 3)
    padded = tumour_features(np.pad(mask, ((5, 5), (3, 3))), (2.0, 0.5))
    assert padded == pytest.approx(found)  # a larger field of view changes nothing
    volume = tumour_features(np.stack([mask, mask]), (3.0, 2.0, 0.5))
    assert volume["volume"] == 2 * 24 * 3 and volume["centre_depth"] == 0 and volume["extent_depth"] == 6


def test_units_follow_the_dimension():
    assert [feature_unit(name, 2) for name in ("volume", "surface_area", "sphericity", "extent_width")] == [
        "mm^2", "mm", "", "mm",
    ]  # fmt: skip
    assert [feature_unit(name, 3) for name in ("volume", "surface_area")] == ["mm^3", "mm^2"]


def test_an_empty_mask_has_no_features_and_is_counted_apart():
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert np.isnan(list(tumour_features(empty, (1, 1)).values())).all()
    assert set(tumour_features(empty, (1, 1))) == set(tumour_features(full, (1, 1)))
    volumes = np.array([np.nan, 4.0, 6.0, np.nan])
    weights = np.array([[1.0, 1, 1, 1], [3, 1, 0, 0], [2, 0, 0, 2]])
    np.testing.assert_allclose(empty_share(volumes, weights), [0.5, 0.75, 1])
    found = feature_distance(volumes, np.array([5.0, 7.0]), weights, np.ones((3, 2)))
    np.testing.assert_allclose(found, [1.0, 2.0, np.nan])  # {4, 6} to {5, 7}; {4} to {5, 7}; nothing
    nothing = feature_distance(np.array([np.nan]), np.array([1.0]), np.ones((1, 1)), np.ones((1, 1)))
    assert np.isnan(nothing).all()


def test_wasserstein_distance_is_the_mean_gap_of_sorted_values():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), 2 + 3 * rng.normal(size=30)
    found = feature_distance(a, b, np.ones((1, 30)), np.ones((1, 30)))[0]
    assert found == pytest.approx(np.abs(np.sort(a) - np.sort(b)).mean())
    shifted = feature_distance(a + 7, a, np.ones((1, 30)), np.ones((1, 30)))[0]
    assert shifted == pytest.approx(7)
