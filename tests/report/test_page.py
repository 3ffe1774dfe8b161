"""The report: one file, everything escaped, no claim without n and interval, careful words."""

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scripts.report.answer import answer, compare_arms
from scripts.report.page import write_report
from scripts.report.sheets import sample_sheet
from scripts.runtime.errors import InputError

VOID = {"meta", "img", "br", "hr", "link", "input"}


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


def arm(share, shift, patients=8, seeds=(0,), labels=("tumour",), steps=500):
    rng = np.random.default_rng(0)
    dice = {f"case<{i}>&": {label: rng.uniform(0.3, 0.8) for label in labels} for i in range(patients)}
    noise = np.random.default_rng(round(1000 * share))
    runs = [
        {
            "seed": seed,
            "dice": {
                case: {label: value + shift + noise.normal(0, 0.01) for label, value in values.items()}
                for case, values in dice.items()
            },
        }
        for seed in seeds
    ]
    return {"share": share, "steps": steps, "runs": runs}


def make_record(shift=0.0, **settings):
    arms = {"real only": arm(0.0, 0.0, **settings), "real + synthetic (50 %)": arm(0.5, shift, **settings)}
    return {
        "title": "A run <b>of</b> ours",
        "command": "synthaug demo --seed 0 && echo '<done>'",
        "started": "2025-01-31 14:05",
        "seconds": {"train": 61.0, "predict": 2.5},
        "device": "CPU",
        "limits": ["Phantom data."],
        "versions": {"torch": "2.8"},
        "dataset": {"name": "Dataset001_Phantom", "fold": 0, "training_cases": 16, "labels": {"tumour": 1}},
        "generator": {"bundle": "dhvae", "settings": {"seed": 0, "channels": [8, 16]}},
        "pool": {"samples": 20, "kept": 18, "dropped": 2, "seed": 0},
        "segmentation": {"settings": {"configuration": "2d"}, "arms": arms},
    }


@pytest.fixture
def full(tmp_path):
    record = make_record(seeds=(0, 1))
    rows = [("real", np.random.default_rng(0).uniform(size=(2, 1, 16, 16)), np.zeros((2, 16, 16), dtype=int))]
    sample_sheet(rows, tmp_path / "samples.png", labels={"tumour": 1})
    (tmp_path / "losses.csv").write_text("iteration,elbo\n0,3\n1,2\n")
    (tmp_path / "share.jsonl").write_text('{"epoch": 0, "realised": 0.5, "planned": 0.5}\n')
    record["pictures"] = {"samples": tmp_path / "samples.png"}
    record["generator"]["losses_file"] = "losses.csv"
    record["segmentation"]["arms"]["real + synthetic (50 %)"]["runs"][0]["shares_file"] = "share.jsonl"
    return record


def test_page_needs_nothing_but_itself(full, tmp_path):
    html = write_report(full, tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert len(sources) == 4  # samples, dots, losses, shares
    assert all(source.startswith("data:image/png;base64,iVBORw0KGgo") for source in sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))


