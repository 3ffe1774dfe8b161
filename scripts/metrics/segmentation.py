"""How well patients are segmented: DSC, IoU, HD95, NSD and lesions of whole label maps, in millimetres."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.data.utils import affine_to_spacing
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from monai.utils import CommonKeys as Keys

from ..data.description import DatasetDescription
from ..runtime.errors import InputError
from ..runtime.files import write_json, write_text
from .lesions import LESIONS, lesion_measures

logger = logging.getLogger(__name__)

OVERLAPS, SURFACES = ("dice", "iou"), ("hd95", "nsd")
MEASURES = (*OVERLAPS, *SURFACES, *LESIONS)
FORMAT = "synthaug-evaluation"


def compare_masks(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float | None
) -> dict[str, float | int | None]:
    """Compare two masks of one patient.

    Where the reference is empty nothing of these is defined (None), whatever was predicted: whether a patient is in a
    mean must not depend on the network. What is predicted there is counted by the lesion measures and by
    "predicted_voxels". Where the prediction alone is empty, "dice", "iou" and "nsd" are 0 and "hd95" is not defined:
    there is no distance to nothing. MONAI gives NaN, 0 or infinity there, which a mean would take for the best value
    or lose without a word.

    Args:
        prediction, reference: bool `(x, y, z)`; an axis of one voxel is no surface.
        spacing: millimetres along these axes.
        tolerance: of the surfaces in millimetres; None: no surfaces, which take longer.

    Returns "dice", "iou", with a tolerance "hd95" (mm; of the 95th percentiles of the distances from either surface to
    the other the larger, as MONAI defines it), "nsd"
    (normalised surface Dice, Nikolov et al. 2021) and those of `lesion_measures`, and "reference_voxels" and
    "predicted_voxels".
    """
    voxels = int(reference.sum()), int(prediction.sum())
    counts: dict[str, Any] = {} if tolerance is None else {**lesion_measures(prediction, reference, spacing)}
    counts |= {"reference_voxels": voxels[0], "predicted_voxels": voxels[1]}
    names = OVERLAPS if tolerance is None else OVERLAPS + SURFACES
    if not all(voxels):
        value = 0.0 if voxels[0] else None
        return {**{name: None if name == "hd95" else value for name in names}, **counts}
    # Both lie in the box around the two, with a margin for their surfaces.
    places = np.argwhere(prediction | reference)
    box = tuple(slice(max(a - 2, 0), b + 3) for a, b in zip(places.min(axis=0), places.max(axis=0), strict=True))
    thin = tuple(axis for axis, side in enumerate(reference.shape) if side == 1)
    pair: dict[str, Any] = {
        "y_pred": torch.from_numpy(prediction[box].squeeze(thin))[None, None],
        "y": torch.from_numpy(reference[box].squeeze(thin))[None, None],
    }
    found = {"dice": compute_dice(**pair), "iou": compute_iou(**pair)}
    if tolerance is not None:
        along = [value for axis, value in enumerate(spacing) if axis not in thin]
        found["hd95"] = compute_hausdorff_distance(**pair, include_background=True, percentile=95, spacing=along)
        found["nsd"] = compute_surface_dice(
            **pair, class_thresholds=[tolerance], include_background=True, spacing=along
        )
    return {**{name: float(value) for name, value in found.items()}, **counts}


def compare_label_maps(
    prediction: np.ndarray,
    reference: np.ndarray,
    description: DatasetDescription,
    spacing: Sequence[float],
    tolerance: float | None,
) -> dict[str, dict[str, float | int | None]]:
    """`compare_masks` for each label or region of integer label maps `(x, y, z)`.

    Voxels that the reference leaves open (the ignore label) count for nothing.

    Raises:
        InputError: the two do not lie on the same grid.
    """
    if prediction.shape != reference.shape:
        raise InputError(
            f"a prediction of shape {prediction.shape} and a label of shape {reference.shape}",
            "the label on the grid of its image",
            "resample the label",
        )
    if description.ignore_label is not None:
        prediction = np.where(reference == description.ignore_label, 0, prediction)
    masks = zip(
        description.foreground, description.to_channels(prediction), description.to_channels(reference), strict=True
    )
    return {name: compare_masks(a.astype(bool), b.astype(bool), spacing, tolerance) for (name, _), a, b in masks}


def summarise_cases(cases: Mapping[str, Mapping[str, Mapping[str, float | int | None]]]) -> dict[str, Any]:
    """Describe the values of all patients, `{case: {label: {measure: value}}}`.

    Returns for each label and measure {"n" patients where it is defined, "mean", "sd" (n - 1), "median"}, None where
    n is too small, and the numbers of patients with "both_empty", "reference_empty" and "prediction_empty" masks.
    """
    summary: dict[str, Any] = {}
    for label in dict.fromkeys(label for values in cases.values() for label in values):
        found = [values[label] for values in cases.values()]
        empty = [(not one["reference_voxels"], not one["predicted_voxels"]) for one in found]
        summary[label] = {
            **{name: _describe([one[name] for one in found]) for name in MEASURES if name in found[0]},
            "cases": len(found),
            "both_empty": sum(a and b for a, b in empty),
            "reference_empty": sum(a and not b for a, b in empty),
            "prediction_empty": sum(b and not a for a, b in empty),
        }
    return summary


def _describe(values: Sequence[float | int | None]) -> dict[str, float | int | None]:
    defined = np.array([value for value in values if value is not None])
    return {
        "n": len(defined),
        "mean": float(defined.mean()) if len(defined) else None,
        "sd": float(defined.std(ddof=1)) if len(defined) > 1 else None,
        "median": float(np.median(defined)) if len(defined) else None,
    }


class PatientMetric(Metric):
    """Mean DSC over patients and labels, for MONAI's evaluator; `cases` holds every patient's values.

    Args:
        description: of the labels.
        tolerance: see `compare_masks`.
    """

    def __init__(self, description: DatasetDescription, tolerance: float | None = None):
        self.description, self.tolerance = description, tolerance
        super().__init__(output_transform=lambda output: output)

    def reset(self) -> None:
        """Forget all patients."""
        self.cases: dict[str, dict[str, dict[str, float | int | None]]] = {}

    def iteration_completed(self, engine: Engine) -> None:
        """Add the patients of a batch, whose ids stand in the batch."""
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            self.update((item["case"], output[Keys.PRED], output[Keys.LABEL]))

    def update(self, output: Any) -> None:
        """Add one patient: id, and label maps `(1, x, y, z)` of prediction and reference."""
        case, prediction, reference = output
        spacing = affine_to_spacing(prediction.affine, 3).tolist()
        found, wanted = (np.asarray(array[0].cpu()).astype(np.int16) for array in (prediction, reference))
        self.cases[case] = compare_label_maps(found, wanted, self.description, spacing, self.tolerance)

    def compute(self) -> float:
        """Mean DSC of all patients and labels where it is defined; NaN where it nowhere is."""
        values = [v["dice"] for labels in self.cases.values() for v in labels.values() if v["dice"] is not None]
        return float(np.mean(values)) if values else float("nan")


class PatientReport:
    """Writes `metrics.json` and `metrics.csv` when an evaluation is finished.

    Args:
        metric: which collected the patients.
        output_dir: where the files go.
        facts: gives what else belongs to the record: data set, split, weights.
    """

    def __init__(self, metric: PatientMetric, output_dir: str | Path, facts: Callable[[], dict[str, Any]]):
        self.metric, self.output_dir, self.facts = metric, Path(output_dir), facts

    def attach(self, engine: Engine) -> None:
        """Act at the end."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write."""
        cases = self.metric.cases
        summary = summarise_cases(cases)
        write_json(self.output_dir / "metrics.json", {
            "format": FORMAT,
            "format_version": 1,
            **self.facts(),
            "grid": "that of the original images",
            "surface_tolerance_mm": self.metric.tolerance,
            "summary": summary,
            "cases": cases,
        })  # fmt: skip
        rows = [{"case": case, "label": label, **values} for case in cases for label, values in cases[case].items()]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.output_dir / "metrics.csv", table.getvalue())
        for label, measures in summary.items():
            words = ", ".join(
                f"{name} {value['mean']:.3f} (n = {value['n']})"
                for name, value in measures.items()
                if isinstance(value, dict) and value["mean"] is not None
            )
            logger.info("%s: %s", label, words or "nothing is defined")
