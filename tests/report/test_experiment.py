"""The report of an experiment: numbers that follow from the cells' results, by formulas written again here."""

import csv
import json
import re

import numpy as np
import pytest
from scipy import stats

from scripts.metrics.comparison import bootstrap_interval, holm
from scripts.report.experiment import answer_words, write_experiment_report
from scripts.report.experiment_results import Row, arm_summary, baseline_comparisons, comparisons, read_results
from scripts.report.experiment_worth import arms_worth
from scripts.runtime.errors import InputError

from ..experiment.fake import PATIENTS, PROTOCOL, dice, finish, start


@pytest.fixture
def run(tmp_path):
    run = start(tmp_path)
    finish(run)
    return run


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def truth(run, row: Row) -> np.ndarray:
    """Mean of each patient over seeds, from the cells' settings alone."""
    found: dict[tuple, list[float]] = {}
    for cell in run.cells.values():
        s = cell.settings
        if cell.kind == "evaluate" and (s["segmenter"], s["arm"], s["num_synthetic"]) == (
            row.segmenter, row.arm, row.num_synthetic
        ):  # fmt: skip
            for patient in range(PATIENTS):
                found.setdefault((s["fold"], patient), []).append(dice(s, patient))
    return np.array([np.mean(found[key]) for key in sorted(found)])


