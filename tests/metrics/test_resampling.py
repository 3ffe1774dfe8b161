"""Draws of whole groups, and intervals that cover what they say."""

import numpy as np
import pytest

from scripts.metrics.distributions import frechet_distance
from scripts.metrics.prdc import prdc
from scripts.metrics.resampling import Bootstrap, weighted_mean


def test_draws_hold_whole_groups_as_often_as_there_are():
    groups = np.array([0, 0, 1, 2, 2, 2, 3])
    weights = Bootstrap(300, seed=1).weights(groups, 0)
    assert weights.shape == (301, 7)
    assert np.all(weights[0] == 1)
    first = [0, 2, 3, 6]
    np.testing.assert_array_equal(weights, weights[:, first][:, groups])
    np.testing.assert_array_equal(weights[:, first].sum(axis=1), 4)
    assert weights[1:, 0].mean() == pytest.approx(1, abs=0.15) and weights[1:, 0].std() > 0.5


def test_seed_and_side_decide_the_draws():
    groups = np.arange(6)
    first = Bootstrap(20, seed=1).weights(groups, 0)
    np.testing.assert_array_equal(first, Bootstrap(20, seed=1).weights(groups, 0))
    assert not np.array_equal(first, Bootstrap(20, seed=1).weights(groups, 1))
    assert not np.array_equal(first, Bootstrap(20, seed=2).weights(groups, 0))


def test_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    bootstrap = Bootstrap(4000)
    found = bootstrap.summary(weighted_mean(values, bootstrap.weights(np.arange(400), 0)), 400)
    width = 1.96 * values.std() / 20
    assert found["value"] == pytest.approx(values.mean())
    assert found["interval"] == pytest.approx([values.mean() - width, values.mean() + width], abs=0.02)
    assert abs(found["shift"]) < 0.01


def test_patients_that_differ_make_the_interval_wider_than_their_slices_would():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(20, 1)) + 0.1 * rng.normal(size=(20, 10))).ravel()
    bootstrap = Bootstrap(500)

    def width(groups):
        low, high = bootstrap.summary(weighted_mean(values, bootstrap.weights(groups, 0)), 20)["interval"]
        return high - low

    assert width(np.repeat(np.arange(20), 10)) > 2.5 * width(np.arange(200))


def test_interval_lies_on_the_figure_and_within_its_bounds():
    draws = np.array([0.1, *np.linspace(0.2, 0.6, 101)])  # all draws beyond the figure
    found = Bootstrap(101).summary(draws, 10, (0.0, 1.0))
    assert found["shift"] == pytest.approx(0.3)
    assert found["interval"] == pytest.approx([0.0, 0.29], abs=1e-9)


def test_no_interval_from_few_groups_and_no_value_where_none_is_defined():
    draws = np.array([1.0, *np.random.default_rng(0).normal(1, 1, 50)])
    assert Bootstrap(50).summary(draws, 4) == {"value": 1.0, "interval": None, "shift": None}
    draws[1:20] = np.nan
    assert Bootstrap(50).summary(draws, 10)["interval"] is None
    draws[0] = np.nan
    assert Bootstrap(50).summary(draws, 10)["value"] is None


def test_mean_without_weight_is_not_defined():
    found = weighted_mean(np.array([1.0, 3.0]), np.array([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(found, [2.0, 3.0, np.nan])


@pytest.mark.slow
def test_intervals_cover_the_figure_of_other_patients_and_samples():
    """Patients with slices of their own kind, samples a standard deviation away; the target by simulation."""
    patients, slices, samples, trials = 20, 6, 60, 100
    groups = np.repeat(np.arange(patients), slices)

    def draw(rng):
        own = 0.6 * rng.normal(size=(patients, 1, 2)) + 0.8 * rng.normal(size=(patients, slices, 2))
        return rng.normal(size=(samples, 2)) + 1, own.reshape(-1, 2)

    def figures(a, b, wa, wb):
        return {"fid": frechet_distance(a, b, wa, wb), "recall": prdc(a, b, wa, wb, 3)["recall"]}

    rng = np.random.default_rng(0)
    one = np.ones((1, samples)), np.ones((1, patients * slices))
    truth = [figures(*draw(rng), *one) for _ in range(400)]
    hits = {"fid": 0, "recall": 0}
    for trial in range(trials):
        bootstrap = Bootstrap(80, seed=trial)
        a, b = draw(rng)
        found = figures(a, b, bootstrap.weights(np.arange(samples), 0), bootstrap.weights(groups, 1))
        for name, values in found.items():
            low, high = bootstrap.summary(values, patients)["interval"]
            hits[name] += low <= np.mean([value[name][0] for value in truth]) <= high
    assert all(0.82 <= hit / trials <= 0.99 for hit in hits.values()), hits
