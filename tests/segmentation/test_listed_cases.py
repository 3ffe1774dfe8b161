"""Cases of a list of files are those of the data set that the files come from, and a training of them says so."""

import json

import numpy as np
import pytest

from scripts.data.cases import open_cases
from scripts.data.provenance import build_provenance
from scripts.data.training_set import load_training_set
from scripts.runtime.errors import InputError
from scripts.segmentation.listed_cases import ListedCases
from scripts.segmentation.model_space import ModelSpace
from scripts.segmentation.whole_cases import case_of

from ..data.toy_nnunet import write_dataset


def files(raw, names):
    return [
        {"image": str(raw / f"imagesTr/{n}_0000.nii.gz"), "label": str(raw / f"labelsTr/{n}.nii.gz")} for n in names
    ]


def write_record(cases, size, folder):
    data = load_training_set(cases, size)
    training = {"plans": ModelSpace.of(data).plans, "pool": None}
    folder.mkdir()
    record = build_provenance(data, {"name": "segmentation", "version": "0"}, 0, {}, training)
    (folder / "provenance.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("kind", ["raw", "2d", "3d_fullres"])
def test_listed_files_are_read_as_the_cases_of_their_data_set(kind, mask, tmp_path):
    raw, pre = write_dataset(tmp_path, regions=True, transpose=(2, 0, 1), mask=mask)
    cases = open_cases(raw if kind == "raw" else pre, configuration=kind)
    models = write_record(cases, (24, 24, 8) if kind == "3d_fullres" else (24, 24), tmp_path / "models")
    listed = ListedCases(files(raw, ["toy_003", "toy_001"]), models)
    assert listed.fold.train == ["toy_001", "toy_003"] and listed.fold.val == []
    assert listed.space == cases.space and listed.is_3d == cases.is_3d
    for name in listed.fold.train:
        ours, theirs = listed.load(name), cases.load(name)
        assert np.allclose(ours.image, theirs.image, atol=1e-5)
        assert np.array_equal(ours.label, theirs.label) and np.array_equal(ours.inside, theirs.inside)
    assert (
        ModelSpace.of(load_training_set(listed, (24, 24, 8))).plans == ModelSpace.open(models / "provenance.json").plans
    )


def test_what_cannot_be_listed(tmp_path):
    raw, _ = write_dataset(tmp_path)
    models = write_record(open_cases(raw), (24, 24), tmp_path / "models")
    for items, folder, said in (
        ([], models, "0 images"),
        (files(raw, ["toy_001", "toy_001"]), models, "several named toy_001"),
        (files(raw, ["toy_001"]), tmp_path, "train first"),
    ):
        with pytest.raises(InputError, match=said):
            ListedCases(items, folder)


def test_a_case_is_named_after_its_image():
    for path in ("/a/b_0000.nii.gz", "/a/b.nii.gz", "/a/b.b2nd", ["/a/b_0000.nii.gz", "/a/b_0001.nii.gz"]):
        assert case_of(path) == "b"
    assert case_of("1.2.3.nii.gz") == "1.2.3"
