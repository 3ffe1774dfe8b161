"""Plain arrays of a preprocessed data set: the same cases, read without nnU-Net."""

import sys

import numpy as np
import pytest

from scripts.data.cases import open_cases
from scripts.data.prepared import MANIFEST, write_prepared
from scripts.runtime.errors import InputError

from .toy import write_preprocessed


@pytest.mark.parametrize("masked", [False, True])
def test_cases_folds_and_space_are_the_same_without_nnunet(masked, tmp_path, monkeypatch):
    source = write_preprocessed(tmp_path / "Dataset901_Toy", masked=masked)
    before = {name: open_cases(source, 1, configuration=name) for name in ("2d", "3d_fullres")}
    loaded = {name: {i: cases.load(i) for i in cases.fold.train} for name, cases in before.items()}
    target = write_prepared(source, tmp_path / "prepared")
    assert target.name == source.name and len(list(target.rglob("*.npz"))) == 12
    for module in ("nnunetv2", "blosc2", "SimpleITK"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, theirs in before.items():
        ours = open_cases(target, 1, configuration=name)
        assert ours.space == theirs.space and ours.fold == theirs.fold
        assert ours.description.as_record() == theirs.description.as_record()
        for case_id, case in loaded[name].items():
            again = ours.load(case_id)
            assert again.identity == case.identity and np.array_equal(again.inside, case.inside)


def test_an_interrupted_copy_is_refused_and_goes_on(tmp_path):
    source = write_preprocessed(tmp_path / "Dataset901_Toy")
    target = write_prepared(source, tmp_path / "prepared", configurations=["2d"])
    kept = target / "nnUNetPlans_2d/toy_000.npz"
    stamp = kept.stat().st_mtime_ns
    (target / "nnUNetPlans_2d/toy_001.npz").unlink()
    (target / MANIFEST).unlink()
    with pytest.raises(InputError, match="synthaug prepare"):
        open_cases(target)
    write_prepared(source, tmp_path / "prepared", configurations=["2d"])
    assert kept.stat().st_mtime_ns == stamp and len(open_cases(target).identifiers()) == 6
    with pytest.raises(InputError, match="another folder"):
        write_prepared(source, tmp_path)
