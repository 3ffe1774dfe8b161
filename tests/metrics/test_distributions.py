"""FID and KID against formulas written here, on Gaussians whose distance is known."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.kid import poly_mmd

from scripts.metrics import distributions
from scripts.metrics.distributions import frechet_distance, kernel_distance, kernel_distance_subsets


def ones(*sets):
    return [np.ones((1, len(x))) for x in sets]


def plain(function, a, b):
    return float(function(a, b, *ones(a, b))[0])


def gaussian(n, mean, variances, seed):
    """Rows whose sample mean and unbiased covariance are exactly the given ones."""
    x = np.random.default_rng(seed).normal(size=(n, len(variances)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)
    return x * np.sqrt(variances) + mean


def fid_by_root(a, b):
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_fid_of_gaussians_is_the_closed_form():
    p, q = np.array([1.0, 4.0, 0.25]), np.array([2.25, 1.0, 0.25])
    mean = np.array([0.5, -1.0, 2.0])
    expected = (mean**2).sum() + ((np.sqrt(p) - np.sqrt(q)) ** 2).sum()
    a, b = gaussian(40, mean, p, seed=1), gaussian(60, 0, q, seed=2)
    assert plain(frechet_distance, a, b) == pytest.approx(expected, rel=1e-10)


def test_fid_with_full_covariances_is_the_one_by_a_matrix_root():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    b = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6))
    assert plain(frechet_distance, a, b) == pytest.approx(fid_by_root(a, b), rel=1e-9)
    assert plain(frechet_distance, a, b) == pytest.approx(plain(frechet_distance, b, a), rel=1e-9)


def test_fid_with_fewer_items_than_features_loses_nothing():
    """Six features, turned into a space of 40: distances stay, covariances become singular."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 6)) * [1, 2, 3, 1, 1, 1] + 0.3, rng.normal(size=(15, 6))
    turn = np.linalg.qr(rng.normal(size=(40, 40)))[0][:6]
    assert plain(frechet_distance, a @ turn, b @ turn) == pytest.approx(fid_by_root(a, b), rel=1e-7)


@pytest.mark.parametrize("features", [3, 30])
def test_fid_of_a_set_against_itself_is_zero_and_grows_with_noise(features):
    x = np.random.default_rng(0).normal(size=(25, features))
    noise = np.random.default_rng(1).normal(size=x.shape)
    found = [plain(frechet_distance, x + level * noise, x) for level in (0, 0.1, 0.5, 1, 2)]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert np.all(np.diff(found) > 0)


@pytest.mark.parametrize("features", [3, 30])
def test_weights_of_fid_count_as_repeated_items(features):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, features)), rng.normal(size=(9, features)) + 1
    wa, wb = rng.integers(0, 3, (4, 12)).astype(float), rng.integers(0, 3, (4, 9)).astype(float)
    found = frechet_distance(a, b, wa, wb)
    for value, u, v in zip(found, wa.astype(int), wb.astype(int), strict=True):
        assert value == pytest.approx(plain(frechet_distance, a.repeat(u, axis=0), b.repeat(v, axis=0)), rel=1e-7)
    alone = np.eye(12)[:1]
    assert np.isnan(frechet_distance(a, b, alone, np.ones((1, 9))))[0]


def test_nothing_is_kept_between_calls():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 20, 4)) * [[[1]], [[2]], [[3]]]
    before = plain(frechet_distance, a, b), plain(kernel_distance, a, b)
    plain(frechet_distance, a, c), plain(kernel_distance, a, c)
    assert (plain(frechet_distance, a, b), plain(kernel_distance, a, b)) == before


def mmd_by_loops(a, b):
    def kernel(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    def within(x):
        values = [kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]
        return np.mean(values)

    return within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_kid_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), 0.5 + 2 * rng.normal(size=(10, 5))
    assert plain(kernel_distance, a, b) == pytest.approx(mmd_by_loops(a, b), rel=1e-10)
    same = poly_mmd(torch.from_numpy(b[:7]), torch.from_numpy(a)).item()
    assert plain(kernel_distance, a, b[:7]) == pytest.approx(same, rel=1e-10)


def test_kid_of_known_gaussians_is_unbiased_at_any_n():
    rng = np.random.default_rng(0)
    d, m = 4, 0.5
    same = [plain(kernel_distance, rng.normal(size=(8, d)), rng.normal(size=(5, d))) for _ in range(3000)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(3000)

    # E k(x, y), x ~ N(a, 1), y ~ N(b, 1): given x, x y / d + 1 is normal with mean 1 + a.x / d, variance |x|^2 / d^2.
    x = rng.normal(size=(400_000, d))

    def cubed(a, b):
        shifted = x + a
        mean, variance = 1 + shifted @ (np.ones(d) * b) / d, (shifted**2).sum(1) / d**2
        return float((mean**3 + 3 * mean * variance).mean())

    truth = cubed(m, m) + cubed(0, 0) - 2 * cubed(m, 0)
    far = [plain(kernel_distance, rng.normal(size=(8, d)) + m, rng.normal(size=(5, d))) for _ in range(3000)]
    assert abs(np.mean(far) - truth) < 5 * np.std(far) / np.sqrt(3000)
    assert truth > 0.1


def test_weights_of_kid_leave_out_pairs_of_an_item_with_its_copies():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(5, 3))
    wa, wb = np.array([2, 0, 1, 3, 1, 0]), np.array([1, 1, 0, 2, 1])
    rows, columns = np.repeat(np.arange(6), wa), np.repeat(np.arange(5), wb)

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    def within(x, order):
        return np.mean([kernel(x[i], x[j]) for i in order for j in order if i != j])

    across = np.mean([kernel(a[i], b[j]) for i in rows for j in columns])
    expected = within(a, rows) + within(b, columns) - 2 * across
    found = kernel_distance(a, b, wa[None].astype(float), wb[None].astype(float))
    assert found[0] == pytest.approx(expected, rel=1e-10)


def test_subsets_estimate_the_same_number():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 4)), rng.normal(size=(80, 4)) + 0.5
    found = kernel_distance_subsets(a, b, subsets=400, size=20)
    assert (found["subsets"], found["size"]) == (400, 20)
    assert found["mean"] == pytest.approx(plain(kernel_distance, a, b), abs=5 * found["sd"] / np.sqrt(400))
    assert found == kernel_distance_subsets(a, b, subsets=400, size=20)
    assert kernel_distance_subsets(a[:9], b, subsets=2)["size"] == 9


@pytest.mark.parametrize("function", [frechet_distance, kernel_distance])
def test_order_does_not_matter(function):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
    shuffled = plain(function, a[rng.permutation(30)], b[rng.permutation(20)])
    assert shuffled == pytest.approx(plain(function, a, b), rel=1e-9)


@pytest.mark.parametrize("function", [frechet_distance, kernel_distance])
@pytest.mark.parametrize("at_once", [1, 4, 7, 100])
def test_parts_give_the_same(monkeypatch, function, at_once):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(23, 3)), 1 + rng.normal(size=(17, 3))
    wa, wb = rng.integers(0, 4, (5, 23)), rng.integers(0, 4, (5, 17))
    whole = function(a, b, wa, wb)
    monkeypatch.setattr(distributions, "AT_ONCE", at_once)
    told = []
    np.testing.assert_allclose(function(a, b, wa.astype(np.int16), wb.astype(np.int16), told.append), whole, rtol=1e-9)
    assert sum(told) == {frechet_distance: 5, kernel_distance: 2 * 23 + 17}[function]
