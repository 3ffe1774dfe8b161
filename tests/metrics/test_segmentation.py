"""Whole label maps are compared in millimetres; empty masks are defined, counted, and never the best value."""

import csv
import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from scripts.data.description import DatasetDescription
from scripts.metrics.segmentation import (
    PatientMetric,
    PatientReport,
    compare_label_maps,
    compare_masks,
    summarise_cases,
)
from scripts.runtime.errors import InputError

# MONAI 1.6 warns of what it calls itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")

PLAIN = DatasetDescription("D", {"0": "A"}, {"background": 0, "a": 1, "b": 2})
REGIONS = DatasetDescription("D", {"0": "A"}, {"background": 0, "whole": [1, 2], "core": [2]}, [1, 2])
IGNORE = DatasetDescription("D", {"0": "A"}, {"background": 0, "a": 1, "ignore": 2})


def blob(seed: int, shape=(14, 12, 10)) -> np.ndarray:
    grid = np.indices(shape)
    centre = np.array(shape) / 2 + np.random.default_rng(seed).uniform(-1.5, 1.5, 3)
    radii = np.random.default_rng(seed + 1).uniform(2, 4, 3)
    return (((grid - centre.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1


def surface(mask: np.ndarray, spacing) -> np.ndarray:
    return np.argwhere(mask & ~binary_erosion(mask)) * spacing


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_definitions(seed):
    a, b, spacing = blob(seed), blob(seed + 10), (1.0, 0.5, 3.0)
    found = compare_masks(a, b, spacing, tolerance=1.2)
    assert found["dice"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found["iou"] == pytest.approx((a & b).sum() / (a | b).sum())
    distances = cdist(surface(a, spacing), surface(b, spacing))
    there, back = distances.min(axis=1), distances.min(axis=0)
    assert found["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    within = (there <= 1.2).sum() + (back <= 1.2).sum()
    assert found["nsd"] == pytest.approx(within / (len(there) + len(back)))
    assert found["reference_voxels"] == b.sum() and found["predicted_voxels"] == a.sum()


def test_distances_are_in_millimetres_along_each_axis():
    plate = np.zeros((12, 12, 12), bool)
    plate[3:9, 3:9, 2] = True
    for axis in range(3):
        a, b, spacing = np.moveaxis(plate, 2, axis), np.roll(np.moveaxis(plate, 2, axis), 3, axis), [1.0, 1.0, 1.0]
        spacing[axis] = 4.0
        assert compare_masks(a, b, spacing, 12.1)["hd95"] == pytest.approx(12.0)
        assert compare_masks(a, b, spacing, 12.1)["nsd"] == 1 and compare_masks(a, b, spacing, 11.9)["nsd"] == 0
        assert compare_masks(a, b, spacing, 12.1)["dice"] == 0


def test_the_same_mask_is_perfect_and_room_around_changes_nothing():
    a, b = blob(0), blob(1)
    assert compare_masks(a, a, (1, 2, 3), 1.0) == {
        "dice": 1, "iou": 1, "hd95": 0, "nsd": 1, "lesion_sensitivity": 1, "false_positive_slices": 0,
        "reference_voxels": a.sum(), "predicted_voxels": a.sum(),
    }  # fmt: skip
    wide = (np.pad(mask, ((7, 0), (3, 9), (0, 5))) for mask in (a, b))
    assert compare_masks(*wide, (1, 2, 3), 1.0) == compare_masks(a, b, (1, 2, 3), 1.0)


def test_a_single_slice_is_a_plane():
    a, b = np.zeros((20, 20, 1), bool), np.zeros((20, 20, 1), bool)
    a[4:12, 4:12], b[7:15, 4:12] = True, True
    found = compare_masks(a, b, (2.0, 1.0, 5.0), 1.0)
    flat = cdist(surface(a[..., 0], (2, 1)), surface(b[..., 0], (2, 1)))
    expected = max(np.percentile(flat.min(axis=0), 95), np.percentile(flat.min(axis=1), 95))
    assert found["hd95"] == pytest.approx(expected)


def test_empty_masks_are_defined_and_counted():
    none, some = np.zeros((6, 6, 6), bool), blob(0, (6, 6, 6))
    assert some.any()
    both = compare_masks(none, none, (1, 1, 1), 1.0)
    assert all(both[name] is None for name in ("dice", "iou", "hd95", "nsd"))
    missed, invented = compare_masks(none, some, (1, 1, 1), 1.0), compare_masks(some, none, (1, 1, 1), 1.0)
    assert (missed["dice"], missed["iou"], missed["nsd"], missed["hd95"]) == (0, 0, 0, None)
    assert all(invented[name] is None for name in ("dice", "iou", "hd95", "nsd"))  # as both: no network decides it
    assert invented["predicted_voxels"] == some.sum()
    perfect = compare_masks(some, some, (1, 1, 1), 1.0)
    cases = {name: {"a": one} for name, one in zip("wxyz", (both, missed, invented, perfect), strict=True)}
    summary = summarise_cases(cases)["a"]
    assert summary["dice"] == {
        "n": 2, "mean": pytest.approx(1 / 2), "sd": pytest.approx(np.std([0, 1], ddof=1)), "median": 0.5,
    }  # fmt: skip
    assert summary["hd95"] == {"n": 1, "mean": 0, "sd": None, "median": 0}
    counts = {key: summary[key] for key in ("cases", "both_empty", "reference_empty", "prediction_empty")}
    assert counts == {"cases": 4, "both_empty": 1, "reference_empty": 1, "prediction_empty": 1}
    nothing = summarise_cases({"w": {"a": both}})["a"]["dice"]
    assert nothing == {"n": 0, "mean": None, "sd": None, "median": None}


def test_labels_regions_and_voxels_left_open():
    reference, prediction = np.zeros((2, 8, 8, 8), np.int16)
    reference[2:6, 2:6, 2:6], reference[3:5, 3:5, 3:5] = 1, 2
    prediction[2:6, 2:6, 2:6] = 1
    plain = compare_label_maps(prediction, reference, PLAIN, (1, 1, 1), None)
    assert plain["a"]["dice"] == pytest.approx(2 * 56 / (56 + 64)) and plain["b"]["dice"] == 0
    assert "hd95" not in plain["a"]
    regions = compare_label_maps(prediction, reference, REGIONS, (1, 1, 1), None)
    assert regions["whole"]["dice"] == 1 and regions["core"]["dice"] == 0
    left_open = compare_label_maps(prediction, reference, IGNORE, (1, 1, 1), None)
    assert left_open["a"]["dice"] == 1 and left_open["a"]["predicted_voxels"] == 56
    with pytest.raises(InputError, match="grid"):
        compare_label_maps(prediction[:4], reference, PLAIN, (1, 1, 1), None)


def test_metric_and_report(tmp_path):
    affine = torch.diag(torch.tensor([1.0, 1.0, 4.0, 1.0]))
    metric = PatientMetric(PLAIN, tolerance=2.0)
    masks = {"p": (blob(0), blob(1)), "q": (np.zeros((14, 12, 10), bool), np.zeros((14, 12, 10), bool))}
    for case, pair in masks.items():
        metric.update(
            (case, *(MetaTensor(torch.from_numpy(mask[None]).to(torch.uint8), affine=affine) for mask in pair))
        )
    expected = compare_masks(*masks["p"], (1, 1, 4), 2.0)
    assert metric.cases["p"]["a"] == expected and metric.compute() == pytest.approx(expected["dice"])
    PatientReport(metric, tmp_path, lambda: {"split": "test"})(None)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["split"] == "test" and record["surface_tolerance_mm"] == 2.0
    assert record["cases"]["p"]["a"] == expected and record["summary"]["a"]["dice"]["n"] == 1
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert len(rows) == 4 and rows[0]["case"] == "p" and float(rows[0]["dice"]) == expected["dice"]
    assert rows[2]["dice"] == "" and rows[2]["reference_voxels"] == "0"
    metric.reset()
    assert np.isnan(metric.compute())
