"""nnU-Net as a segmenter: which samples it gets, and what is measured of its predictions."""

import json

import nibabel as nib
import numpy as np
import pytest
from nnunet_plugin.pool_format import read_pool
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

from scripts.data.description import DatasetDescription
from scripts.experiment.nnunet import _compare, _first_samples
from scripts.experiment.nnunet_commands import train_command
from scripts.sampling.copy_paste import write_copy_paste

from ..data.toy import write_preprocessed


def test_the_first_samples_that_an_audit_kept(tmp_path):
    source = write_preprocessed(tmp_path / "Dataset901_Toy")
    pool = write_copy_paste(source, tmp_path / "pool", 6)
    record = json.loads((pool / "pool.json").read_text())
    for index in (0, 3):
        record["samples"][index] |= {"decision": "drop", "reason": "audit: empty"}
    (pool / "pool.json").write_text(json.dumps(record))
    few = read_pool(_first_samples(pool, 3, tmp_path / "few"))
    assert few.kept == ("syn_000001", "syn_000002", "syn_000004")
    assert few.generator_cases == read_pool(pool).generator_cases  # so that a leak is still noticed
    assert read_pool(pool).kept[:3] == few.kept  # what the bundles use, too


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls itself so
def test_predictions_are_measured_in_millimetres_on_the_labels_grid(tmp_path):
    description = DatasetDescription("Dataset901_Toy", {"0": "C"}, {"background": 0, "tumour": 1})
    reference, prediction = np.zeros((2, 12, 10, 6), np.uint8)
    reference[3:7, 3:7, 2:4] = 1
    prediction[4:8, 3:7, 2:4] = 1  # a voxel further along x
    for name, array in (("truth", reference), ("found", prediction)):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 1.0, 4.0, 1.0])), tmp_path / name / "case_1.nii.gz")
    values = _compare(tmp_path / "found", tmp_path / "truth", description, "SimpleITKIO")["case_1"]["tumour"]
    assert values["dice"] == pytest.approx(0.75) and values["iou"] == pytest.approx(0.6)
    assert values["hd95"] == pytest.approx(2.0)  # one voxel of 2 mm
    assert values["reference_voxels"] == values["predicted_voxels"] == 32


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls itself so
@pytest.mark.parametrize("reader, ending, spacing", [
    ("SimpleITKIO", ".nii.gz", [4.0, 2.0, 1.0]), ("SimpleITKIO", ".nrrd", [4.0, 2.0, 1.0]),
    ("Tiff3DIO", ".tif", [4.0, 2.0, 1.0]), ("NaturalImage2DIO", ".png", [999, 1, 1]),
])  # fmt: skip
def test_predictions_are_measured_in_every_format_that_nnunet_writes(reader, ending, spacing, tmp_path):
    depth = 1 if ending == ".png" else 6
    description = DatasetDescription("Dataset901_Toy", {"0": "C"}, {"background": 0, "tumour": 1}, file_ending=ending)
    stuff = {"spacing": spacing[::-1], "origin": (0, 0, 0), "direction": np.eye(3).ravel().tolist()}
    arrays = np.zeros((2, depth, 12, 10), np.uint8)
    arrays[0, :, 3:7, 3:7] = 1
    arrays[1, :, 4:8, 3:7] = 1
    for name, array in zip(("truth", "found"), arrays, strict=True):
        (tmp_path / name).mkdir()
        io = recursive_find_reader_writer_by_name(reader)()
        io.write_seg(array, str(tmp_path / name / f"c{ending}"), {"spacing": spacing, "sitk_stuff": stuff})
    found = _compare(tmp_path / "found", tmp_path / "truth", description, reader)["c"]["tumour"]
    assert found["dice"] == pytest.approx(0.75) and found["hd95"] == pytest.approx(spacing[1])


@pytest.mark.parametrize("left", ["latest", "final", None])
def test_what_was_trained_is_not_trained_again(tmp_path, left):
    """nnU-Net predicts the validation cases when the latest checkpoint is gone and the final one is there."""
    (tmp_path / "checkpoint_best.pth").touch()  # is there from the first epoch on, and nothing to go on from
    if left:
        (tmp_path / f"checkpoint_{left}.pth").touch()
    assert ("--c" in train_command("901", "2d", 0, "nnUNetPlans", "cpu", tmp_path)) == (left is not None)
