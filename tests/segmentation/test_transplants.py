"""Transplants as training items: of training cases alone, from (seed, epoch, place) alone, masks with their lesions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from scripts.data.cases import Case, open_cases
from scripts.data.training_set import load_training_set
from scripts.runtime.errors import InputError
from scripts.segmentation.mixing import first_cases
from scripts.segmentation.transplants import Transplants, TransplantSettings, open_transplants

from ..data.toy import write_raw


def discs(number, size=1.0):
    """A round body with a bright ball in it, `(1, 10, 40, 36)`: at another place and as large as `size` says."""
    rng = np.random.default_rng(number)
    z, y, x = np.meshgrid(np.arange(10), np.arange(40), np.arange(36), indexing="ij")
    tissue = 10 + gaussian_filter(rng.normal(size=z.shape), (0, 1.5, 1.5)) * 8
    image = tissue * ((y - 20) ** 2 + (x - 18) ** 2 < 17**2)
    lesion = ((z - 2 - number) * 1.2) ** 2 + (y - 17 - number) ** 2 + (x - 13) ** 2 < (4 * size) ** 2
    return (image + 8.0 * lesion)[None].astype(np.float32), lesion.astype(np.int16)


@pytest.fixture
def cases(tmp_path, monkeypatch):
    found = open_cases(write_raw(tmp_path / "Dataset901_Toy"))
    found.description.labels.clear()
    found.description.labels.update({"background": 0, "lesion": 1})
    numbers = {case: i for i, case in enumerate([*found.fold.train, *found.fold.val])}

    def read(case_id):
        assert case_id in known
        image, label = discs(numbers[case_id], (0.65, 1.05)[numbers[case_id] % 2])
        return Case(case_id, image, label, np.ones(label.shape, bool))

    known = set(numbers)
    monkeypatch.setattr(found, "load", read)
    found.known = known
    return found


def recipient(data, item):
    """The real item that a transplant was put into: the nearest of the same case."""
    whole = torch.stack([i["image"] for i in data.training if i["case"] == item["case"]])
    return whole[(whole[:, 0] - item["image"][0]).flatten(1).abs().sum(1).argmin()]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 36), (40, 36, 10)])
def test_items_are_training_cases_with_a_lesion_more(size, cases):
    data = load_training_set(cases, size, background_share=None)
    cases.known -= set(cases.fold.val)  # reading one from here on is an error
    transplants = Transplants(data, TransplantSettings(decoys=0.0), seed=0)
    made = [transplants.make(1, place) for place in range(4)]
    real = {item["case"] for item in data.training}
    for item in made:
        assert item["image"].shape == (2, *size) and item["synthetic"] and item["case"] in real
        image, mask = item["image"]
        assert 0 <= image.min() and image.max() <= 1 and set(mask.unique().tolist()) == {0.0, 1.0}
        before = recipient(data, item)
        changed = (before[0] - image).abs() > 1e-6
        more = mask > before[1]
        assert more.any() and changed[more].float().mean() > 0.9  # the lesion and its label came together
        assert changed.float().mean() < 0.5  # and most of the recipient is as it was
    assert torch.equal(transplants.make(1, 3)["image"], made[3]["image"])
    assert not torch.equal(transplants.make(2, 3)["image"], made[3]["image"])
    assert transplants.record["cases"] == cases.fold.train


@pytest.mark.slow
@pytest.mark.parametrize("size", [(40, 36), (40, 36, 10)])
def test_transplants_do_not_depend_on_the_cache(size, cases, tmp_path):
    data = load_training_set(cases, size)
    whole, small = (
        Transplants(data, TransplantSettings(decoys=0.5), 0, cache_gb, tmp_path / "cache") for cache_gb in (4.0, 30e-6)
    )
    for place in range(8):
        one, other = whole.make(1, place), small.make(1, place)
        assert torch.equal(one.pop("image"), other.pop("image")) and one == other
    assert sum(image.nbytes for image in small.store._held.values()) <= 30e3
    assert not list((tmp_path / "cache").iterdir())  # the files have no name: a kill leaves nothing


@pytest.mark.slow
def test_decoys_have_no_label_of_their_own(cases):
    data = load_training_set(cases, (40, 36), background_share=None)
    decoys = Transplants(data, TransplantSettings(decoys=1.0), seed=0)
    for item in (decoys.make(1, place) for place in range(6)):
        before = recipient(data, item)
        assert torch.equal(item["image"][1], before[1]) and not torch.equal(item["image"][0], before[0])


def test_only_the_chosen_patients_give_lesions(cases):
    data = load_training_set(first_cases(cases, 3), (40, 36), background_share=None)
    chosen = set(data.cases.fold.train)
    transplants = Transplants(data, TransplantSettings(), seed=0)
    assert set(transplants.names) == chosen and {transplants.make(1, i)["case"] for i in range(12)} <= chosen
    one = load_training_set(first_cases(cases, 1), (40, 36), background_share=None)
    with pytest.raises(InputError, match="2 or more"):
        Transplants(one, TransplantSettings(), seed=0)


def test_settings(cases):
    data = load_training_set(cases, (40, 36), background_share=None)
    assert open_transplants(data, None, 0) is None is open_transplants(data, {"share": 0}, 0)
    assert TransplantSettings.parse({"until": 0.5}).finish_epochs(10) == 5
    for block, words in (
        ({"shares": 0.3}, "share"),
        ({"share": 2}, "share"),
        (0.3, "null"),
        ({"decoys": "x"}, "decoys"),
    ):
        with pytest.raises(InputError, match=words):
            TransplantSettings.parse(block)


def test_organs_are_refused(cases, monkeypatch):
    load = cases.load
    monkeypatch.setattr(cases, "load", lambda case: replace(load(case), label=discs(0)[1]))
    data = load_training_set(cases, (40, 36), background_share=None)
    with pytest.raises(InputError, match="organ"):
        Transplants(data, TransplantSettings(), seed=0)
