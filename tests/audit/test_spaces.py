"""Slices and volumes, raw and preprocessed, several channels, labels and regions, with and without held-out cases."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.audit.agreement import SegmenterSettings
from scripts.audit.audit import audit_pool, run_audit
from scripts.audit.items import load_audit_data
from tests.data.toy import write_preprocessed

from .planted import load, write_heads, write_planted

QUICK = {"segmenter": SegmenterSettings(folds=2, steps=2), "extractor_steps": 2, "progress": False}


def spoilt(data, count: int = 8) -> list[torch.Tensor]:
    """Training items, the last two without a mask and without an image."""
    found = [item["image"] for item in data.training[:count]]
    channels = data.num_image_channels
    found[-2] = torch.cat([found[-2][:channels], torch.zeros_like(found[-2][channels:])])
    found[-1] = torch.cat([torch.full_like(found[-1][:channels], 0.5), found[-1][channels:]])
    return found


def assert_masks_are_as_those_they_copy(pool, data_set, count):
    """Real masks go the way of samples: a training item in the pool has the mask of that item, to the voxel."""
    audit = load_audit_data(pool, data_set, lambda items, title: items)
    inside = audit.samples.images[:count].any(dim=1, keepdim=True)  # a masked space has no labels elsewhere
    assert torch.equal(audit.samples.masks[:count] & inside, audit.real.masks[:count] & inside)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "grid", "channels", "regions", "fold"),
    [
        ("raw", (24, 24), 2, True, 0),
        ("raw", (20, 24, 6), 1, False, 0),
        ("raw", (16, 16, 8), 2, True, "all"),
        ("masked", (16, 16), 2, False, 0),
        ("preprocessed", (20, 16, 6), 1, True, 0),
    ],
)
def test_every_kind_of_pool(tmp_path, space, grid, channels, regions, fold):
    if space == "raw":
        data_set = write_heads(tmp_path / "Dataset901_Heads", 12, 0, channels, regions)
    else:
        data_set = write_preprocessed(tmp_path / "Dataset901_Toy", 10, channels, regions, masked=space == "masked")
    data = load(data_set, fold, grid)
    assert bool(data.validation) == (fold == 0)
    items = spoilt(data)
    pool = write_planted(tmp_path / "pool", data, items)
    audit_pool(pool, data_set, **QUICK)
    samples = json.loads((pool / "pool.json").read_text())["samples"]
    record = json.loads((pool / "audit.json").read_text())
    assert "an empty mask" in samples[-2]["reason"] and "a blank image" in samples[-1]["reason"]
    assert record["grid"] == list(grid) and record["real"]["held_out"]["patients"] == len(data.cases.fold.val)
    assert (pool / "audit.png").stat().st_size > 10_000
    assert_masks_are_as_those_they_copy(pool, data_set, count=len(items) - 2)
    pixels = [sample["scores"]["audit"]["memorisation_pixels"] for sample in samples[:-2]]
    assert max(pixels) < 0.7, "the samples are the training items themselves"


@pytest.mark.slow
def test_samples_that_cannot_be_used(tmp_path):
    data_set = write_heads(tmp_path / "Dataset901_Heads", 12, 0)
    data = load(data_set, 0, (16, 16))
    pool = write_planted(tmp_path / "pool", data, [item["image"] for item in data.training[:6]])
    image = nib.load(pool / "images" / "syn_000001_0000.nii.gz")
    values = image.get_fdata()
    values[3, 3] = np.nan
    nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), pool / "images" / "syn_000001_0000.nii.gz")
    label = nib.load(pool / "labels" / "syn_000002.nii.gz")
    values = np.asarray(label.dataobj).copy()
    values[0, 0] = 7
    nib.save(nib.Nifti1Image(values, label.affine), pool / "labels" / "syn_000002.nii.gz")
    result = run_audit(pool, data_set, **QUICK)
    assert set(result.audit.broken) == {"syn_000001", "syn_000002"}
    assert [reasons[0] for reasons in result.reasons[1:3]] == [
        "intensities that are not finite", "labels that the data set does not have ([7])",
    ]  # fmt: skip
    assert np.isfinite(result.memorisation.closeness).all()


@pytest.mark.slow
def test_duplicates_leave_one(tmp_path):
    data_set = write_heads(tmp_path / "Dataset901_Heads", 20, 6)
    data = load(data_set, 0, (24, 24))
    new = [item["image"] for item in load(data_set, 1, (24, 24)).validation]
    by_case = {item["case"]: i for i, item in enumerate(load(data_set, 1, (24, 24)).validation)}
    one_each = [new[i] for i in by_case.values()]
    a, b, *others = one_each
    pool = write_planted(tmp_path / "pool", data, [a, b, a.flip(2), *others, b.flip(1), a])
    result = run_audit(pool, data_set, **QUICK)
    last = len(others) + 3
    found = result.duplicates.drop(np.ones(len(result.names), bool))
    assert {i: j for i, j in found.items() if i in (2, last, last + 1)} == {2: 0, last: 1, last + 1: 0}
    assert set(found) <= {2, last, last + 1}
    # Where the first is dropped for something else, the next one stays.
    kept = np.ones(len(result.names), bool)
    kept[0] = False
    assert result.duplicates.drop(kept) == {last: 1, last + 1: 2}


@pytest.mark.slow
def test_same_grid_spacing_as_the_samples(tmp_path):
    """Millimetres on the grid are those of the sample's own space."""
    data_set = write_heads(tmp_path / "Dataset901_Heads", 12, 0)
    for grid in ((20, 18), (20, 18, 3)):
        data = load(data_set, 0, grid)
        pool = write_planted(tmp_path / f"pool{len(grid)}", data, [item["image"] for item in data.training[:8]])
        audit = run_audit(pool, data_set, **QUICK).audit
        on_grid = audit.samples.foreground.flatten(1).sum(dim=1).numpy() * np.prod(audit.spacing)
        own = np.array([sample["features"]["volume"] for sample in audit.record["samples"]])
        assert on_grid.sum() == pytest.approx(own.sum(), rel=0.15)
