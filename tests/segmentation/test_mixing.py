"""Samples of a pool become items, and never where they do not fit or would leak."""

import json
from collections import Counter
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.data.cases import open_cases
from scripts.data.folds import listed_fold
from scripts.data.training_set import load_training_set
from scripts.runtime.errors import InputError
from scripts.segmentation.mixing import first_cases, load_pool, mixed_items

from ..data.toy import write_preprocessed, write_raw
from ..data.toy_nnunet import seen_by, write_pool

SIZE = (24, 24)


def open_toy(folder, **more):
    plans = write_preprocessed(folder, **more) / "nnUNetPlans.json"
    content = json.loads(plans.read_text()) | {"foreground_intensity_properties_per_channel": {"0": {"mean": 1.5}}}
    plans.write_text(json.dumps(content))
    return open_cases(folder)


@pytest.fixture
def cases(tmp_path):
    return open_toy(tmp_path / "Dataset901_Toy")


def samples(cases, count=5):
    """Slices of training cases as samples `(channel, 1, y, x)`, `(1, y, x)`, and the items that they are."""
    data = load_training_set(cases, SIZE)
    items = data.training[:count]
    found = [(cases.load(item["case"]), item["slice"]) for item in items]
    return data, items, [(case.image[:, [z]], case.label[[z]]) for case, z in found]


@pytest.mark.parametrize("masked", [False, True])
def test_a_sample_reaches_the_grid_as_a_real_slice_does(masked, tmp_path):
    cases = open_toy(tmp_path / "Dataset901_Toy", channels=2, masked=masked)
    data, items, drawn = samples(cases)
    pool = load_pool(write_pool(tmp_path / "pool", cases, drawn), cases, data)
    assert len(pool.items) == 5 and pool.record["samples"] == 5 and len(pool.record["sha256"]) == 64
    for item, real in zip(pool.items, items, strict=True):
        one, two = (data.geometry.from_grid(x["image"][None]) for x in (item, real))  # without what is around the slice
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("size", [SIZE, (24, 24, 6)])
def test_raw_samples_go_back_through_the_map_of_their_generator(size, tmp_path):
    """Each real raw case has its own map; a sample went to the scanner's units by the generator's one."""
    cases = open_cases(write_raw(tmp_path / "Dataset901_Toy"))
    data = load_training_set(cases, size)
    real = data.training[0]["image"][None]
    back = data.geometry.from_grid(real).numpy()[0]
    image = data.scaling.invert(back[:1])[0]
    label = cases.description.to_label_map(back[1:])
    if len(size) == 2:
        image, label = image[:, None], label[None]
    wrong = data.scaling.as_record() | {"low": [0.0], "high": [1e6]}
    for name, scaling, same in (("right", data.scaling.as_record(), True), ("wrong", wrong, False)):
        folder = write_pool(tmp_path / name, cases, [(image, label)], provenance=seen_by(cases, scaling=scaling))
        (item,) = load_pool(folder, cases, data).items
        again = data.geometry.from_grid(item["image"][None]).numpy()[0]  # without the padding around the slice
        assert np.allclose(again, back, atol=1e-4) == same


def test_only_kept_samples_and_the_first_of_them(cases, tmp_path):
    data, _, drawn = samples(cases)
    records = [{"id": f"syn_{i:06d}", "decision": "drop" if i == 1 else "keep"} for i in range(5)]
    folder = write_pool(tmp_path / "pool", cases, drawn, samples=records)
    assert [item["case"] for item in load_pool(folder, cases, data).items] == [f"syn_00000{i}" for i in (0, 2, 3, 4)]
    assert [item["case"] for item in load_pool(folder, cases, data, 2).items] == ["syn_000000", "syn_000002"]
    for nothing in (load_pool(folder, cases, data, 0), load_pool(None, cases, data)):
        assert len(nothing.items) == 0 and nothing.record is None
    with pytest.raises(InputError, match="0 to 4"):
        load_pool(folder, cases, data, 5)
    with pytest.raises(InputError, match="set pool_dir"):
        load_pool(None, cases, data, 5)


