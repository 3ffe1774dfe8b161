"""Paired comparison: against hand-computed values, scipy, and the coverage that the interval promises."""

import numpy as np
import pytest
from scipy import stats

from scripts.metrics.comparison import bootstrap_interval, compare_paired, mean_over_labels, summarise
from scripts.runtime.errors import InputError


def named(values):
    return {f"p{index:02d}": value for index, value in enumerate(values)}


def test_mean_and_spread_by_hand():
    summary = summarise({3: named([0.2, 0.4]), 1: named([0.4, 0.8])})
    # Patients averaged over seeds: 0.3, 0.6; seed means: 0.6 (seed 1), 0.3 (seed 3).
    assert summary["mean"] == pytest.approx(0.45)
    assert summary["sd"] == pytest.approx(0.3 / np.sqrt(2))
    assert summary["seed_means"] == {1: pytest.approx(0.6), 3: pytest.approx(0.3)}
    assert summary["sd_over_seeds"] == pytest.approx(0.3 / np.sqrt(2))
    assert (summary["n"], summary["excluded"]) == (2, [])


def test_difference_is_taken_after_averaging_over_seeds():
    # The other arm has one seed more: an average over (patient, seed) pairs would weigh the arms wrongly.
    reference = {0: named([0.1, 0.2, 0.3, 0.4, 0.5])}
    other = {0: named([0.3, 0.4, 0.5, 0.6, 0.7]), 1: named([0.1, 0.2, 0.3, 0.4, 0.5])}
    result = compare_paired(reference, other)
    assert result["difference"] == pytest.approx(0.1)
    assert result["interval"] == pytest.approx([0.1, 0.1])
    assert result["difference_by_seed"] == {0: pytest.approx(0.2)}
    assert (result["better"], result["worse"], result["equal"]) == (5, 0, 0)


