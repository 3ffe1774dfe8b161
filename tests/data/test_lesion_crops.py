"""Windows of lesions do not depend on the memory that they are made with."""

import pytest
import torch

from scripts.data.cases import open_cases
from scripts.data.lesion_crops import load_lesion_crops
from scripts.data.training_set import KeptCases
from scripts.runtime.errors import InputError

from .toy import body_case, write_preprocessed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("windows") / "Dataset901_Toy", cases=6, case=body_case)


@pytest.mark.slow
@pytest.mark.parametrize(("configuration", "size"), [("2d", [24, 24]), ("3d_fullres", [16, 24, 24])])
def test_windows_do_not_depend_on_the_cache(folder, tmp_path, configuration, size):
    cases = open_cases(folder, configuration=configuration)
    whole, small = (
        load_lesion_crops(cases, size, seed=1, cache_gb=cache_gb, cache_dir=tmp_path / "cache") for cache_gb in (4.0, 0)
    )
    assert (small.seen, small.scaling, small.geometry) == (whole.seen, whole.scaling, whole.geometry)
    assert (small.values == whole.values).all()
    for a, b in ((whole.training, small.training), (whole.validation, small.validation)):
        assert len(a) == len(b) > 0
        for one, other in zip(a, b, strict=True):
            assert torch.equal(one.pop("image"), other.pop("image")) and one == other
    assert not small.training.store._held and not list((tmp_path / "cache").iterdir())


def test_kept_cases_take_no_more_than_their_room(folder):
    cases = open_cases(folder)
    names = cases.fold.train
    first = cases.load(names[0])
    kept = KeptCases(cases, 2.5 * sum(array.nbytes for array in (first.image, first.label, first.inside)))
    for _ in range(2):
        assert [kept.load(name).id for name in names] == names
    assert list(kept.kept) == names[:2] and [case["id"] for case in kept.seen] == names
    assert kept.load(names[0], last=True) is not kept.load(names[0], last=True)


@pytest.mark.slow
def test_a_fold_without_lesions_is_refused(tmp_path):
    def healthy(*arguments):
        image, label = body_case(*arguments)
        return image, 0 * label

    write_preprocessed(tmp_path / "Dataset901_Toy", case=healthy)
    with pytest.raises(InputError, match="no lesion"):
        load_lesion_crops(open_cases(tmp_path / "Dataset901_Toy"), [24, 24])
