"""Laws of what is transplanted: lesions that can be seen where they are, brighter or darker as most are."""

import numpy as np
import pytest
from nnunet_plugin.transplant.lesions import brighter
from nnunet_plugin.transplant.making import make_bank
from sklearn.metrics import roc_auc_score

SHAPE, SPACING = (6, 40, 40), (3.0, 1.0, 1.0)
HIDDEN = (1, 4)  # the cases whose lesion looks like what is around it


def test_brighter_is_the_area_under_the_roc_curve():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, (2, 30)), rng.integers(2, 12, (2, 50))  # with ties
    is_inside = np.repeat([1, 0], [30, 50])
    expected = [roc_auc_score(is_inside, np.append(a, b)) for a, b in zip(inside, outside, strict=True)]
    np.testing.assert_allclose(brighter(inside, outside), expected)


def case(number: int, contrast: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Two channels of a noisy body with a lesion that stands out by so much of each, or not at all."""
    rng = np.random.default_rng(number)
    y, x = np.meshgrid(*[np.linspace(-1, 1, 40)] * 2, indexing="ij")
    image = np.where(np.hypot(y, x) < 0.95, 100.0, 0.0) + rng.normal(size=(2, *SHAPE)) * 5
    labels = np.zeros(SHAPE, np.int16)
    labels[2:4, np.hypot(y - 0.2, x + 0.3 - number / 20) < 0.2] = 1
    if number not in HIDDEN:
        image += np.array(contrast)[:, None, None, None] * labels
    return image.astype(np.float32), labels, SPACING


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("contrast", [(40.0, 0.0), (0.0, -40.0), (-40.0, 40.0)])
def test_lesions_that_nobody_could_see_are_not_transplanted(dimension, contrast):
    """Whichever channel the others are seen in, and whether they are brighter or darker there."""
    bank = make_bank([case(number, contrast) for number in range(6)], dimension, [1])
    stands_out = dict(zip([lesion.case for lesion in bank.lesions], bank.standing_out().tolist(), strict=False))
    assert stands_out == {number: number not in HIDDEN for number in range(6)}
    rng = np.random.default_rng(0)
    drawn = [bank.draw(rng, 0.25) for _ in range(60)]
    assert {bank.lesions[one.lesion].case for one in drawn} == {0, 2, 3, 5}
    assert {one.case for one in drawn} >= {*HIDDEN}  # their patients receive lesions as the others do


def test_where_most_lesions_are_hidden_all_are_taken():
    bank = make_bank([case(number, (0.0, 0.0)) for number in range(4)], 2, [1])
    assert bank.standing_out().all() and len(bank.fitting) == len(bank.lesions) == 8
