"""Features of masks are those of their half-level contour."""

import numpy as np
import pytest
from skimage.measure import find_contours

from scripts.data.mask_features import mask_features


@pytest.mark.parametrize("seed", range(20))
def test_the_perimeter_is_that_of_the_contour(seed):
    rng = np.random.default_rng(seed)
    mask, step = rng.random(rng.integers(2, 20, 2)) < rng.uniform(0.1, 0.9), rng.uniform(0.3, 4, 2)
    mask[0, 0] = True
    lines = find_contours(np.pad(mask, 1).astype(np.float32), 0.5)
    length = sum(np.linalg.norm(np.diff(line * step, axis=0), axis=1).sum() for line in lines)
    assert np.isclose(mask_features(mask, step.tolist())["surface_area"], length, rtol=1e-12)
