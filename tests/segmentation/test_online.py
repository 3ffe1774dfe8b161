"""nnU-Net's augmentation, on the fly: from (seed, epoch, place) alone, image and label together."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.runtime.errors import InputError
from scripts.segmentation.normalisation import ZScore
from scripts.segmentation.online import OnlineAugmentation

SIZES = [(32, 27), (20, 24, 9)]


def augmentation(size, masked=False, seed=0, channels=1):
    z = ZScore((0.4,) * channels, (0.2,) * channels, masked=masked)
    return OnlineAugmentation(size, SimpleNamespace(name="z-score", common=z, map_of=lambda _: z), seed)


def item(size, place=0, epoch=1, channels=1):
    """A ball that is bright, and two regions: the ball, and a part of it."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    distance = sum((axis - 0.2) ** 2 for axis in axes).sqrt()
    image = torch.where(distance < 0.5, 6.0, -2.0).expand(channels, *size).clone()
    label = torch.stack([distance < 0.5, (distance < 0.5) & (axes[0] > 0.2)]).float()
    return {"image": image, "label": label, "case": "a", "epoch": epoch, "place": place, "synthetic": False}


@pytest.mark.parametrize("size", SIZES)
def test_a_variant_is_a_function_of_seed_epoch_and_place(size):
    first, again, other = augmentation(size), augmentation(size), augmentation(size, seed=1)
    variants = [first(item(size, place))["image"] for place in range(4)]
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state()  # noqa: NPY002
    assert torch.equal(again(item(size, 2))["image"], variants[2])  # what came before does not matter
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert torch.equal(states[2], torch.get_rng_state())
    assert not torch.equal(other(item(size, 2))["image"], variants[2])
    assert not torch.equal(first(item(size, 2, epoch=2))["image"], variants[2])
    assert len({v.numpy().tobytes() for v in variants}) == 4


@pytest.mark.parametrize("size", SIZES)
def test_image_and_labels_move_together(size):
    turn = augmentation(size)
    changed = 0
    for place in range(25):
        done = turn(item(size, place))
        assert done["image"].shape == (1, *size) and done["label"].shape == (2, *size)
        assert set(done["label"].unique().tolist()) <= {0.0, 1.0} and done["image"].dtype == torch.float32
        assert (done["label"][1] <= done["label"][0]).all()  # the regions stay one in the other
        assert ((done["image"][0] > 2).float() - done["label"][0]).abs().mean() < 0.05
        changed += not torch.equal(done["label"], item(size)["label"])
    assert changed > 15


@pytest.mark.parametrize("size", SIZES)
def test_it_is_nnunets_pipeline_and_begins_where_the_item_lies(size, monkeypatch):
    """Without its random parts the item comes back; the arguments are those of nnU-Net's trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    given = {}
    build = nnUNetTrainer.get_training_transforms

    def noted(*arguments, **named):
        given["arguments"], given["named"] = arguments, named
        return build(*arguments, **named)

    monkeypatch.setattr(nnUNetTrainer, "get_training_transforms", staticmethod(noted))
    turn = augmentation(size)
    patch, rotation, scales, axes, flat = given["arguments"]
    assert patch == [*size[2:], *size[:2]] and scales is None and axes == tuple(range(len(size))) and not flat
    assert rotation[1] == pytest.approx(np.pi if len(size) == 2 else np.pi / 6)
    spatial = turn.transforms.transforms[0]
    spatial.p_rotation = spatial.p_scaling = 0
    turn.transforms.transforms = [spatial, turn.transforms.transforms[-1]]  # and the removal of -1
    done = turn(item(size))
    assert torch.equal(done["image"], item(size)["image"]) and torch.equal(done["label"], item(size)["label"])


def test_outside_of_a_masked_space_stays_zero():
    size, turn = (32, 27), augmentation((32, 27), masked=True, channels=2)
    for place in range(15):
        given = item(size, place, channels=2)
        given["image"][:, :, :5] = 0
        done = turn(given)
        outside = (done["image"] == 0).all(0)
        assert outside.float().mean() > 0.05 and not done["label"][:, outside].any()


def test_images_in_zero_to_one_are_refused():
    with pytest.raises(InputError, match="z-score"):
        OnlineAugmentation((16, 16), SimpleNamespace(name="min-max", common=None), 0)
