"""Conditions: like the training cases as a whole, exactly what was asked for, nothing that a mask cannot be."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from scripts.data.cases import open_cases
from scripts.data.conditions import MARGIN, ConditionModel, to_features, to_vector
from scripts.data.mask_features import mask_features
from scripts.data.training_set import load_training_set
from scripts.runtime.errors import InputError

from ..pool.volume_pool import toy_model
from .toy import write_preprocessed

LOGARITHMIC = [0, 1, 2, 6, 7, 8]


@pytest.fixture(scope="module")
def model():
    return toy_model()


@pytest.fixture(scope="module")
def drawn(model):
    rng = np.random.default_rng(0)
    return np.array([to_vector(model.draw(rng)) for _ in range(2000)])


def on_scale(x):
    x = np.array(x)
    x[..., LOGARITHMIC] = np.log(x[..., LOGARITHMIC])
    return x


def agrees(x):
    """Whether volume, surface and sphericity say the same."""
    return np.allclose(np.pi ** (1 / 3) * (6 * x[..., 0]) ** (2 / 3) / x[..., 1], x[..., 2], rtol=1e-6)


@pytest.mark.slow
def test_draws_have_the_training_correlations(model, drawn):
    training, new = (np.corrcoef(on_scale(x).T) for x in (model.table, drawn))
    assert training[0, 1] > 0.9 and training[0, 6] > 0.7 and training[0, 2] < -0.3  # independent draws have none
    assert np.abs(training - new).max() < 0.15
    assert np.allclose(on_scale(drawn).mean(axis=0), on_scale(model.table).mean(axis=0), rtol=0.06)
    assert (np.abs(on_scale(drawn).std(axis=0) / on_scale(model.table).std(axis=0) - 1) < 0.15).all()
    assert len({tuple(row) for row in drawn}) == len(drawn)


@pytest.mark.slow
def test_draws_are_inside_the_training_range_and_can_be_masks(model, drawn):
    assert (drawn >= model.table.min(axis=0) * (1 - 1e-6)).all() and (drawn <= model.table.max(axis=0) * 1.000001).all()
    assert agrees(drawn)
    centre, extent = drawn[:, 3:6], drawn[:, 6:]
    assert (drawn[:, 0] <= 1.001 * extent.prod(axis=1)).all()
    assert (centre - extent / 2 >= -1e-5).all() and (centre + extent / 2 <= model.field_of_view + 1e-5).all()


@pytest.mark.parametrize("names", [["volume"], ["sphericity"], ["volume", "sphericity"]])
def test_conditional_is_that_of_the_joint(model, names):
    """Against rejection: of many draws of the joint, those that happen to have the given values."""
    rng = np.random.default_rng(0)
    given = to_vector({name: to_features(np.median(model.table, axis=0))[name] for name in names})
    joint = np.concatenate([model._mixture(rng, np.full(9, np.nan)) for _ in range(600)])
    fixed = ~np.isnan(given)
    near = np.abs(model._scaled(joint) - model._scaled(given))[:, fixed].max(axis=1) < 0.04
    expected = on_scale(joint[near])
    found = on_scale(np.concatenate([model._mixture(rng, given) for _ in range(20)]))
    assert len(expected) > 1000
    free = ~fixed
    free[1] = False  # follows from the others
    error = np.hypot(expected.std(axis=0) / len(expected) ** 0.5, found.std(axis=0) / len(found) ** 0.5)
    assert (np.abs(expected.mean(axis=0) - found.mean(axis=0)) < 4 * error)[free].all()
    assert (np.abs(expected.std(axis=0) / found.std(axis=0) - 1) < 0.1)[free].all()
    # A test that a conditional which forgot what is given would not pass:
    if "volume" in names:
        assert np.abs(on_scale(joint).std(axis=0) / found.std(axis=0) - 1)[6:].min() > 0.3


@pytest.mark.parametrize(
    "given",
    [
        {"volume": 5000},
        {"volume": 5000.5, "centre": [48, 40.25, 32]},
        {"sphericity": 0.7, "surface_area": 2000.0},
        {"extent": [20, 18, 17], "volume": 3000},
        {"centre": [40, 30, 40], "surface_area": 1800},
    ],
)
def test_what_is_given_comes_back(model, given):
    rng = np.random.default_rng(1)
    several = [model.draw(rng, given) for _ in range(5)]
    for features in several:
        assert {name: features[name] for name in given} == given
        assert list(features) == ["volume", "surface_area", "sphericity", "centre", "extent"]
        assert agrees(to_vector(features))
    assert len({json.dumps(features) for features in several}) == 5


def test_a_whole_condition_is_left_as_it_is(model):
    whole = to_features(model.table[3])
    assert model.draw(np.random.default_rng(0), whole) == whole


def test_scale_and_back(model):
    scaled = model.training_conditions()
    assert scaled.shape == (40, 9) and scaled.dtype == torch.float32
    assert torch.equal(scaled.min(0).values, torch.zeros(9)) and torch.allclose(scaled.max(0).values, torch.ones(9))
    for row in model.table:
        assert np.allclose(model.unscale(model.scale(to_features(row))), row)
    low, high = (model.table[:, 0].min(), model.table[:, 0].max())
    assert model.scale({"volume": (low * high) ** 0.5})[0] == pytest.approx(0.5)  # sizes on a log scale
    assert model.scale({"centre": [48, 40, 32]})[3] == pytest.approx(
        (48 - model.table[:, 3].min()) / np.ptp(model.table[:, 3])
    )


def test_a_candidate_depends_on_seed_and_number_alone(model):
    once = [model.for_candidate(None, 3, index) for index in range(6)]
    assert [index for _, index in once] == list(range(6))
    assert model.for_candidate(None, 3, 4) == once[4]
    assert ConditionModel.from_record(json.loads(json.dumps(model.as_record()))).for_candidate(None, 3, 4) == once[4]
    assert len({json.dumps(features) for features, _ in once}) == 6
    assert model.for_candidate(None, 4, 4) != once[4]


def test_sweep_of_the_volume_lets_the_same_shape_grow(model):
    condition = {"sweep": {"feature": "volume", "start": 2000, "stop": 8000, "steps": 5}, "centre": [48, 40, 32]}
    asked = [model.for_candidate(condition, 0, index) for index in range(15)]
    assert [index for _, index in asked] == [0] * 5 + [1] * 5 + [2] * 5
    assert [f["sweep"]["step"] for f, _ in asked] == [0, 1, 2, 3, 4] * 3
    for group in range(3):
        rows = np.array([to_vector(f) for f, _ in asked[5 * group : 5 * group + 5]])
        assert rows[0, 0] == 2000 and rows[-1, 0] == 8000 and np.allclose(rows[1:, 0] / rows[:-1, 0], 4**0.25)
        assert (rows[:, 3:6] == [48, 40, 32]).all() and np.allclose(rows[:, 2], rows[0, 2])
        growth = np.cbrt(rows[:, :1] / rows[:1, :1])
        assert np.allclose(rows[:, 6:], rows[0, 6:] * growth) and np.allclose(rows[:, 1:2], rows[0, 1] * growth**2)
        assert agrees(rows)
        scaled = model._scaled(rows)
        assert (scaled >= -MARGIN).all() and (scaled <= 1 + MARGIN).all()
    assert asked[0][0]["sphericity"] != asked[5][0]["sphericity"]


def test_sweeps_keep_what_is_given(model):
    sweep = {"feature": "volume", "start": 3000, "stop": 4000, "steps": 3}
    rows = [model.for_candidate({"sweep": sweep, "extent": [26, 24, 22]}, 0, i)[0] for i in range(3)]
    assert all(row["extent"] == [26, 24, 22] for row in rows)
    sweep = {"feature": "centre", "start": [40, 30, 30], "stop": [56, 50, 34], "steps": 3}
    rows = [model.for_candidate({"sweep": sweep, "volume": 3000}, 0, i)[0] for i in range(3)]
    assert np.allclose([row["centre"] for row in rows], [[40, 30, 30], [48, 40, 32], [56, 50, 34]])
    assert len({json.dumps({**row, "centre": 0, "sweep": 0}) for row in rows}) == 1
    sweep = {"feature": "surface_area", "start": 1250, "stop": 1500, "steps": 2}
    first, last = (to_vector(model.for_candidate({"sweep": sweep, "volume": 3000}, 0, i)[0]) for i in range(2))
    assert (first[3:] == last[3:]).all() and first[2] > last[2] and agrees(first) and agrees(last)


@pytest.mark.parametrize(
    ("condition", "match"),
    [
        ({"volum": 5000}, "did you mean 'volume'"),
        ({"volume": 5_000_000}, r"volume 5000000 mm³; allowed: .*to .*e\+04 mm³: what the training masks had"),
        ({"volume": "5000"}, "one number, in mm³"),
        ({"volume": True}, "one number"),
        ({"volume": float("nan")}, "volume nan"),
        ({"centre": [40, 30]}, "three numbers: depth, height, width"),
        ({"centre": [4000, 30, 30]}, "what the training masks had"),
        ({"volume": 9000, "extent": [16, 16, 16]}, "no mask can have"),
        ({"centre": [12, 40, 32], "extent": [30, 24, 22]}, "no mask can have"),
        ({"volume": 5000, "surface_area": 1600}, r"sphericity \(as the other two say\)"),
        ({"volume": 5000, "surface_area": 2000, "sphericity": 0.65}, "follows from them"),
        ('{"volume": 5000', "no JSON object"),
        ([5000], "no JSON object"),
        ({"sweep": {"feature": "volume"}}, "give all four"),
        ({"sweep": {"feature": "size", "start": 1, "stop": 2, "steps": 2}}, "feature of a sweep 'size'"),
        ({"sweep": {"feature": "volume", "start": 2000, "stop": 9000, "steps": 1}}, "2 to 1000"),
        ({"sweep": {"feature": "volume", "start": 1, "stop": 9000, "steps": 3}}, "start of the sweep 1 mm³"),
        ({"sweep": {"feature": "volume", "start": 2000, "stop": 9000, "steps": 3, "by": 2}}, "sweep 'by'"),
        ({"volume": 3000, "sweep": {"feature": "volume", "start": 2000, "stop": 9000, "steps": 3}}, "swept and given"),
    ],
)
def test_what_cannot_be_asked_for(model, condition, match):
    with pytest.raises(InputError, match=match):
        model.check(condition)


def test_what_can_be_asked_for(model):
    """Nothing, and each volume of the training masks and a little more: that is what is then drawn."""
    volumes = model.table[:, 0]
    for condition in (None, {}, *({"volume": volume} for volume in (*volumes[:5], volumes.max() * 1.05))):
        model.check(condition)
        drawn = model.draw(np.random.default_rng(0), condition)
        assert all(drawn[name] == pytest.approx(value) for name, value in (condition or {}).items())
    with pytest.raises(InputError, match="what the training masks had"):
        model.check({"volume": volumes.max() * 2})


def test_nothing_that_fits_is_said(model):
    flat, long = to_vector({"centre": [48, 40, 32], "extent": [10, 10, 40]}), to_vector({"centre": [48, 40, 32]})
    flat[:3], long[:3], long[6:] = [1600, 900, 0.735], [24000, 5600, 0.719], [40, 40, 20]
    two = ConditionModel(np.array([flat, long]), model.field_of_view)
    with pytest.raises(InputError, match="narrow the sweep"):
        two.check({"sweep": {"feature": "volume", "start": 1600, "stop": 24000, "steps": 4}})


def test_one_case_is_all_there_is(model):
    one = ConditionModel(model.table[:1], model.field_of_view)
    drawn = to_vector(one.draw(np.random.default_rng(0)))
    assert np.allclose(drawn, model.table[0])


@pytest.fixture
def volumes(tmp_path):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy")
    return load_training_set(open_cases(folder, configuration="3d_fullres"), (20, 18, 6))


def test_training_masks_are_measured_as_samples_are(volumes):
    empty = torch.zeros_like(volumes.training[0]["image"])
    data = dataclasses.replace(volumes, training=[*volumes.training, {"image": empty, "case": "none"}])
    model = ConditionModel.fit(data)
    for row, item in zip(model.table, volumes.training, strict=False):
        label = volumes.cases.load(item["case"]).label
        assert np.allclose(row, to_vector(mask_features(label > 0, volumes.cases.spacing)))
    assert np.isnan(model.table[-1]).all() and torch.isnan(model.training_conditions()[-1]).all()
    assert not torch.isnan(model.training_conditions()[:-1]).any()
    assert np.array_equal(model.field_of_view, np.multiply((6, 20, 18), volumes.cases.spacing))
    again = ConditionModel.from_record(json.loads(json.dumps(model.as_record())))
    assert np.array_equal(again.table, model.table, equal_nan=True)
    model.check(None)
    with pytest.raises(InputError, match="none with foreground"):
        ConditionModel.fit(dataclasses.replace(volumes, training=data.training[-1:]))


def test_slices_have_no_conditions(volumes, tmp_path):
    slices = load_training_set(open_cases(tmp_path / "Dataset901_Toy", configuration="2d"), (20, 18))
    with pytest.raises(InputError, match="volumes"):
        ConditionModel.fit(slices)