def test_p_is_scipys_and_interval_is_the_bootstrap_of_patients():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.4, 0.9, 20), rng.uniform(0.4, 0.9, 20)
    result = compare_paired({0: named(a)}, {0: named(b)}, seed=7)
    assert result["p"] == pytest.approx(stats.wilcoxon(b - a).pvalue)
    assert result["sd_difference"] == pytest.approx(np.std(b - a, ddof=1))
    scipys = stats.bootstrap(
        (b - a,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(3)
    ).confidence_interval
    assert result["interval"] == pytest.approx([scipys.low, scipys.high], abs=0.004)
    assert result == compare_paired({0: named(a)}, {0: named(b)}, seed=7)
    assert result["interval"] != compare_paired({0: named(a)}, {0: named(b)}, seed=8)["interval"]


def test_order_of_patients_does_not_matter():
    a, b = named([0.1, 0.5, 0.9, 0.4, 0.3, 0.7]), named([0.2, 0.5, 0.8, 0.6, 0.1, 0.9])
    assert compare_paired({0: a}, {0: b}) == compare_paired({0: a}, {0: dict(reversed(b.items()))})


@pytest.mark.parametrize(("n", "lowest", "highest"), [(8, 0.85, 0.94), (40, 0.92, 0.98)])
def test_interval_covers_the_true_mean_as_often_as_documented(n, lowest, highest):
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(500):
        low, high = bootstrap_interval(rng.normal(0.03, 0.1, n), resamples=600, seed=trial)
        hits += low <= 0.03 <= high
    assert lowest <= hits / 500 <= highest


@pytest.mark.parametrize("n", [6, 12])
def test_equal_arms_are_seldom_called_different(n):
    rng = np.random.default_rng(2)
    called = 0
    for _ in range(300):
        arms = ({0: named(rng.normal(0.7, 0.1, n))} for _ in range(2))
        called += compare_paired(*arms, resamples=500)["conclusion"] != "undecided"
    assert called / 300 <= 0.08


def test_a_clear_difference_is_called_by_its_direction():
    a = named(np.linspace(0.3, 0.8, 12))
    b = {patient: value + 0.05 + 0.001 * index for index, (patient, value) in enumerate(a.items())}
    assert compare_paired({0: a}, {0: b})["conclusion"] == "higher"
    assert compare_paired({0: b}, {0: a})["conclusion"] == "lower"


def test_short_intervals_of_few_patients_do_not_decide_alone():
    # All five better: the bootstrap interval leaves out 0, yet the smallest possible p is 2 / 2^5 = 0.0625.
    result = compare_paired({0: named([0.1] * 5)}, {0: named([0.2, 0.3, 0.15, 0.25, 0.35])})
    assert result["interval"][0] > 0
    assert result["p"] == pytest.approx(0.0625)
    assert result["conclusion"] == "undecided"


def test_too_few_patients_get_no_interval():
    result = compare_paired({0: named([0.1, 0.2])}, {0: named([0.3, 0.4])})
    assert (result["interval"], result["p"], result["conclusion"]) == (None, None, "too few")
    assert result["difference"] == pytest.approx(0.2)


def test_equal_values_have_p_one():
    same = {0: named([0.5, 0.6, 0.7, 0.8, 0.9])}
    result = compare_paired(same, same)
    assert (result["p"], result["interval"], result["equal"]) == (1.0, [0.0, 0.0], 5)


def test_what_differs_by_rounding_alone_is_equal_or_tied():
    values = np.array([0.1, 0.2, 0.3, 0.1, 0.7, 0.2])
    seeds = {seed: named(np.roll(values, seed)) for seed in range(3)}
    permuted = {seed: seeds[(seed + 1) % 3] for seed in seeds}  # each patient's mean over seeds is the same
    same = compare_paired(seeds, permuted)
    assert (same["better"], same["worse"], same["equal"], same["p"]) == (0, 0, 6, 1.0)
    # Differences of one slice in ten, whatever the number of slices before it: all but one are tied.
    before = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    steps = np.array([0.1, 0.1, 0.1, -0.1, -0.1, 0.1, 0.1, 0.2])
    tied = compare_paired({0: named(before)}, {0: named(before + steps)})
    assert tied["p"] == pytest.approx(stats.wilcoxon(np.round(10 * steps)).pvalue)


def test_undefined_patients_leave_both_arms_and_are_named():
    nan = float("nan")
    reference = {0: named([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, nan])}
    other = {0: named([0.1, None, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9]), 1: named([nan, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])}
    result = compare_paired(reference, other)
    assert result["excluded"] == ["p00", "p01", "p07"]
    assert result["n"] == result["reference"]["n"] == result["other"]["n"] == 5
    assert result["reference"]["mean"] == pytest.approx(0.5)
    nothing = compare_paired({0: {"a": None}}, {0: {"a": 0.5}})
    assert (nothing["n"], nothing["difference"], nothing["conclusion"]) == (0, None, "too few")


def test_mean_over_labels_averages_the_same_labels_in_every_run():
    arms = {
        "a": {0: {"p": {"x": 0.2, "y": 0.4}, "q": {"x": 0.6, "y": 0.8}}},
        "b": {0: {"p": {"x": 0.3, "y": float("nan")}, "q": {"x": 0.5, "y": 0.7}}},
    }
    means = mean_over_labels(arms)
    assert means["a"][0] == {"p": pytest.approx(0.2), "q": pytest.approx(0.7)}
    assert means["b"][0] == {"p": pytest.approx(0.3), "q": pytest.approx(0.6)}


def test_different_patients_are_named():
    with pytest.raises(InputError, match=r"only in real only: LGG_002; only in more: LGG_009"):
        compare_paired({0: {"LGG_001": 1, "LGG_002": 1}}, {0: {"LGG_001": 1, "LGG_009": 1}}, ("real only", "more"))
    with pytest.raises(InputError, match="only in the arm, seed 0: b"):
        summarise({0: {"a": 0.1, "b": 0.2}, 1: {"a": 0.1}})


def test_infinite_values_and_nothing_are_refused():
    with pytest.raises(InputError, match="infinite values in the arm: b"):
        summarise({0: {"a": 0.1, "b": float("inf")}})
    with pytest.raises(InputError, match="no patients"):
        summarise({0: {}})
