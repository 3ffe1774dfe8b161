"""What an arm is worth in real patients is read off the curve, and off nothing beyond its ends."""

import numpy as np
import pytest

from scripts.metrics.worth import patients_worth, worth_words
from scripts.runtime.errors import InputError

NAMES = [f"p{i}" for i in range(20)]


def of(mean: float, spread: float = 0.0) -> dict[str, float]:
    """A value of each patient; patients differ alike in every arm."""
    return {name: mean + spread * value for name, value in zip(NAMES, np.linspace(-1, 1, len(NAMES)), strict=True)}


CURVE = {10: of(0.6, 0.2), 20: of(0.7, 0.2), 40: of(0.74, 0.2)}


@pytest.mark.parametrize("n", [10, 20, 40])
def test_real_patients_are_worth_themselves(n):
    found = patients_worth(CURVE, CURVE[n])
    assert found["worth"] == pytest.approx(n) and found["interval"] == pytest.approx([n, n])


def test_between_two_numbers_it_goes_by_their_logarithm():
    found = patients_worth(CURVE, of(0.65, 0.2))
    assert found["worth"] == pytest.approx(np.sqrt(10 * 20)) and found["n"] == 20
    assert worth_words(found["worth"], found) == "14"


def test_the_ends_of_the_curve_are_said():
    more, fewer = patients_worth(CURVE, of(0.8, 0.2)), patients_worth(CURVE, of(0.5, 0.2))
    assert worth_words(more["worth"], more) == "more than 40" and worth_words(fewer["worth"], fewer) == "fewer than 10"
    assert more["interval"] == [np.inf, np.inf] and fewer["interval"] == [0, 0]


def test_the_interval_is_that_of_patients_who_differ():
    rng = np.random.default_rng(0)
    noisy = {name: value + rng.normal(0, 0.05) for name, value in of(0.69, 0.2).items()}
    found = patients_worth(CURVE, noisy)
    low, high = found["interval"]
    assert low < found["worth"] < high and low >= 10
    again = patients_worth(CURVE, noisy)
    assert again == found  # one seed, one interval
    assert patients_worth(CURVE, noisy, level=0.5)["interval"][1] <= high
    few = {n: {name: values[name] for name in NAMES[:4]} for n, values in CURVE.items()}
    assert patients_worth(few, {name: noisy[name] for name in NAMES[:4]})["interval"] is None


def test_a_curve_that_falls_counts_at_its_first_crossing():
    wavy = {5: of(0.5), 10: of(0.7), 20: of(0.6), 40: of(0.8)}
    assert patients_worth(wavy, of(0.7))["worth"] == pytest.approx(10)
    assert patients_worth(wavy, of(0.75))["worth"] == pytest.approx(np.exp(np.log(20) + 0.75 * np.log(2)))


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="two numbers"):
        patients_worth({10: of(0.6)}, of(0.6))
    with pytest.raises(InputError, match="other patients"):
        patients_worth(CURVE, {"q": 0.6})
    with pytest.raises(InputError, match="no patient"):
        patients_worth(CURVE, dict.fromkeys(NAMES, float("nan")))
    undefined = {**of(0.65, 0.2), "p0": float("nan")}
    assert patients_worth(CURVE, undefined)["n"] == 19
