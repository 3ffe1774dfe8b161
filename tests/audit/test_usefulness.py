"""A pool of real slices teaches what they do, one with wrong masks does not; where nobody can tell, nobody says."""

import json

import numpy as np
import pytest
import torch

from scripts.audit.agreement import SegmenterSettings
from scripts.audit.audit import audit_words, run_audit
from scripts.audit.items import Items
from scripts.audit.usefulness import (
    UsefulnessSettings,
    _ratio_interval,
    find_usefulness,
    patient_dice,
    usefulness_settings,
    usefulness_words,
)
from scripts.runtime.errors import InputError

from .planted import load, write_heads, write_planted

CPU = torch.device("cpu")
QUICK = {"segmenter": SegmenterSettings(folds=2, steps=2), "extractor_steps": 2, "progress": False}


def all_of(items, title):
    return items


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """What the audit of a pool found, the training slices of the data set and the same with the masks of others."""
    folder = tmp_path_factory.mktemp("useful")
    data_set = write_heads(folder / "Dataset901_Heads", cases=20, new=0)
    data = load(data_set, 0, (32, 32))
    items = [item["image"] for item in data.training if item["image"][1:].any()]
    wrong = [torch.cat([x[:1], x[1:].roll((16, 16), (1, 2))]) for x in items]
    pool = write_planted(folder / "pool", data, [*items, *wrong])
    return run_audit(pool, data_set, **QUICK, usefulness=UsefulnessSettings(steps=1)), len(items)


@pytest.mark.slow
def test_what_is_as_good_as_real_reaches_the_threshold_and_wrong_masks_do_not(audited):
    audit, count = audited[0].audit, audited[1]
    good = np.arange(len(audit.samples)) < count
    settings = UsefulnessSettings(steps=60)
    right, wrong = (find_usefulness(audit, chosen, settings, 0, CPU, all_of) for chosen in (good, ~good))
    assert right["useful"] and right["ratio"] > 0.85 and 0.9 * count < right["samples"] <= count
    assert wrong["useful"] is False and wrong["ratio"] < 0.5
    assert right["real_dice"] == wrong["real_dice"]  # one seed gives one network
    assert "UNLIKELY TO HELP" in usefulness_words(wrong) and "UNLIKELY" not in usefulness_words(right)
    json.dumps([right, wrong], allow_nan=False)


@pytest.mark.slow
def test_it_stands_in_the_record_and_the_words(audited):
    result, _ = audited
    record = result.as_record()["usefulness"]
    assert record["patients"] == 4 and record["samples"] <= result.kept.sum()
    assert usefulness_words(record) in audit_words(result)


@pytest.mark.slow
def test_where_it_cannot_be_told(audited):
    audit = audited[0].audit
    settings = UsefulnessSettings(steps=1)
    none = find_usefulness(audit, np.zeros(len(audit.samples), bool), settings, 0, CPU, all_of)
    assert none["useful"] is None and "no sample is kept" in usefulness_words(none)
    everyone = type(audit)(**{**vars(audit), "held_out": np.zeros(len(audit.real), bool)})
    unknown = find_usefulness(everyone, np.ones(len(audit.samples), bool), settings, 0, CPU, all_of)
    assert unknown["ratio"] is None and "fold all" in usefulness_words(unknown)


def test_below_the_threshold_is_said_where_the_whole_interval_is():
    record = {"ratio": 0.84, "interval": [0.66, 1.02], "useful": None, "threshold": 0.85, "pool_dice": 0.42,
              "real_dice": 0.5, "patients": 6, "steps": 9}  # fmt: skip
    assert "cannot be told" in usefulness_words(record) and "UNLIKELY" not in usefulness_words(record)
    assert "UNLIKELY" in usefulness_words({**record, "interval": [0.66, 0.84], "useful": False})
    unbound = usefulness_words({**record, "interval": None})
    assert "without an interval" in unbound and "cannot be told" in unbound and "UNLIKELY" not in unbound


def test_a_ratio_to_next_to_nothing_has_no_interval():
    """Of five patients all five may be drawn as the four that the real cases do not teach."""
    assert _ratio_interval(np.full(5, 0.5), np.array([0, 0, 0, 0, 0.9]), 0) is None
    low, high = _ratio_interval(np.full(5, 0.4), np.full(5, 0.5), 0)
    assert low == pytest.approx(0.8) == high
    assert _ratio_interval(np.full(4, 0.4), np.full(4, 0.5), 0) is None


def test_dice_is_that_of_a_whole_patient():
    masks = torch.zeros(3, 2, 8, 8, dtype=torch.bool)
    masks[0, 0, :4], masks[1, 0, :2], masks[2, 0, :4] = True, True, True
    images = torch.zeros(3, 1, 8, 8)
    images[0, 0, :2], images[1, 0, :2], images[2, 0, 4:] = 1, 1, 1

    def network(x):  # finds what is bright, and never the second label
        return torch.cat([x - 0.5, torch.full_like(x, -1)], 1)

    found = patient_dice(network, Items(images.half(), masks, np.array(["b", "b", "a"]), ["0", "1", "2"]), 2, CPU)
    assert found.tolist() == pytest.approx([0.0, 2 * 32 / (32 + 48)])


@pytest.mark.parametrize("steps, threshold", [(-1, 0.8), (1.5, 0.8), (True, 0.8), (10, -0.1), (10, "much")])
def test_settings_are_refused(steps, threshold):
    with pytest.raises(InputError, match="usefulness"):
        usefulness_settings(steps, threshold)
    assert usefulness_settings(0) is None
