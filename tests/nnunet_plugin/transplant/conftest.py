"""The toy data sets with room for a second lesion: larger heads, in the place of what nnU-Net preprocessed."""

import blosc2
import numpy as np
import pytest

from ..conftest import DATASET_JSON, NUM_CASES

SHAPE = (8, 44, 40)


def head(channels: int, labels: list[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy head with one lesion of nested labels, normalised: (channels, *SHAPE) and (1, *SHAPE)."""
    grid = np.indices(SHAPE)
    inside = ((grid[1] - 21.5) / 21) ** 2 + ((grid[2] - 19.5) / 19) ** 2 < 1
    seg = np.where(inside, 0, -1)
    z, y, x = rng.integers(2, 4), rng.integers(8, 29), rng.integers(11, 22)
    for k, label in enumerate(labels):
        width = int(rng.integers(6, 9)) - 2 * k
        seg[z : z + 3, y + k : y + k + width, x + k : x + k + width] = label
    data = np.where(inside, rng.standard_normal((channels, *SHAPE)) + 4 * (seg > 0), 0)
    return data.astype(np.float32), seg[None].astype(np.int16)


@pytest.fixture
def roomy(nnunet):
    """The preprocessed cases with this room; plans, splits and record stay as they are."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    for number, (name, content) in enumerate(DATASET_JSON.items()):
        named = {key: value for key, value in content["labels"].items() if key not in ("background", "ignore")}
        classes = [tuple(of) if isinstance(of, list) else of for of in named.values()]
        if "ignore" in content["labels"]:
            classes = [*classes, (-1, 0, *classes)]
        values = sorted({v for of in named.values() for v in (of if isinstance(of, list) else [of])})
        for case in range(NUM_CASES):
            data, seg = head(len(content["channel_names"]), values, np.random.default_rng([number, case]))
            locations = DefaultPreprocessor._sample_foreground_locations(seg, classes)
            for configuration in ("2d", "3d_fullres"):
                target = nnunet / "preprocessed" / name / f"nnUNetPlans_{configuration}" / f"case_{case}"
                blosc2.remove_urlpath(f"{target}.b2nd")
                blosc2.remove_urlpath(f"{target}_seg.b2nd")
                properties = {
                    "class_locations": locations,
                    "spacing": [3.0, 1.0, 1.0],
                    "shape_after_cropping_and_before_resampling": SHAPE,
                }
                whole = {f"{what}{of}": (1, *SHAPE) for what in ("chunks", "blocks") for of in ("", "_seg")}
                nnUNetDatasetBlosc2.save_case(data, seg, properties, str(target), **whole)
    return nnunet
