"""Lesions are counted as they lie, slices along the axis that they are apart on."""

import numpy as np
import pytest

from scripts.metrics.lesions import lesion_measures

THICK = (1.0, 1.0, 5.0)


def masks(*boxes, shape=(12, 10, 6)):
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[tuple(slice(*side) for side in box)] = True
    return mask


ONE, TWO, AWAY = ((1, 4), (1, 4), (1, 3)), ((6, 9), (6, 9), (1, 2)), ((6, 8), (1, 3), (4, 6))


def test_a_lesion_is_found_by_a_voxel_and_a_prediction_may_find_several():
    reference = masks(ONE, TWO)
    assert lesion_measures(masks(((1, 2), (1, 2), (1, 2))), reference, THICK)["lesion_sensitivity"] == 0.5
    assert lesion_measures(masks(((0, 12), (0, 10), (0, 6))), reference, THICK)["lesion_sensitivity"] == 1
    assert lesion_measures(masks(AWAY), reference, THICK)["lesion_sensitivity"] == 0
    touching = masks(((0, 2), (0, 2), (0, 2)), ((2, 4), (2, 4), (2, 4)))  # at a corner: one lesion
    assert lesion_measures(masks(((0, 1), (0, 1), (0, 1))), touching, THICK)["lesion_sensitivity"] == 1


@pytest.mark.parametrize("axis", range(3))
def test_false_positives_are_counted_on_slices_without_reference(axis):
    """Of slices 0, 3, 4, 5 two hold a prediction; along whichever axis they are apart."""
    reference, prediction = (np.moveaxis(masks(*boxes), 2, axis) for boxes in ((ONE,), (ONE, AWAY)))
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 5.0
    assert lesion_measures(prediction, reference, spacing)["false_positive_slices"] == 0.5
    assert lesion_measures(reference, reference, spacing) == {"lesion_sensitivity": 1, "false_positive_slices": 0}


def test_what_is_not_there_is_not_defined():
    nothing, everything = masks(), masks(((0, 12), (0, 10), (0, 6)))
    assert lesion_measures(masks(ONE), nothing, THICK) == {"lesion_sensitivity": None, "false_positive_slices": 2 / 6}
    assert lesion_measures(nothing, everything, THICK) == {"lesion_sensitivity": 0, "false_positive_slices": None}
