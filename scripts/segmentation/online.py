"""nnU-Net's own augmentation on the fly: the transforms that its trainer builds, on the items of this bundle."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from monai.utils import CommonKeys as Keys
from torch.nn import functional as F

from ..runtime.errors import InputError
from .normalisation import Normalise

MOST_LABELS = 15  # mask channels are bits of nnU-Net's int16 label map


class OnlineAugmentation(Transform):
    """Draws a new variant of an item at every epoch, from (seed, epoch, place in the epoch) alone.

    `nnUNetTrainer.get_training_transforms` of nnU-Net (batchgeneratorsv2) with the arguments that its trainer would
    give for a patch of the grid's size: rotation, scaling, noise, blur, brightness, contrast, low resolution, gamma,
    mirroring. As nnU-Net's loader does, it begins with a patch that is larger than the grid; what is beyond the
    grid is background.

    Args:
        spatial_size: the grid, `(height, width[, depth])`.
        normalise: knows what the background of a case looks like, and where the masked space has none.
        seed: of the draws.

    Raises:
        InputError: images in [0, 1], or more labels than fit.
    """

    def __init__(self, spatial_size: Sequence[int], normalise: Normalise, seed: int):
        if normalise.common is None:
            raise InputError(
                f"augmentation 'online' with normalisation {normalise.name!r}",
                "normalisation 'z-score', for which nnU-Net's augmentation is made",
                "set normalisation",
            )
        self.normalise, self.seed = normalise, seed
        self.transforms, self.larger = _nnunet_transforms(
            spatial_size, [True] * len(normalise.common.mean) if normalise.common.masked else None
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Item `{"image", "label": (channel, *spatial_size), "case", "epoch", "place", ...}`."""
        normalise = self.normalise.map_of(data["case"])
        assert normalise is not None
        label = data[Keys.LABEL]
        if len(label) > MOST_LABELS:
            raise InputError(f"{len(label)} labels", f"at most {MOST_LABELS}", "train without online augmentation")
        # Labels may be regions that overlap: each voxel's set of them is one integer to nnU-Net.
        bits = (2 ** torch.arange(len(label), dtype=torch.int16)).reshape(-1, *[1] * (label.ndim - 1))
        integers = (label.to(torch.int16) * bits).sum(0, keepdim=True, dtype=torch.int16)
        if normalise.masked:  # -1 is what nnU-Net calls the outside, which stays 0 in the image
            integers[(data[Keys.IMAGE] == 0).all(0, keepdim=True)] = -1
        image = torch.cat([
            _pad(channel[None], self.larger, float(value))
            for channel, value in zip(_depth_first(data[Keys.IMAGE]), normalise.background, strict=True)
        ])  # fmt: skip
        integers = _pad(_depth_first(integers), self.larger, -1 if normalise.masked else 0)
        with _seeded(self.seed, data["epoch"], data["place"]):
            done = self.transforms(image=image, segmentation=integers)
        drawn = _depth_last(done["segmentation"]).to(torch.int16)
        return {
            **data,
            Keys.IMAGE: _depth_last(done["image"]).float().contiguous(),
            Keys.LABEL: ((drawn & bits) > 0).float().contiguous(),
        }


def _nnunet_transforms(spatial_size: Sequence[int], masked: list[bool] | None) -> tuple[Any, list[int]]:
    """nnU-Net's transforms and the size of the patch that they begin with, both with depth first.

    Args:
        spatial_size: the grid.
        masked: channels that are 0 outside of nnU-Net's mask.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    patch = [*spatial_size[2:], *spatial_size[:2]]
    # What a method of the trainer needs of it; a whole one asks for plans, folders and a data set.
    trainer: Any = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=patch), print_to_log_file=lambda *_, **__: None
    )
    rotation, flat, larger, axes = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    transforms = nnUNetTrainer.get_training_transforms(patch, rotation, None, axes, flat, use_mask_for_norm=masked)
    for transform in transforms.transforms:
        blur = getattr(transform, "transform", transform)
        if getattr(blur, "benchmark", False):  # chooses one of two algorithms by the clock, and so other last bits
            blur.benchmark = False
    return transforms, [int(side) for side in larger]


def _depth_first(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(-1, 1) if x.ndim == 4 else x


def _depth_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1) if x.ndim == 4 else x


def _pad(x: torch.Tensor, size: Sequence[int], value: float) -> torch.Tensor:
    """Centre `(channel, *spatial)` in a larger room; sides that are as large stay as they are."""
    pads = []
    for side, room in zip(reversed(x.shape[1:]), reversed(size), strict=True):
        before = max(0, room // 2 - side // 2)  # so that nnU-Net's crop at the centre gives the grid back
        pads += [before, max(0, room - side - before)]
    return F.pad(x, pads, value=value)


@contextmanager
def _seeded(*place: int) -> Iterator[None]:
    """Seed the global generators, from which nnU-Net's transforms draw, and leave them as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    state = int(np.random.SeedSequence(place).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002
    torch.default_generator.manual_seed(state)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