def test_a_pool_that_does_not_fit_is_refused(cases, tmp_path):
    data, _, drawn = samples(cases, 1)
    space, provenance = cases.space, seen_by(cases)
    everybody = copy(cases)
    everybody.fold = listed_fold([*cases.fold.train, *cases.fold.val])
    stranger = {"id": "stranger", "sha256": "0" * 64}
    wrong = {
        ", ".join(cases.fold.val): {"provenance": seen_by(everybody)},
        "stranger": {"provenance": {"dataset": "Dataset901_Toy", "cases": [stranger]}},
        "without the hash": {"provenance": {**provenance, "cases": [{"id": cases.fold.train[0]}]}},
        "list of cases was changed": {"provenance": {**provenance, "cases": provenance["cases"][1:]}},
        "its own fold": {"provenance": {**provenance, "fold": 1}},
        "another space": {"space": {**space, "spacing": [4.0, 1.5, 2.0]}},
        "nnunet_preprocessed space": {"space": {"kind": "raw", "spacing": [4.0, 1.5, 1.0]}},
        "labels": {"dataset": {**cases.description.as_record(), "labels": {"background": 0, "x": 1}}},
        "dimension 3": {"dimension": 3},
        "corrupt": {"samples": [{"id": "syn_000000"}]},
    }
    for words, changes in wrong.items():
        folder = write_pool(tmp_path / str(len(list(tmp_path.iterdir()))), cases, drawn, **changes)
        with pytest.raises(InputError, match=words):
            load_pool(folder, cases, data)
    with pytest.raises(InputError, match="pool"):
        load_pool(tmp_path / "nothing", cases, data)
    thick = write_pool(tmp_path / "thick", cases, drawn, space={**space, "spacing": [9.0, 1.5, 1.0]})
    assert len(load_pool(thick, cases, data).items) == 1  # 2d leaves the slice axis as it is, as in the plugin


def test_cases_that_changed_or_changed_places_since_the_pool_was_made_are_refused(tmp_path):
    cases = open_toy(tmp_path / "Dataset901_Toy")
    _, _, drawn = samples(cases, 1)
    pool = write_pool(tmp_path / "pool", cases, drawn)
    one, two, held_out = cases.fold.train[0], cases.fold.train[1], cases.fold.val[0]
    read = cases._read

    def changed(**places):
        other = copy(cases)
        other._read = lambda name: replace(read(places.get(name, name)), id=name)
        return other, load_training_set(other, SIZE)

    for places, words in (
        ({one: two, two: one}, f"{one} .now under {two}"),
        ({one: held_out, held_out: one}, f"now under {held_out}"),
        ({held_out: one}, f"{held_out} .seen as {one}"),
    ):
        with pytest.raises(InputError, match=words):
            load_pool(pool, *changed(**places))
    other = copy(cases)
    other._read = lambda name: replace(read(name), image=read(name).image + np.float32(1e-4))
    assert load_pool(pool, other, load_training_set(other, SIZE)).record["samples"] == 1  # other bits, the same case
    old = json.loads((pool / "pool.json").read_text())  # before there were fingerprints
    for key in ("validation", "cases_sha256"):
        del old["provenance"][key]
    old["provenance"]["cases"] = [{key: case[key] for key in ("id", "sha256")} for case in old["provenance"]["cases"]]
    (pool / "pool.json").write_text(json.dumps(old))
    assert load_pool(pool, cases, load_training_set(cases, SIZE)).record["samples"] == 1


def test_fewer_real_cases_are_a_part_of_more(cases):
    train = cases.fold.train
    few = [first_cases(cases, n, seed=3).fold.train for n in (1, 2, 3, 4)]
    assert all(set(a) < set(b) for a, b in zip(few, few[1:], strict=False)) and few[-1] == train
    assert cases.fold.train == train and first_cases(cases, None).fold.train == train
    assert len({tuple(first_cases(cases, 2, seed).fold.train) for seed in range(8)}) > 1
    assert first_cases(cases, 2).fold.val == cases.fold.val
    with pytest.raises(InputError, match="1 to 4"):
        first_cases(cases, 5)


def test_items_are_real_ones_their_copies_and_samples(cases, tmp_path):
    data, _, drawn = samples(cases)
    pool = load_pool(write_pool(tmp_path / "pool", cases, drawn), cases, data)
    found = mixed_items(data, pool, "x5")
    assert len(found) == 5 * len(data.training) + 5
    copies = Counter(item["copy"] for item in found if not item["synthetic"])
    assert copies == dict.fromkeys(range(5), len(data.training))
    assert [item["case"] for item in found if item["synthetic"]] == [item["case"] for item in pool.items]
    assert all(item["copy"] == 0 for item in found if item["synthetic"])
