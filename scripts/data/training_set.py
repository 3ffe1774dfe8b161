"""What a joint image-mask generator learns from: the slices or the volumes of one fold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunet_plugin.leakage import check_held_out

from ..runtime.errors import InputError
from .cases import Case, Cases
from .geometry import SliceGeometry, VolumeGeometry, fit_geometry
from .scaling import Scaling

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSet:
    """Slices or volumes of one fold on the generator's grid.

    Attributes:
        training: items `{"image": (channels + labels, height, width[, depth]) float32, "case": id}`; those of
            slices also hold `"slice"`, the index in the case.
        validation: the same of the fold's validation cases (those with foreground), never learnt from.
        cases: where they come from.
        seen: id, hash and fingerprint of every training case.
        scaling, geometry: the invertible maps that were applied.
    """

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    cases: Cases
    seen: list[dict[str, str]]
    scaling: Scaling
    geometry: SliceGeometry | VolumeGeometry

    @property
    def num_channels(self) -> int:
        """Image channels and mask channels."""
        return self.cases.description.num_channels

    @property
    def num_image_channels(self) -> int:
        """Image channels alone."""
        return self.cases.description.num_image_channels

    @property
    def grid_spacing(self) -> tuple[float, ...]:
        """Millimetres per voxel along the axes of the grid `(height, width[, depth])`."""
        depth, *plane = self.cases.spacing
        geometry = self.geometry
        flat = geometry.plane if isinstance(geometry, VolumeGeometry) else geometry
        steps = [step * room / size for step, room, size in zip(plane, flat.canvas, flat.spatial_size, strict=True)]
        if isinstance(geometry, VolumeGeometry):
            steps.append(depth * geometry.depth / geometry.spatial_size[2])
        return tuple(steps)

    def training_tensor(self) -> torch.Tensor:
        """All training items `(item, channels + labels, height, width[, depth])`."""
        return torch.stack([item["image"] for item in self.training])


def item_name(item: dict[str, Any]) -> str:
    """What a reader finds an item of a training set by."""
    return f"{item['case']}, slice {item['slice']}" if "slice" in item else str(item["case"])


def load_training_set(
    cases: Cases, spatial_size: Sequence[int], background_share: float | None = 0.1, seed: int = 0
) -> TrainingSet:
    """Bring the fold's cases to the grid: every slice or volume with foreground, and a share of those without.

    Slices and volumes that hold the ignore label are left out: nobody said what is in them.

    Args:
        cases: open cases of one fold.
        spatial_size: the generator's grid, `(height, width)` for slices, `(height, width, depth)` for volumes.
        background_share: share of the training items that hold no foreground, in [0, 1); None: all of them are items.
        seed: chooses which.

    Raises:
        InputError: a case or a setting cannot be used, nothing holds foreground, or an image is in training and, under
            another name, in validation.
    """
    if background_share is not None and not 0 <= background_share < 1:
        raise InputError(
            f"background_share {background_share}", "a number in [0, 1), or null", "set --background_share"
        )
    kind = "slice" if len(spatial_size) == 2 else "volume"
    if kind == "slice" and cases.is_3d:
        raise InputError(
            f"slices of the 3D configuration {cases.space['configuration']}",
            "slices of a 2d configuration, or volumes",
            "a slice with the spacing and normalisation of a 3D configuration can enter no nnU-Net training: give "
            "--configuration 2d, or a spatial_size of three numbers",
        )
    training_cases = list(cases.training())
    geometry = fit_geometry([case.label.shape for case in training_cases], spatial_size)
    scaling = Scaling.fit(training_cases, per_case=cases.space["kind"] == "raw", masked=cases.masked)
    foreground, background = [], []
    for case in training_cases:
        with_mask, without = _on_grid(case, cases, scaling, geometry)
        foreground += with_mask
        background += without
    if not foreground:
        raise InputError(
            f"no {kind} with foreground in the {len(training_cases)} training cases of fold {cases.fold.name}",
            "annotated cases (a slice or volume that holds the ignore label is left out)",
            "check the labels, or choose another fold",
        )
    wanted = len(background)
    if background_share is not None:
        wanted = min(wanted, round(background_share / (1 - background_share) * len(foreground)))
    chosen = np.random.default_rng(seed).permutation(len(background))[:wanted]
    training = foreground + [background[i] for i in sorted(chosen)]
    validation, held_out = [], {}
    for case in cases.validation():
        validation += _on_grid(case, cases, scaling, geometry)[0]
        held_out[case.id] = case.identity
    identities = {case.id: case.identity for case in training_cases}
    check_held_out(identities, held_out, cases.fold.name, "whatever learns from this fold")
    logger.info(
        "fold %s: %d %ss with foreground and %d without, of %d training cases; %d validation %ss of %d cases",
        cases.fold.name, len(foreground), kind, wanted, len(training_cases), len(validation), kind,
        len(cases.fold.val),
    )  # fmt: skip
    seen = [{"id": name, **identity._asdict()} for name, identity in identities.items()]
    return TrainingSet(training, validation, cases, seen, scaling, geometry)


def own_size(cases: Cases, volumes: bool) -> list[int]:
    """The largest height and width of the fold's training cases, and for volumes their median depth."""
    shapes = np.array([case.label.shape for case in cases.training()])
    plane = shapes[:, 1:].max(axis=0).tolist()
    return [*plane, sorted(shapes[:, 0].tolist())[len(shapes) // 2]] if volumes else plane


def _on_grid(
    case: Case, cases: Cases, scaling: Scaling, geometry: SliceGeometry | VolumeGeometry
) -> tuple[list[dict], list[dict]]:
    """Items of a case, with and without foreground."""
    grid, left_out = grid_items(case, cases, scaling, geometry)
    with_mask: list[dict] = []
    without: list[dict] = []
    for index in np.flatnonzero(~left_out).tolist():
        item = {"image": grid[index].clone(), "case": case.id}
        if isinstance(geometry, SliceGeometry):
            item["slice"] = index
        (with_mask if grid[index, cases.description.num_image_channels :].any() else without).append(item)
    return with_mask, without


def grid_items(
    case: Case, cases: Cases, scaling: Scaling, geometry: SliceGeometry | VolumeGeometry
) -> tuple[torch.Tensor, np.ndarray]:
    """A case on the grid `(item, channels + labels, *spatial_size)`, and which items hold the ignore label."""
    description = cases.description
    image = scaling.apply(case)
    mask = description.to_channels(case.label).astype(np.float32)
    joint = np.concatenate([image, mask])
    ignored = case.label == (-1 if description.ignore_label is None else description.ignore_label)
    if isinstance(geometry, SliceGeometry):
        items, left_out = np.ascontiguousarray(joint.swapaxes(0, 1)), ignored.any(axis=(1, 2))
    else:
        items, left_out = joint[None], ignored.any(keepdims=True).ravel()
    fill = np.concatenate([image.min(axis=(1, 2, 3)), np.zeros(len(mask), np.float32)])
    grid = geometry.to_grid(items, fill).clamp(0, 1)
    grid[:, description.num_image_channels :] = (grid[:, description.num_image_channels :] >= 0.5).float()
    return grid, left_out
