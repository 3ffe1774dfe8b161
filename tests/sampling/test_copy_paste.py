"""Copy-paste takes tumours of training patients alone, changes nothing else, and writes an ordinary pool."""

import json

import numpy as np
import pytest
import torch

from scripts.data.cases import open_cases
from scripts.data.training_set import load_training_set, own_size
from scripts.pool.adopt import origin
from scripts.pool.writing import load_sample, read_pool
from scripts.runtime.errors import InputError
from scripts.sampling.copy_paste import CopyPasteSampler, write_copy_paste
from scripts.sampling.pasting import draw_margin, paste, signed_distance
from scripts.segmentation.mixing import load_pool

from ..data.toy import toy_case, write_preprocessed, write_raw

SPACES = {"slices": ("2d", (20, 18)), "volumes": ("3d_fullres", (20, 18, 6)), "raw": ("raw", (20, 18))}


@pytest.fixture(params=SPACES)
def data(request, tmp_path):
    configuration, size = SPACES[request.param]
    write = write_raw if configuration == "raw" else write_preprocessed
    folder = write(tmp_path / "Dataset901_Toy", cases=6)
    return load_training_set(open_cases(folder, 1, configuration=configuration), size, 0.5)


def test_distance_is_that_to_the_nearest_voxel_across_the_border():
    mask = np.zeros((9, 7), bool)
    mask[2:6, 2:4] = True
    distance = signed_distance(mask, (2.0, 1.0))
    points = np.argwhere(np.ones_like(mask)) * [2.0, 1.0]
    for place, value in np.ndenumerate(distance):
        other = points[(mask != mask[place]).ravel()]
        assert abs(value) == pytest.approx(np.linalg.norm(other - np.array(place) * [2.0, 1.0], axis=1).min())
        assert (value < 0) == mask[place]


def test_margins_are_those_of_carvemix():
    distance = np.array([-8.0, 1.0, 3.0])
    rng = np.random.default_rng(0)
    margins = np.array([draw_margin(distance, rng) for _ in range(4000)])
    inside, around = margins[margins < 0], margins[margins >= 0]
    assert abs(len(inside) / len(margins) - 0.5) < 0.03  # half of each
    assert inside.min() >= -4 and around.max() <= 8
    assert np.quantile(inside, [0.25, 0.75]) == pytest.approx([-3, -1], abs=0.15)  # both uniform
    assert np.quantile(around, [0.25, 0.75]) == pytest.approx([2, 6], abs=0.3)


def test_pasted_voxels_are_the_donors_and_nothing_else_changes(data):
    """Independently of the code: the region is what lies within the margin of the donor's tumour."""
    sampler = CopyPasteSampler(data)
    named = {(item["case"], item.get("slice")): item["image"] for item in data.training}
    changed = grown = shrunk = 0
    for candidate in range(40):
        joint, facts = sampler.paste(candidate, seed=3)
        donor, recipient = (
            named[(name.partition(", slice ")[0], int(name.partition(", slice ")[2] or 0) if "," in name else None)]
            for name in (facts["donor"], facts["recipient"])
        )
        assert facts["donor"].partition(",")[0] != facts["recipient"].partition(",")[0]
        tumour = donor[1:].any(dim=0).numpy()
        region = torch.from_numpy(signed_distance(tumour, data.grid_spacing) <= facts["margin"] + 5e-4)
        assert torch.equal(joint[:, region], donor[:, region])
        assert torch.equal(joint[:, ~region], recipient[:, ~region])
        if facts["margin"] > 0:  # the whole tumour, its labels as they were
            assert torch.equal(joint[1:, tumour], donor[1:, tumour])
            grown += int(region.sum() > tumour.sum())
        else:
            assert not (region.numpy() & ~tumour).any()
            shrunk += int(region.sum() < tumour.sum())
        changed += not torch.equal(joint, recipient)
    assert changed == 40 and grown and shrunk


def test_the_same_place_in_millimetres():
    recipient, donor = torch.zeros(2, 5, 9), torch.ones(2, 5, 9)
    donor[1] = 0
    donor[1, 2, 4] = 1
    out = paste(recipient, donor, 1, margin=2.0, spacing=(2.0, 1.0))
    expected = torch.zeros(5, 9)
    expected[2, 2:7] = expected[1, 4] = expected[3, 4] = 1  # two columns of 1 mm, one row of 2 mm
    assert torch.equal(out[0], expected) and torch.equal(out[1], donor[1])


