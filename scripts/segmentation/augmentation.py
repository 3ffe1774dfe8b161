"""Classical augmentation as the papers compare with: the data set enlarged by a factor, with fixed transforms.

The word "online" stands for no copies, and nnU-Net's transforms on the fly (`online.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, RandFlipd, RandRotated, RandSpatialCropd, Resized, Transform
from monai.utils import CommonKeys as Keys

from ..runtime.errors import InputError

FACTORS = {"none": 1, "x2": 2, "x3": 3, "x5": 5, "online": 1}
ROTATION = np.pi / 12  # largest angle in plane
SMALLEST_CROP = 0.8  # of height and width


def augmentation_factor(augmentation: str) -> int:
    """How many times the data set is as large as before.

    Raises:
        InputError: an unknown word.
    """
    if augmentation not in FACTORS:
        raise InputError(f"augmentation {augmentation!r}", f"one of {', '.join(FACTORS)}", "set augmentation")
    return FACTORS[augmentation]


class ClassicalAugmentation(Transform):
    """Splits an item into image and label, and turns copies: rotation, flip and crop (Kebaili et al. 2023, section 4).

    The papers do not say how far. Here in plane: a rotation of up to 15 degrees, each axis flipped or not, and a crop
    of at least 80 % of height and width, enlarged again. Copy k of item i is the same at every epoch and in every
    run with the same seed; copy 0 is the item itself, and synthetic items have no copies.

    Args:
        num_image_channels: how many of the channels are image.
        spatial_size: the grid, `(height, width[, depth])`.
        seed: of the transforms.
    """

    def __init__(self, num_image_channels: int, spatial_size: Sequence[int], seed: int):
        self.num_image_channels, self.seed = num_image_channels, seed
        keys: list[Hashable] = [Keys.IMAGE, Keys.LABEL]
        linear = "bilinear" if len(spatial_size) == 2 else "trilinear"
        about: dict[str, Any] = {
            "range_x" if len(spatial_size) == 2 else "range_z": ROTATION
        }  # the axis across the plane
        smallest = [round(SMALLEST_CROP * side) for side in spatial_size[:2]]
        self.transforms = Compose([
            RandRotated(keys, prob=1.0, mode=("bilinear", "nearest"), padding_mode="border", **about),
            RandFlipd(keys, prob=0.5, spatial_axis=0),
            RandFlipd(keys, prob=0.5, spatial_axis=1),
            RandSpatialCropd(keys, [*smallest, *spatial_size[2:]], random_size=True),
            Resized(keys, spatial_size, mode=(linear, "nearest")),
        ])  # fmt: skip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[str, Any]:
        """Item `{"image": (channels + labels, ...), "item": i, "copy": k, ...}` with image and label apart."""
        image, label = data["image"].tensor_split([self.num_image_channels])
        parts: dict[Any, torch.Tensor] = {Keys.IMAGE: image, Keys.LABEL: label}
        if data["copy"]:
            state = np.random.SeedSequence([self.seed, data["item"], data["copy"]]).generate_state(1)[0]
            self.transforms.set_random_state(int(state))
            parts = {key: part.as_tensor() for key, part in self.transforms(parts).items()}
            parts[Keys.IMAGE] = torch.clamp(parts[Keys.IMAGE], 0, 1)
        return {**data, **parts}