def test_names_are_escaped(tmp_path):
    html = write_report(make_record(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "case&lt;3&gt;&amp;" in html and "case<3>" not in html
    assert "A run &lt;b&gt;of&lt;/b&gt; ours" in html and "<b>" not in html
    assert "&lt;done&gt;" in html
    Page(html)


def test_same_record_gives_the_same_files(full, tmp_path):
    path = write_report(full, tmp_path / "report.html")
    first = path.read_bytes(), (tmp_path / "run.json").read_bytes()
    write_report(full, tmp_path / "report.html")
    assert first == (path.read_bytes(), (tmp_path / "run.json").read_bytes())


def test_run_json_holds_the_record_and_the_comparison(full, tmp_path):
    full["segmentation"]["arms"]["real only"]["runs"][0]["dice"]["case<0>&"]["tumour"] = float("nan")
    write_report(full, tmp_path / "report.html")
    saved = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert saved["segmentation"]["arms"]["real only"]["runs"][0]["dice"]["case<0>&"] == {"tumour": None}
    comparison = saved["comparison"]["arms"]["real + synthetic (50 %)"]["tumour"]
    assert (comparison["n"], comparison["excluded"]) == (7, ["case<0>&"])
    assert comparison["difference"] == compare_arms(full)["arms"]["real + synthetic (50 %)"]["tumour"]["difference"]


def test_figures_and_answer_carry_n_interval_and_seeds(full, tmp_path):
    html = write_report(full, tmp_path / "report.html").read_text(encoding="utf-8")
    interval = r"95 % interval [+−]0\.\d{3} to [+−]0\.\d{3}"
    answered = re.search(r'<div class="answer">(.*?)</div>', html, re.S).group(1)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, re.S)
    for claim in [answered, *(caption for caption in captions if "ifference" in caption)]:
        assert re.search(interval, claim) and "n = 8 patients" in claim and "seeds 0, 1" in claim
    for caption in captions:
        assert "Dataset001_Phantom" in caption and "seed" in caption and re.search(r"\bn\b", caption)
    assert "Phantom data." in html and "shorter than they say" in html


def test_no_difference_is_not_called_one():
    words = answer(make_record(0.0))
    assert "No difference can be told from n = 8 patients: the interval holds 0." in words
    assert "equal training steps, 500 each" in words
    assert not re.search(r"higher|lower|better|improve", words)


def test_one_seed_never_credits_the_synthetic_samples():
    words = answer(make_record(0.05))
    assert "On n = 8 patients Dice was higher with “real + synthetic (50 %)”" in words
    assert "does not tell whether the synthetic samples or the chance of training" in words
    assert "Dice was lower" in answer(make_record(-0.05))


def test_several_seeds_are_listed_apart_from_the_interval():
    words = answer(make_record(0.05, seeds=(0, 1)))
    assert re.search(
        r"not of training seeds; the difference by seed was \+0\.0\d\d \(seed 0\), \+0\.0\d\d \(seed 1\)\.",
        words,
    )


def test_interval_without_the_rank_test_is_not_enough():
    words = answer(make_record(0.05, patients=5))
    assert "leaves out 0, but the rank test (p = 0.062) does not agree" in words
    assert "higher" not in words


def test_too_few_patients():
    assert "too few for an interval" in answer(make_record(0.05, patients=3))


def test_unequal_and_unknown_steps_are_said():
    record = make_record()
    record["segmentation"]["arms"]["real only"]["steps"] = 250
    assert "unequal training steps: real only 250" in answer(record)
    del record["segmentation"]["arms"]["real only"]["steps"]
    assert "training steps not recorded" in answer(record)


def test_several_labels_and_arms(tmp_path):
    record = make_record(0.05, labels=("a", "b"))
    record["segmentation"]["arms"]["real + synthetic (25 %)"] = arm(0.25, 0.0, labels=("a", "b"))
    compared = compare_arms(record)
    assert list(compared["summary"]) == ["mean over labels", "a", "b"]
    words = answer(record)
    assert words.startswith("Arms compared") and "mean over labels" in words
    assert "2 arms share one reference; the intervals are not adjusted for that." in words
    page = Page(write_report(record, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "not adjusted for their number" in page.text


def test_real_only_compares_nothing(tmp_path):
    record = make_record()
    del record["segmentation"]["arms"]["real + synthetic (50 %)"]
    assert "nothing is compared" in answer(record)
    Page(write_report(record, tmp_path / "report.html").read_text(encoding="utf-8"))


def _drop_reference(record):
    del record["segmentation"]["arms"]["real only"]


def _drop_case(record):
    del record["segmentation"]["arms"]["real only"]["runs"][0]["dice"]["case<2>&"]


def _rename_label(record):
    record["segmentation"]["arms"]["real only"]["runs"][0]["dice"]["case<2>&"] = {"lesion": 0.5}


def _repeat_seed(record):
    runs = record["segmentation"]["arms"]["real only"]["runs"]
    runs.append(copy.deepcopy(runs[0]))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_drop_reference, "0 arms with share 0"),
        (_drop_case, "case<2>&"),
        (_rename_label, "lesion"),
        (_repeat_seed, r"seeds \[0, 0\]"),
        (lambda record: record.pop("dataset"), "without dataset"),
        (lambda record: record.update(pictures={"samples": "none.png"}), "none.png"),
        (lambda record: record["generator"].update(losses_file="none.csv"), "none.csv"),
    ],
)
def test_bad_records_are_refused_and_nothing_is_written(tmp_path, spoil, match):
    record = make_record()
    spoil(record)
    with pytest.raises(InputError, match=match):
        write_report(record, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
