"""The page of a run: one file, everything escaped, no claim without n and interval, careful words."""

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scripts.experiment.run_folder import RunFolder
from scripts.report.experiment import answer_words, write_experiment_report
from scripts.report.experiment_results import comparisons, read_results
from scripts.report.sheets import sample_sheet
from scripts.runtime.errors import InputError

from ..experiment.fake import finish, settings, write_result

VOID = {"meta", "img", "br", "hr", "link", "input"}
RUN = """
title: A run <b>of</b> ours
question: Does it help?
folds: [0]
seeds: [0]
evaluate: [test]
num_synthetic: [20]
audit: {}
pool_metrics: {}
generators:
  model: {bundle: hvae}
arms:
  real only: {}
  real + synthetic: {pool: model}
segmenters:
  U-Net: {}
"""


class Page(HTMLParser):
    """Collects text and attributes, and checks that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def values(shift, undefined=()):
    """Dice of (settings, patient): patients differ, the mixed arm is higher by `shift`, seeds by chance."""

    def of(s, patient):
        if patient in undefined:
            return None
        base = np.random.default_rng(patient).uniform(0.3, 0.8)
        mixed = s["arm"] != "real only"
        noise = np.random.default_rng([patient, s["seed"], mixed]).normal(0, 0.01)
        return float(base + shift * mixed + noise)

    return of


def run_of(folder, shift=0.0, patients=8, text=RUN, undefined=(), **finishing):
    run = RunFolder.start(
        folder / "run", settings(folder, text), {"command": "synthaug run '<done>'", "started": "now"}
    )
    names = [f"case<{i}>&" for i in range(patients)]
    finish(run, of=values(shift, undefined), names=names, **finishing)
    return run


def answer(run):
    results = read_results(run.path)
    return "\n".join(answer_words(results, comparisons(results, "test"), "test"))


def page_of(run):
    return write_experiment_report(run.path).read_text(encoding="utf-8")


@pytest.fixture
def full(tmp_path):
    run = run_of(tmp_path, text=RUN.replace("seeds: [0]", "seeds: [0, 1]"))
    rows = [("real", np.random.default_rng(0).uniform(size=(2, 1, 16, 16)), np.zeros((2, 16, 16), dtype=int))]
    pool = run.folder("pool/model_real-all_fold0") / "pool"
    pool.mkdir()
    sample_sheet(rows, pool / "samples.png", labels={"tumour": 1})
    models = run.folder("generator/model_real-all_fold0") / "models"
    models.mkdir()
    (models / "losses.csv").write_text("iteration,elbo\n0,3\n1,2\n")
    return run


@pytest.mark.slow
def test_page_needs_nothing_but_itself(full):
    html = page_of(full)
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert len(sources) == 4  # samples, differences, dots, losses
    assert all(source.startswith("data:image/png;base64,iVBORw0KGgo") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))


def test_names_are_escaped(tmp_path):
    html = page_of(run_of(tmp_path))
    assert "case&lt;3&gt;&amp;" in html and "case<3>" not in html
    assert "A run &lt;b&gt;of&lt;/b&gt; ours" in html and "<b>" not in html
    assert "&lt;done&gt;" in html
    Page(html)


@pytest.mark.slow
def test_same_results_give_the_same_files(full):
    def files():
        write_experiment_report(full.path)
        return {path.name: path.read_bytes() for path in (full.path / "report").iterdir()}

    first = files()
    assert len(first) > 8 and files() == first


@pytest.mark.slow
def test_a_patient_without_a_defined_value_is_left_out_of_both_arms(tmp_path):
    run = run_of(tmp_path, undefined=(0,))
    c = next(iter(comparisons(read_results(run.path), "test").values()))
    assert (c["n"], c["excluded"]) == (7, ["case<0>&"])
    assert "1 left out as not defined" in answer(run)
    write_experiment_report(run.path)
    with open(run.path / "report/comparisons.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["difference"]) == c["difference"] and row["n"] == "7"


@pytest.mark.slow
def test_figures_and_answer_carry_n_interval_and_seeds(full):
    html = page_of(full)
    interval = r"95 % interval [+−]0\.\d{3} to [+−]0\.\d{3}"
    answered = re.search(r'<div class="answer">(.*?)</div>', html, re.S).group(1)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.S)
    paired = [caption for caption in captions if "Difference " in caption]
    assert paired
    for claim in [answered, *paired]:
        assert re.search(interval, claim) and "n = 8 patients" in claim and "seeds 0, 1" in claim
    for caption in captions:
        assert "seed" in caption and re.search(r"\bn\b", caption)
    assert "a phantom" in html and "shorter than they say" in html


@pytest.mark.slow
def test_the_verdict_says_how_many_trainings_stand_behind_it(full):
    answered = re.search(r'<div class="answer">(.*?)</div>', page_of(full), re.S).group(1)
    assert "Behind this stand 4 trainings of segmenters, 2 of each of the 2 arms (fold 0, seeds 0, 1)" in answered
    assert "one training of a generator, with one pool" in answered


def test_no_difference_is_not_called_one(tmp_path):
    words = answer(run_of(tmp_path))
    assert "No difference can be told from n = 8 patients: the interval holds 0." in words
    assert "600 training steps in every arm" in words
    assert not re.search(r"higher|lower|better|improve", words)


@pytest.mark.parametrize("shift, word", [(0.05, "higher"), (-0.05, "lower")])
def test_one_training_never_credits_the_synthetic_samples(tmp_path, shift, word):
    words = answer(run_of(tmp_path, shift))
    assert f"On n = 8 patients Dice was {word} with “real + synthetic, 20”" in words
    assert "does not tell whether the synthetic samples or the chance of training" in words


def test_several_trainings_are_listed_apart_from_the_interval(tmp_path):
    words = answer(run_of(tmp_path, 0.05, text=RUN.replace("seeds: [0]", "seeds: [0, 1]")))
    assert re.search(
        r"not of training seeds; the difference by seed was \+0\.0\d\d \(seed 0\), \+0\.0\d\d \(seed 1\)\.", words
    )
    (tmp_path / "folds").mkdir()
    words = answer(run_of(tmp_path / "folds", 0.05, text=RUN.replace("folds: [0]", "folds: [0, 1]")))
    assert re.search(r"the difference by fold was \+0\.0\d\d \(fold 0\), \+0\.0\d\d \(fold 1\)\.", words)


def test_interval_without_the_rank_test_is_not_enough(tmp_path):
    words = answer(run_of(tmp_path, 0.05, patients=5))
    assert "leaves out 0, but the rank test (p = 0.062) does not agree" in words
    assert "higher" not in words


def test_too_few_patients(tmp_path):
    assert "too few for an interval" in answer(run_of(tmp_path, 0.05, patients=3))


@pytest.mark.slow
def test_few_patients_are_counted_over_all_folds(tmp_path):
    run = run_of(tmp_path, text=RUN.replace("folds: [0]", "folds: [0, 1]"))
    for cell in run.cells.values():
        if cell.kind == "evaluate" and cell.settings["fold"] == 1:
            found = run.result(cell.id)["values"]
            others = {f"another {case}": measured for case, measured in found["cases"].items()}
            write_result(run, cell.id, {**found, "cases": others})
    assert "n = 16 patients: with so few" in page_of(run)


def test_unequal_steps_are_said(tmp_path):
    run = run_of(tmp_path)
    cell = next(cell for cell in run.cells.values() if cell.kind == "train" and cell.settings["arm"] == "real only")
    write_result(run, cell.id, {"steps": 250, "num_synthetic": 0})
    assert "250, 600 training steps DIFFERING between arms" in answer(run)


def test_another_budget_is_named_and_not_shouted_about(tmp_path):
    run = run_of(tmp_path, text=RUN + "budget: real_exposures\n")
    cell = next(cell for cell in run.cells.values() if cell.kind == "train" and cell.settings["arm"] == "real only")
    write_result(run, cell.id, {"steps": 300, "num_synthetic": 0})
    words = answer(run)
    assert "300, 600 training steps by arm, so that each sees a real item as often" in words and "DIFF" not in words


@pytest.mark.slow
def test_several_labels_and_arms(tmp_path):
    text = RUN.replace(
        "  real + synthetic: {pool: model}", "  a half: {pool: model}\n  a quarter: {pool: model, share: 0.25}"
    )
    run = run_of(tmp_path, 0.05, text=text, labels=("core", "whole"))
    words = answer(run)
    assert "mean over labels" in words and words.count("by Holm p = ") == 2
    page = Page(page_of(run))
    assert "not adjusted for their number" in page.text and "Dice of each label" in page.text


def test_real_only_compares_nothing(tmp_path):
    run = run_of(tmp_path, text=RUN.replace("  real + synthetic: {pool: model}\n", ""))
    assert "nothing is compared" in answer(run)
    Page(page_of(run))


@pytest.mark.slow
def test_a_bad_pool_is_named_loudly(tmp_path):
    run = run_of(tmp_path)
    assert 'class="loud"' not in page_of(run)

    def figure(metric, comparison, value):
        n = {"n": [9, 9], "groups": [9, 9], "name": f"{metric}[own,n=9/9]", "of": "own", "unit": ""}
        return {**n, "metric": metric, "comparison": comparison, "value": value, "interval": None,
                "better": "higher", "pairing": "unpaired"}  # fmt: skip

    place = "model_real-all_fold0"
    both = ("synthetic vs training", "held-out vs training")
    shown = {"precision": (0.1, 0.8), "recall": (0.7, 0.8)}
    measured = [figure(name, *pair) for name, found in shown.items() for pair in zip(both, found, strict=True)]
    meanings = [{"key": key, "meaning": "these against those"} for key in both]
    metrics = run.result(f"metrics/{place}")["values"]
    write_result(run, f"metrics/{place}", {**metrics, "figures": measured, "comparisons": meanings})
    useful = {"useful": False, "ratio": 0.5, "interval": None, "threshold": 0.85, "words": "Usefulness 0.50"}
    audit = {"words": [], "kept": 9, "dropped": 0.64, "real_dropped": 0.1, "usefulness": useful}
    write_result(run, f"audit/{place}", audit)
    pool = {"samples": 25, "candidates": 30, "seconds_per_sample": 1.0, "sharpness": 0.5}
    write_result(run, f"pool/{place}", pool)
    (loud,) = re.findall(r'<p class="loud">(.*?)</p>', page_of(run))
    assert "precision 0.10, where unseen real cases have 0.80" in loud and "recall" not in loud
    assert "reaches 0.50 of the Dice" in loud and "unlikely to help" in loud
    assert "drops 64 %" in loud and "9 samples are left of 20" in loud and "0.50 of the fine detail" in loud


def test_arms_over_different_patients_are_refused(tmp_path):
    run = run_of(tmp_path)
    cell = next(cell for cell in run.cells.values() if cell.kind == "evaluate" and cell.settings["arm"] == "real only")
    found = run.result(cell.id)["values"]
    del found["cases"]["case<2>&"]
    write_result(run, cell.id, found)
    with pytest.raises(InputError, match="case<2>&"):
        write_experiment_report(run.path)
    assert not (run.path / "report/report.html").exists()
