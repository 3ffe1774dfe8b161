"""Pools of real slices again: each as often as every other, with its mask, refused where they would leak."""

from collections import Counter

import numpy as np
import pytest
import torch

from scripts.data.cases import open_cases
from scripts.data.training_set import item_name, load_training_set
from scripts.experiment.repeats import RepeatSampler, write_repeats
from scripts.pool.writing import read_pool
from scripts.runtime.errors import InputError
from scripts.segmentation.mixing import load_pool

from ..data.toy import write_raw


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("repeats") / "Dataset901_Toy", cases=6)


@pytest.mark.parametrize("kind", ["duplicates", "classical"])
def test_every_slice_comes_as_often_as_every_other(kind, source, tmp_path):
    cases = open_cases(source, 0)
    data = load_training_set(cases, (20, 18), 0.0)
    count = len(data.training)
    pool = write_repeats(kind, source, tmp_path / "pool", 2 * count + 3, spatial_size=[20, 18])
    record = read_pool(pool)
    times = Counter(sample["repeats"] for sample in record["samples"])
    assert set(times) == {item_name(item) for item in data.training} and set(times.values()) == {2, 3}
    assert record["real_anatomy"] is True  # `pack` refuses it: these are patients
    items = {item_name(item): item["image"] for item in data.training}
    made = load_pool(pool, cases, data).items
    apart = [
        float((one["image"] - items[sample["repeats"]]).abs().max())
        for one, sample in zip(made, record["samples"], strict=True)
    ]
    if kind == "duplicates":
        assert max(apart) < 1e-3  # the way through the files and back changes nothing to speak of
    else:
        assert min(apart) > 0.05
        twins = [one["image"] for one, s in zip(made, record["samples"], strict=True)
                 if s["repeats"] == record["samples"][0]["repeats"]]  # fmt: skip
        assert not torch.allclose(twins[0], twins[1], atol=0.05)  # another copy in each round
    with pytest.raises(InputError, match="leak"):
        load_pool(pool, open_cases(source, 1), load_training_set(open_cases(source, 1), (20, 18), 0.0))


def test_candidates_follow_from_their_number_alone(source):
    data = load_training_set(open_cases(source, 0), (20, 18), 0.0)
    whole = RepeatSampler(data, True).draw(range(6), 3)
    alone = RepeatSampler(data, True).draw(range(4, 5), 3)[0]
    assert np.array_equal(whole[4]["image"], alone["image"]) and np.array_equal(whole[4]["label"], alone["label"])
