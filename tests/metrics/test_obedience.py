"""Obedience: known numbers, nothing left out, no verdict on chance alone."""

import copy
import json

import numpy as np
import pytest

from scripts.data.conditions import to_features, to_vector
from scripts.metrics.obedience import compare_features, summarise_obedience
from scripts.runtime.errors import InputError

from ..pool.volume_pool import toy_model

FEW = {"resamples": 200, "shuffles": 200}


def pool(asked, measured, candidates=None, groups=None):
    """The record of a pool with the given features, all `(samples, 9)`."""
    samples = [
        {"id": f"syn_{i:06d}", "seed": i, "condition": to_features(a), "features": to_features(m)}
        for i, (a, m) in enumerate(zip(asked, measured, strict=True))
    ]
    for sample, group in zip(samples, [] if groups is None else groups, strict=groups is not None):
        sample["condition"]["sweep"] = {"feature": "volume", "step": 0, "group": int(group)}
    sampling = {"candidates": candidates or len(samples), "min_foreground": 8}
    return {"dimension": 3, "samples": samples, "sampling": sampling}


def requests(n, seed=0):
    model, rng = toy_model(), np.random.default_rng(seed)
    return np.array([to_vector(model.draw(rng)) for _ in range(n)])


def test_known_numbers():
    asked = np.array([[1000, 600, 0.8, 50, 40, 30, 10, 20, 30]] * 4, float)
    measured = asked.copy()
    measured[1, 0] = 500
    measured[2, 0], measured[2, 3] = 2000, 55  # half an extent away: the boxes share a third
    measured[3] = 0
    values = compare_features(asked, measured)
    assert values["volume_ratio"].tolist() == pytest.approx([1, 0.5, 2, 0])
    assert values["volume_factor"].tolist() == pytest.approx([1, 2, 2, np.inf])
    assert values["centre_distance"].tolist() == pytest.approx([0, 0, 5, np.inf])
    assert values["box_iou"].tolist() == pytest.approx([1, 1, 1 / 3, 0])


def test_perfect_generator():
    asked = requests(20)
    summary = summarise_obedience(pool(asked, asked), **FEW)
    measures = summary["measures"]
    assert [measures[name]["median"] for name in measures] == pytest.approx([1, 1, 0, 1])
    assert [measures[name]["verdict"] for name in measures] == [None, "closer", "closer", "closer"]
    assert measures["centre_distance"]["shuffled"]["median"] > 10 > measures["centre_distance"]["interval"][1]
    assert summary["n"] == summary["groups"] == 20 and summary["rejected"] == summary["empty"] == 0
    json.dumps(summary, allow_nan=False)


def test_generator_that_does_the_opposite():
    asked = requests(40)
    order = np.argsort(asked[:, 0])
    measured = asked.copy()
    measured[order] = asked[order[::-1]]  # the smallest where the largest was asked for
    asked[:, 3:6] = measured[:, 3:6] = 40
    measures = summarise_obedience(pool(asked, measured), **FEW)["measures"]
    assert measures["volume_factor"]["verdict"] == "farther"
    assert measures["centre_distance"]["verdict"] == "undecided"  # the same was asked of all


@pytest.mark.slow
def test_deaf_generator_is_rarely_told_apart_from_shuffles():
    wrong = 0
    for seed in range(40):
        measures = summarise_obedience(pool(requests(12, seed), requests(12, seed + 1000)), **FEW)["measures"]
        wrong += sum(measure["verdict"] in ("closer", "farther") for measure in measures.values())
    assert wrong <= 6  # of 120


def test_empty_masks_count_as_worst():
    asked = requests(20)
    measured = asked.copy()
    measured[:4] = 0
    summary = summarise_obedience(pool(asked, measured), **FEW)
    assert summary["empty"] == 4 and summary["n"] == 20
    assert summary["samples"][0] == {
        "id": "syn_000000", "volume_ratio": 0.0, "volume_factor": None, "centre_distance": None, "box_iou": 0.0,
    }  # fmt: skip
    assert summary["measures"]["volume_ratio"]["quartiles"][0] == pytest.approx(1)
    measured[:12] = 0
    measures = summarise_obedience(pool(asked, measured), **FEW)["measures"]
    assert measures["centre_distance"]["median"] is None and measures["box_iou"]["median"] == 0
    assert measures["volume_factor"]["verdict"] != "closer"


def test_rejected_candidates_are_stated_and_bounded():
    asked = requests(20)
    summary = summarise_obedience(pool(asked, asked, candidates=50), **FEW)
    assert summary["rejected"] == 30 and summary["candidates"] == 50
    overlap = summary["measures"]["box_iou"]
    assert overlap["median"] == pytest.approx(1) and overlap["median_with_rejected"] == 0
    assert summary["measures"]["centre_distance"]["median_with_rejected"] is None


def test_groups_of_a_sweep_are_resampled_whole():
    rng = np.random.default_rng(0)
    asked = np.repeat(requests(8), 10, axis=0)
    measured = asked.copy()
    measured[:, 3] += np.repeat(rng.uniform(0, 9, 8), 10)  # all steps of a group miss by the same
    groups = np.arange(80) // 10
    width = {}
    for name, group in {"samples": None, "groups": groups}.items():
        summary = summarise_obedience(pool(asked, measured, groups=group), **FEW)
        width[name] = np.ptp(summary["measures"]["centre_distance"]["interval"])
    assert summary["groups"] == 8 and summary["sweep"] == "volume"
    assert width["groups"] > 1.5 * width["samples"]
    few = summarise_obedience(pool(asked[:40], measured[:40], groups=groups[:40]), **FEW)["measures"]["box_iou"]
    assert few["interval"] is None and few["verdict"] == "too few"


def test_same_seed_same_numbers():
    record = pool(requests(10), requests(10, 1))
    assert summarise_obedience(record, **FEW) == summarise_obedience(copy.deepcopy(record), **FEW)
    assert summarise_obedience(record, **FEW, seed=1) != summarise_obedience(record, **FEW)


def test_pools_that_nothing_was_asked_of():
    record = pool(requests(3), requests(3))
    record["samples"][1]["condition"] = None
    with pytest.raises(InputError, match="volumes drawn without conditions"):
        summarise_obedience(record)
    with pytest.raises(InputError, match="slices"):
        summarise_obedience({**pool(requests(2), requests(2)), "dimension": 2})
