"""Classical augmentation: fixed copies, image and label turned alike."""

import pytest
import torch

from scripts.runtime.errors import InputError
from scripts.segmentation.augmentation import ClassicalAugmentation, augmentation_factor


def item(size, copy, number=3):
    """A smooth image whose label is where it is bright, so that the two can be compared after a turn."""
    axes = torch.meshgrid(*(torch.linspace(0, 1, side) for side in size), indexing="ij")
    image = sum((axis - 0.3 - 0.1 * k) ** 2 for k, axis in enumerate(axes)).neg().exp()
    return {"image": torch.stack([image, (image > 0.8).float()]), "item": number, "copy": copy, "synthetic": False}


@pytest.mark.parametrize("size", [(32, 28), (32, 28, 12)])
def test_image_and_label_turn_alike(size):
    turn = ClassicalAugmentation(1, size, seed=0)
    whole = turn(item(size, 0))
    assert torch.equal(torch.cat([whole["image"], whole["label"]]), item(size, 0)["image"])
    copies = [turn(item(size, copy)) for copy in range(1, 5)]
    for copy in copies:
        assert copy["image"].shape == copy["label"].shape == (1, *size)
        assert type(copy["image"]) is torch.Tensor and set(copy["label"].unique().tolist()) <= {0.0, 1.0}
        assert ((copy["image"] > 0.8).float() - copy["label"]).abs().mean() < 0.06
        assert (copy["label"] - whole["label"]).abs().sum() > 0
    assert len({copy["image"].numpy().tobytes() for copy in copies}) == 4


def test_copies_are_fixed():
    size = (16, 16)
    turn, again, other = (ClassicalAugmentation(1, size, seed) for seed in (0, 0, 1))
    first = turn(item(size, 2))["image"]
    turn(item(size, 1))  # what came between does not matter
    assert torch.equal(turn(item(size, 2))["image"], first) and torch.equal(again(item(size, 2))["image"], first)
    assert not torch.equal(other(item(size, 2))["image"], first)
    assert not torch.equal(turn(item(size, 2, number=4))["image"], first)


def test_factors():
    assert [augmentation_factor(word) for word in ("none", "x2", "x5")] == [1, 2, 5]
    with pytest.raises(InputError, match="x4"):
        augmentation_factor("x4")