def test_between_sizes_a_tumour_keeps_its_relative_place_in_the_image():
    rng = np.random.default_rng(0)
    canvas = (40, 60)
    boxes = [(slice(0, 40), slice(0, 60)), (slice(10, 30), slice(20, 40)), (slice(5, 35), slice(25, 35))]
    for _ in range(60):
        here, there = (boxes[i] for i in rng.choice(3, 2, replace=False))
        recipient, donor = torch.full((2, *canvas), -1.0), torch.full((2, *canvas), -2.0)  # padding
        recipient[0][there], donor[0][here], recipient[1], donor[1] = 1, 2, 0, 0
        size = rng.integers(2, 6, 2)
        low = [rng.integers(box.start, box.stop - n + 1) for box, n in zip(here, size, strict=True)]
        tumour = tuple(slice(first, first + n) for first, n in zip(low, size, strict=True))
        donor[1][tumour] = 1
        out = paste(recipient, donor, 1, rng.uniform(0, 4), (1.0, 1.0), (here, there))
        inside = torch.zeros(canvas, dtype=torch.bool)
        inside[there] = True
        assert out[1].sum() == size.prod() and not out[1][~inside].any() and (out[0][out[1] == 1] == 2).all()
        assert (out[0][~inside] == -1).all() and set(out[0][inside].tolist()) == {1, 2}  # no padding of the donor's
        places = np.argwhere(out[1].numpy())
        for axis in range(2):
            relative = (low[axis] + size[axis] / 2 - here[axis].start) / (here[axis].stop - here[axis].start)
            side = there[axis].stop - there[axis].start
            found = (places[:, axis].mean() + 0.5 - there[axis].start) / side
            edge = size[axis] / 2 / side
            assert abs(found - np.clip(relative, edge, 1 - edge)) <= 1 / side
    wide = torch.zeros(2, *canvas)
    wide[1, 2:38, 5:50] = 1  # more than the recipient has room for
    out = paste(torch.full((2, *canvas), -1.0), wide, 1, 0.0, (1.0, 1.0), (boxes[0], boxes[1]))
    assert (out[1][boxes[1]] == 1).all() and (out == -1).sum() == 2 * (40 * 60 - 20 * 20)


def test_cases_of_several_sizes_are_pasted_into_their_own_image(tmp_path):
    def case(index, channels):
        image, label = toy_case(index, channels)
        return (image[..., 3:-4], label[..., 3:-4]) if index % 2 else (image, label)

    folder = write_preprocessed(tmp_path / "Dataset901_Toy", cases=6, case=case)
    cases = open_cases(folder, 1)
    data = load_training_set(cases, own_size(cases, volumes=False), 0.5)
    sampler, moved = CopyPasteSampler(data), 0
    for candidate in range(40):
        joint, facts = sampler.paste(candidate, seed=3)
        rows, columns = sampler.boxes[facts["recipient"].partition(",")[0]]
        assert columns in (slice(0, 18), slice(3, 14)) and not joint[1:, :, : columns.start].any()
        assert not joint[1:, :, columns.stop :].any() and joint[1:].any()
        moved += columns != slice(0, 18)
    assert moved


@pytest.mark.parametrize("kind", SPACES)
def test_pool_is_an_ordinary_one_of_the_folds_training_cases(kind, tmp_path):
    configuration, size = SPACES[kind]
    write = write_raw if configuration == "raw" else write_preprocessed
    folder = write(tmp_path / "Dataset901_Toy", cases=6)
    if configuration != "raw":  # as nnU-Net's plans have them
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        plans["foreground_intensity_properties_per_channel"] = {"0": {"mean": 0.0, "std": 1.0}}
        (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    arguments = {"fold": 1, "seed": 5, "configuration": configuration, "spatial_size": size}
    pool = write_copy_paste(folder, tmp_path / "pool", 12, **arguments)
    cases = open_cases(folder, 1, configuration=configuration)
    record = read_pool(pool)
    people = {s[who].partition(",")[0] for s in record["samples"] for who in ("donor", "recipient")}
    assert people <= set(cases.fold.train) and not people & set(cases.fold.val)
    assert {case["id"] for case in record["provenance"]["cases"]} == set(cases.fold.train)
    assert record["provenance"]["bundle"]["name"] == "copy_paste"
    assert origin(record).startswith("copy_paste, of the training cases of fold 1 of "), "nothing was trained"
    # Read by the segmenters as those of generators are: the same grid values come back.
    data = load_training_set(cases, size, 0.5, 5)
    items = load_pool(pool, cases, data).items
    sampler = CopyPasteSampler(data, 5)
    for item, sample in zip(items, record["samples"], strict=True):
        joint, _ = sampler.paste(sample["seed"], 5)
        assert torch.equal(item["image"][1:], joint[1:])
        # A raw pool holds the median patient's units, so that what was clipped at 0 and 1 stays so.
        assert torch.allclose(item["image"][:1], joint[:1], atol=2e-3)
    with pytest.raises(InputError, match="toy_"):  # another fold is validated on these patients
        other = open_cases(folder, 0, configuration=configuration)
        load_pool(pool, other, load_training_set(other, size, 0.5))


def test_it_grows_and_repeats_itself(tmp_path):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy", cases=6)
    once = write_copy_paste(folder, tmp_path / "once", 6, seed=1)
    write_copy_paste(folder, tmp_path / "grown", 2, seed=1)
    grown = write_copy_paste(folder, tmp_path / "grown", 6, seed=1)
    assert json.loads((once / "pool.json").read_text()) == json.loads((grown / "pool.json").read_text())
    for name in ("syn_000000", "syn_000005"):
        for a, b in zip(load_sample(once, name, 1), load_sample(grown, name, 1), strict=True):
            assert np.array_equal(a, b)
    cases = open_cases(folder, 0)
    assert own_size(cases, volumes=False) == [20, 18]  # without a size nothing is resampled
    _, label = load_sample(once, "syn_000003", 1)
    assert label.shape == (1, 20, 18)


def test_one_patient_is_refused(tmp_path):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy", cases=6)
    ids = [f"toy_{i:03d}" for i in range(6)]
    (folder / "splits_final.json").write_text(json.dumps([{"train": ids[:1], "val": ids[1:]}]))
    with pytest.raises(InputError, match="two or more"):
        write_copy_paste(folder, tmp_path / "pool", 2)
