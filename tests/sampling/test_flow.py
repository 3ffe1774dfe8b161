"""Pools of painted lesions: nothing outside the hole changes, labels say what was painted, seeds decide."""

import numpy as np
import pytest

from scripts.data.cases import open_cases
from scripts.pool.writing import load_sample, read_pool, write_pool
from scripts.runtime.errors import InputError
from scripts.sampling.flow import FlowSampler

from .toy_painter import make_painter


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painter")
    network, given, _ = make_painter(folder)
    cases = {case.id: case for case in open_cases(given["dataset_dir"]).training()}
    return network, given, cases


def drawn(toy, mode, count=5, **more):
    network, given, cases = toy
    sampler = FlowSampler(network, **given, mode=mode, **more)
    (batch,) = sampler(count, seed=3)
    return sampler, list(zip(batch["image"], batch["label"], batch["record"], strict=True)), cases


def recipient(record, cases):
    name, _, plane = record["recipient"].partition(", slice ")
    return cases[name].image[:, int(plane)], cases[name].label[int(plane)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["insert", "replace", "remove"])
def test_outside_the_hole_the_patient_is_as_it_was(mode, toy):
    _, items, cases = drawn(toy, mode)
    for image, label, record in items:
        before, label_before = recipient(record, cases)
        box = np.zeros(label.shape, bool)
        box[tuple(slice(s, s + n) for s, n in zip(*record["hole"].values(), strict=True))] = True
        assert np.array_equal(image[:, ~box], before[:, ~box]) and (image != before).any()
        assert np.array_equal(label[~box], label_before[~box])
        added, gone = (label > 0) & (label_before == 0), (label == 0) & (label_before > 0)
        assert record["donor"] != record["recipient"].split(",")[0]
        if mode == "insert":
            assert added.any() and not gone.any() and set(np.unique(label[added])) <= {1, 2}
        elif mode == "remove":
            assert gone.any() and not added.any() and record["donor"] is None
        else:
            assert label.any() and (label != label_before).any()


@pytest.mark.slow
def test_the_same_samples_whatever_the_batch(toy, tmp_path):
    sampler, items, _ = drawn(toy, "insert", samples_per_pass=2)
    again = sampler.draw(range(1, 4), 3)
    for number, item in zip(range(1, 4), again, strict=True):
        assert np.array_equal(item["image"], items[number][0]) and item["record"] == items[number][2]
    write_pool(sampler, tmp_path / "pool", 3, seed=3, progress=False)
    record = read_pool(tmp_path / "pool")
    assert record["real_anatomy"] is True and record["sampling"]["mode"] == "insert"
    assert np.array_equal(load_sample(tmp_path / "pool", "syn_000001", 1)[0][:, 0], items[1][0])


@pytest.mark.slow
def test_a_condition_bounds_volume_and_place(toy):
    network, given, _ = toy
    sampler = FlowSampler(network, **given)
    condition = {"volume": [20, 60], "place": [[0.0, 1.0], [0.0, 0.6]]}
    items = [item for item in sampler.draw(range(12), 1, condition) if item is not None]
    assert items
    for item in items:
        start, size = (np.array(part) for part in item["record"]["hole"].values())
        assert (start + size / 2)[1] < 0.7 * 36
    for wrong in ({"volume": [3]}, {"size": [1, 2]}, {"place": [[0, 1]]}, {}):
        with pytest.raises(InputError, match="condition"):
            sampler.check(wrong)


@pytest.mark.slow
def test_other_data_and_other_modes_are_refused(toy, tmp_path):
    network, given, _ = toy
    with pytest.raises(InputError, match="mode 'paint'"):
        FlowSampler(network, **given, mode="paint")
    with pytest.raises(InputError, match="weights that learnt from"):
        FlowSampler(network, **{**given, "dataset_dir": None}, phantom_dir=tmp_path)


@pytest.mark.slow
def test_volumes(toy, tmp_path):
    folder = toy[1]["dataset_dir"].parent
    network, given, data = make_painter(folder, volumes=True)
    cases = {case.id: case for case in data.cases.training()}
    sampler = FlowSampler(network, **given, mode="remove")
    (item,) = sampler.draw(range(1), 0)
    before = cases[item["record"]["recipient"]]
    assert sampler.dimension == 3 and item["image"].shape == before.image.shape
    assert not item["label"].any() and before.label.any()
    hole = np.abs(item["image"] - before.image).max(0) > 0
    assert hole[before.label > 0].all() and hole.sum() < 10 * (before.label > 0).sum()