def test_holm_is_the_step_down_procedure():
    """Reject the smallest p below level / m, the next below level / (m - 1), ... until the first that is not."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.12, 7)
        for level in (0.01, 0.05, 0.1):
            rejected = np.zeros(7, bool)
            for step, index in enumerate(np.argsort(p)):
                if p[index] >= level / (7 - step):
                    break
                rejected[index] = True
            assert (np.array(holm(p)) < level).tolist() == rejected.tolist()
    assert holm([0.04]) == [0.04] and holm([]) == []
    assert max(holm([0.9, 0.8])) == 1


def test_comparisons_are_those_of_the_patients(run):
    results = read_results(run.path)
    found = comparisons(results, "validation")
    assert {row.words for row in found} == {"x5", "pasted, 20", "model, 10", "model, 20"}
    assert len(found) == 6  # four of the U-Net, two of UNETR, each against its own real only
    p_values = {}
    for row, c in found.items():
        reference = Row("validation", row.segmenter, "all", "real only", 0)
        differences = truth(run, row) - truth(run, reference)
        assert c["n"] == 2 * PATIENTS and c["difference"] == pytest.approx(differences.mean())
        p_values[row] = stats.wilcoxon(differences).pvalue
        assert c["p"] == pytest.approx(p_values[row])
        draws = np.random.default_rng(0).integers(len(differences), size=(10_000, len(differences)))
        expected = np.percentile([differences[d].mean() for d in draws], [2.5, 97.5])
        assert c["interval"] == pytest.approx(expected.tolist())
        by_seed = c["difference_by_seed"]
        assert np.mean(list(by_seed.values())) == pytest.approx(differences.mean()) and set(by_seed) == {0, 1}
    ordered = sorted(p_values, key=p_values.get)
    adjusted = np.maximum.accumulate([p_values[row] * (6 - i) for i, row in enumerate(ordered)]).clip(max=1)
    assert [found[row]["p_holm"] for row in ordered] == pytest.approx(adjusted.tolist())
    said = {(row.segmenter, row.words): c["conclusion"] for row, c in found.items()}
    assert said["U-Net", "model, 20"] == said["UNETR", "model, 20"] == "higher"
    assert said["U-Net", "pasted, 20"] == "lower" and said["U-Net", "x5"] == "undecided"


def test_generators_are_held_against_what_needs_none(run):
    results = read_results(run.path)
    found = baseline_comparisons(results, "validation")
    assert {(row.segmenter, row.words, other.words) for row, other in found} == {
        ("U-Net", "model, 20", "x5"), ("U-Net", "model, 20", "pasted, 20")
    }  # fmt: skip
    for (row, other), c in found.items():
        differences = truth(run, row) - truth(run, other)
        assert c["difference"] == pytest.approx(differences.mean()) and c["family"] == 2
        assert c["p"] <= c["p_holm"] <= 2 * c["p"]


def test_an_interval_beside_zero_is_no_claim_when_the_adjusted_test_does_not_agree(run, monkeypatch):
    results = read_results(run.path)
    monkeypatch.setattr("scripts.report.experiment_results.holm", lambda p: [1.0] * len(p))
    found = comparisons(results, "validation")
    assert {c["conclusion"] for c in found.values()} == {"undecided"}
    assert "the adjusted test does not agree" in " ".join(answer_words(results, found))


def test_spread_over_seeds_is_of_means_over_all_folds(run):
    results = read_results(run.path)
    row = Row("validation", "U-Net", "all", "model", 20)
    one = arm_summary(results, row, results.patients("dice", "validation")[row])
    values = truth(run, row)
    assert one["mean"] == pytest.approx(values.mean()) and one["sd"] == pytest.approx(values.std(ddof=1))
    assert one["interval"] == pytest.approx(bootstrap_interval(values))
    means = [
        np.mean([
            dice(cell.settings, patient) for cell in run.cells.values() for patient in range(PATIENTS)
            if cell.kind == "evaluate" and cell.settings["seed"] == seed and cell.settings["arm"] == "model"
            and cell.settings["num_synthetic"] == 20 and cell.settings["segmenter"] == "U-Net"
        ])
        for seed in (0, 1)
    ]  # fmt: skip
    assert list(one["seed_means"].values()) == pytest.approx(means)
    assert one["sd_over_seeds"] == pytest.approx(np.std(means, ddof=1))


@pytest.mark.slow
def test_page_holds_every_number_with_its_n_and_figures_lie_beside_it(run):
    page = write_experiment_report(run.path)
    text, folder = page.read_text(), page.parent
    assert "Unfinished" not in text and not re.findall(r'(?:src|href)="(?!data:)', text)  # nothing is loaded
    for name in ("dsc_by_synthetic_validation.png", "differences_validation.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for row in table(folder / "comparisons.csv"):
        assert f"{float(row['difference']):+.3f}".replace("-", "−") in text and row["n"] == "16"
        assert bool(row["low"]) and float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    assert "<td>interval contains 0</td>" in text and "n = 16 patients" in text
    assert "U-Net: 600 training steps in every arm" in text
    # What is in the table of patients is what the evaluations found.
    rows = table(folder / "patients.csv")
    for cell in run.cells.values():
        if cell.kind == "evaluate":
            s = cell.settings
            found = {
                row["patient"]: float(row["dice"]) for row in rows
                if all(row[key] == str(s[key]) for key in ("segmenter", "arm", "num_synthetic", "fold", "seed"))
            }  # fmt: skip
            cases = json.loads((run.folder(cell.id) / "result.json").read_text())["values"]["cases"]
            assert found == {case: labels["tumour"]["dice"] for case, labels in cases.items()}
    assert "3.5 ± 0.71 (2 folds)" in text  # the pools of the two folds
    assert "20 of 25 samples are kept" in text


@pytest.mark.slow
def test_an_unfinished_experiment_says_what_is_missing(tmp_path):
    run = start(tmp_path)
    page = write_experiment_report(run.path).read_text()
    assert f"Unfinished: {len(run.cells)} of {len(run.cells)} cells are missing" in page
    assert "not finished" in page
    finish(run, without=("U-Net_model_n20_real-all_fold1_seed1", "UNETR"))
    failed = run.folder("train/UNETR_model_n10_real-all_fold0_seed0")
    failed.mkdir(parents=True)
    (failed / "failure.json").write_text(json.dumps({"error": "out of memory <here>", "finished": "today"}))
    page = write_experiment_report(run.path)
    text = page.read_text()
    assert "out of memory &lt;here&gt;" in text and "DIFFERING" not in text
    results = read_results(run.path)
    row = Row("validation", "U-Net", "all", "model", 20)
    c = comparisons(results, "validation")[row]
    assert c["runs"] == [(0, 0), (0, 1), (1, 0)] and c["n"] == 16  # over the runs that both have
    states = {cell["state"] for cell in table(page.parent / "cells.csv")}
    assert states == {"finished", "failed", "missing"}


@pytest.mark.slow
def test_arms_of_unequal_length_are_shouted_about(run):
    path = run.folder("train/U-Net_x5_n0_real-all_fold0_seed0") / "result.json"
    path.write_text(path.read_text().replace('"steps": 600', '"steps": 900'))
    assert "U-Net: 600, 900 training steps DIFFERING between arms" in write_experiment_report(run.path).read_text()


@pytest.mark.slow
def test_numbers_of_real_patients_are_drawn_as_lines(tmp_path):
    text = PROTOCOL.replace("real: [all]", "real: [5, 9]")
    run = start(tmp_path, text)
    finish(run)
    page = write_experiment_report(run.path)
    assert (page.parent / "dsc_by_real_validation.png").is_file()
    results = read_results(run.path)
    for row in comparisons(results, "validation"):  # never across numbers of real patients
        assert results.reference(row).real == row.real


@pytest.mark.slow
def test_arms_are_worth_real_patients(tmp_path):
    """With 9 patients an arm that gains reads off the curve; without two numbers there is no curve."""
    run = start(tmp_path, PROTOCOL.replace("real: [all]", "real: [5, 9]"))

    def of(s, patient):
        return dice({**s, "arm": "real only", "num_synthetic": 0}, patient) + 0.05 * (s["real"] == 9) + (
            0.02 * (s["arm"] == "model")
        )  # fmt: skip

    finish(run, of=of)
    found = arms_worth(read_results(run.path), "validation")
    few = found[Row("validation", "U-Net", 5, "model", 20)]
    assert few["worth"] == pytest.approx(5 * (9 / 5) ** 0.4) and (few["had"], few["runs"], few["n"]) == (5, 4, 16)
    assert found[Row("validation", "U-Net", 9, "model", 20)]["worth"] == np.inf
    assert found[Row("validation", "U-Net", 9, "x5", 0)]["worth"] == pytest.approx(9)
    page = write_experiment_report(run.path).read_text()
    assert "worth in real patients" in page and "more than 9" in page


def test_pools_alone_make_a_report(tmp_path):
    text = re.sub(r"arms:.*?pool_metrics", "pool_metrics", PROTOCOL, flags=re.DOTALL)
    run = start(tmp_path, text)
    finish(run)
    page = write_experiment_report(run.path).read_text()
    assert "Segmentation of" not in page and "fid[own,unpaired]" in page


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="run.json"):
        write_experiment_report(tmp_path)
