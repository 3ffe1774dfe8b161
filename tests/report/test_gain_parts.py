"""A gain taken apart: the parts add up, each is a paired comparison, and there are none without the controls."""

import numpy as np
import pytest

from scripts.experiment.run_folder import RunFolder
from scripts.report.experiment import answer_words, write_experiment_report
from scripts.report.experiment_results import comparisons, read_results
from scripts.report.experiment_split import PARTS, gain_parts

from ..experiment.fake import finish, settings, write_result

TEXT = """
title: Parts
question: Of what?
folds: [0, 1]
seeds: [0, 1]
num_synthetic: [20]
reference: real only
generators:
  model: {bundle: hvae}
  again: {bundle: duplicates}
  turned: {bundle: classical}
arms:
  real only: {}
  half: {epochs_factor: 0.5}
  again: {pool: again, share: added}
  turned: {pool: turned, share: added}
  model: {pool: model, share: added}
segmenters:
  equal epochs: {budget: epochs}
  equal steps: {}
"""
GAINS = {"real only": 0.0, "half": -0.05, "again": 0.1, "turned": 0.13, "model": 0.12}


def dice(s, patient):
    rng = np.random.default_rng([s["fold"], patient])
    noise = np.random.default_rng([s["fold"], patient, s["seed"], len(s["arm"])]).normal(0, 0.002)
    return float(rng.uniform(0.4, 0.6) + GAINS[s["arm"]] * (s["segmenter"] == "equal epochs") + noise)


@pytest.fixture
def run(tmp_path):
    run = RunFolder.start(tmp_path / "run", settings(tmp_path, TEXT), {"command": "c", "started": "now"})
    finish(run, of=dice)
    return run


@pytest.mark.slow
def test_the_parts_add_up_to_the_gain(run):
    found = gain_parts(read_results(run.path), "validation")
    assert [(row.segmenter, row.arm) for row in found] == [("equal epochs", "model"), ("equal steps", "model")]
    for parts in found.values():
        assert tuple(parts) == PARTS
        gains = [parts[name]["difference"] for name in PARTS]
        assert sum(gains[:3]) == pytest.approx(gains[3]) and {c["n"] for c in parts.values()} == {16}
        assert {c["family"] for c in parts.values()} == {8}
    parts = next(iter(found.values()))
    for name, gain, told in (
        ("updates", 0.1, "higher"),
        ("augmentation", 0.03, "higher"),
        ("synthesis", -0.01, "lower"),
    ):
        assert parts[name]["difference"] == pytest.approx(gain, abs=0.003) and parts[name]["conclusion"] == told
    page = write_experiment_report(run.path)
    assert (
        page.parent / "gain_parts_validation.png"
    ).is_file() and "Updates, augmentation, synthesis" in page.read_text()


def test_without_the_controls_there_are_none(tmp_path):
    text = TEXT.replace("  turned: {pool: turned, share: added}\n", "")
    run = RunFolder.start(tmp_path / "run", settings(tmp_path, text), {"command": "c", "started": "now"})
    finish(run, of=dice)
    assert not gain_parts(read_results(run.path), "validation")
    assert "Updates, augmentation" not in write_experiment_report(run.path).read_text()


def test_an_arm_of_half_the_epochs_is_named_and_not_shouted_about(run):
    for cell in run.cells.values():
        if cell.kind == "train" and cell.settings["arm"] == "half":
            write_result(run, cell.id, {"steps": 300, "num_synthetic": 0})
            assert cell.settings["epochs_factor"] == 0.5
    results = read_results(run.path)
    words = "\n".join(answer_words(results, comparisons(results, "validation"), "validation"))
    assert "DIFFERING" not in words and "“half” 300 (0.5 of the epochs)" in words
