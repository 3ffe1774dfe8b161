"""The training slices of a joint image-mask generator."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scripts.data.cases import Case, Cases
from scripts.data.geometry import SliceGeometry
from scripts.data.scaling import Scaling
from scripts.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SliceSet:
    """Slices of one fold on the generator's grid.

    Attributes:
        training: items `{"image": (channels + labels, height, width) float32, "case": id, "slice": index}`.
        validation: the same of the fold's validation cases (slices with foreground), never learnt from.
        cases: where they come from.
        seen: id and hash of every training case.
        scaling, geometry: the invertible maps that were applied.
    """

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    cases: Cases
    seen: list[dict[str, str]]
    scaling: Scaling
    geometry: SliceGeometry

    @property
    def num_channels(self) -> int:
        """Image channels and mask channels."""
        return self.cases.description.num_channels

    @property
    def num_image_channels(self) -> int:
        """Image channels alone."""
        return self.cases.description.num_image_channels

    def training_tensor(self) -> torch.Tensor:
        """All training slices `(slice, channels + labels, height, width)`."""
        return torch.stack([item["image"] for item in self.training])


def load_slices(cases: Cases, spatial_size: tuple[int, int], background_share: float = 0.1, seed: int = 0) -> SliceSet:
    """Cut the fold's cases into slices: every one with foreground, and a share of those without.

    Slices that hold the ignore label are left out: nobody said what is in them.

    Args:
        cases: open cases of one fold.
        spatial_size: `(height, width)` of the generator's grid.
        background_share: share of the training slices that hold no foreground, in [0, 1).
        seed: chooses which.

    Raises:
        InputError: a case or a setting cannot be used, or no slice holds foreground.
    """
    if not 0 <= background_share < 1:
        raise InputError(f"background_share {background_share}", "a number in [0, 1)", "set --background_share")
    training_cases = list(cases.training())
    scaling = Scaling.fit(training_cases, per_case=cases.space["kind"] == "raw", masked=cases.masked)
    geometry = SliceGeometry.fit([case.label.shape[1:] for case in training_cases], spatial_size)
    foreground, background = [], []
    for case in training_cases:
        with_mask, without = _cut(case, cases, scaling, geometry)
        foreground += with_mask
        background += without
    if not foreground:
        raise InputError(
            f"no slice with foreground in the {len(training_cases)} training cases of fold {cases.fold.name}",
            "annotated cases",
            "check the labels, or choose another fold",
        )
    wanted = min(len(background), round(background_share / (1 - background_share) * len(foreground)))
    chosen = np.random.default_rng(seed).permutation(len(background))[:wanted]
    training = foreground + [background[i] for i in sorted(chosen)]
    validation = [item for case in cases.validation() for item in _cut(case, cases, scaling, geometry)[0]]
    logger.info(
        "fold %s: %d slices with foreground and %d without, of %d training cases; %d validation slices of %d cases",
        cases.fold.name, len(foreground), wanted, len(training_cases), len(validation), len(cases.fold.val),
    )  # fmt: skip
    seen = [{"id": case.id, "sha256": case.sha256} for case in training_cases]
    return SliceSet(training, validation, cases, seen, scaling, geometry)


def _cut(case: Case, cases: Cases, scaling: Scaling, geometry: SliceGeometry) -> tuple[list[dict], list[dict]]:
    """Slices of a case on the grid, with and without foreground."""
    description = cases.description
    image = scaling.apply(case)
    mask = description.to_channels(case.label).astype(np.float32)
    joint = np.concatenate([image, mask]).swapaxes(0, 1)
    # A validation slice may be larger than any training slice: keep its centre.
    height, width = (min(a, b) for a, b in zip(case.label.shape[1:], geometry.canvas, strict=True))
    top, left = (case.label.shape[1] - height) // 2, (case.label.shape[2] - width) // 2
    joint = joint[:, :, top : top + height, left : left + width]
    fill = np.concatenate([image.min(axis=(1, 2, 3)), np.zeros(len(mask), np.float32)])
    grid = geometry.to_grid(np.ascontiguousarray(joint), fill).clamp(0, 1)
    grid[:, description.num_image_channels :] = (grid[:, description.num_image_channels :] >= 0.5).float()
    ignored = case.label == (-1 if description.ignore_label is None else description.ignore_label)
    with_mask: list[dict] = []
    without: list[dict] = []
    for index in range(len(grid)):
        if ignored[index].any():
            continue
        item = {"image": grid[index].clone(), "case": case.id, "slice": index}
        (with_mask if grid[index, description.num_image_channels :].any() else without).append(item)
    return with_mask, without
