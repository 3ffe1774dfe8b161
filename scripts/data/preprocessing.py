"""What nnU-Net's preprocessing makes of an image, by the plans of a data set that it has preprocessed."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunet_plugin.preprocessed import read_json

from .cases import PreprocessedCases
from .description import DatasetDescription


def read_plans(cases: PreprocessedCases) -> dict:
    """The plans that the cases were preprocessed with, without other configurations."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    name = cases.space["configuration"]
    plans = read_json(cases.folder.parent / f"{cases.space['plans_name']}.json", "restore the plans")
    resolved = PlansManager(plans).get_configuration(name).configuration
    return {**plans, "configurations": {name: resolved}}


def preprocess(
    image: np.ndarray,
    label: np.ndarray | None,
    spacing: np.ndarray,
    plans: dict,
    configuration: str,
    description: DatasetDescription,
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Crop, normalise and resample as nnU-Net does.

    Args:
        image: float32 `(channel, x, y, z)` in the scanner's units.
        label: `(x, y, z)` integers, or None.
        spacing: millimetres along x, y, z.
        plans, configuration: of the data set.
        description: its labels.

    Returns:
        Image `(channel, depth, height, width)`, segmentation `(1, depth, height, width)` (-1 outside nnU-Net's mask),
        and what nnU-Net notes of the way.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    labels = {"labels": description.labels, "regions_class_order": description.regions_class_order}
    return chosen.preprocessor_class(verbose=False).run_case_npy(
        image.transpose(0, 3, 2, 1), None if label is None else label.transpose(2, 1, 0)[None],
        {"spacing": np.asarray(spacing)[::-1].tolist()}, manager, chosen, labels,
    )  # fmt: skip


def mask_of(segmentation: np.ndarray, space: dict[str, Any]) -> np.ndarray:
    """Where nnU-Net's mask of a masked normalisation is; everywhere without one."""
    return segmentation >= 0 if any(space["use_mask_for_norm"]) else np.ones(segmentation.shape, bool)
