"""The sentence at the top and the scorecards claim what the comparisons allow, with interval, n and trainings."""

from html import escape

import pytest

from scripts.report.experiment import write_experiment_report
from scripts.report.experiment_headline import headline
from scripts.report.experiment_results import Row, comparisons, read_results
from scripts.report.experiment_scorecard import HEAD, _figure, cited_split, scorecards

from ..experiment.fake import finish, start, write_result


def compared(difference, interval, conclusion, family=1, had=()):
    return {"names": ["real only", "x"], "difference": difference, "interval": interval, "level": 0.95, "p": 0.01,
            "p_holm": 0.02, "family": family, "n": 8, "runs": [(0, 0)], "had": list(had),
            "conclusion": conclusion}  # fmt: skip


def row(arm, num_synthetic=0):
    return Row("test", "U-Net", "all", arm, num_synthetic)


@pytest.mark.parametrize("conclusion, verb", [
    ("higher", "did better than"), ("lower", "did worse than"), ("undecided", "cannot be told from"),
    ("too few", "cannot be told from"),
])  # fmt: skip
def test_one_arm(conclusion, verb):
    interval = None if conclusion == "too few" else [0.01, 0.05]
    words = headline({row("x"): compared(0.03, interval, conclusion)})
    assert words.startswith(f"“x” {verb} “real only”: Dice +0.030 (")
    assert "n = 8 patients, 1 training an arm" in words and "Holm" not in words
    assert ("+0.010 to +0.050" in words) == (interval is not None)


@pytest.mark.parametrize("had, told", [([9], "the 9 samples"), ([9, 40], "the 9 or 40 samples"), ([40], None)])
def test_samples_that_are_fewer_than_the_name_says_are_told(had, told):
    words = headline({row("x", 40): compared(0.03, [0.01, 0.05], "higher", had=had)})
    assert (told is None) == ("samples that the audit left" not in words) and (told or "") in words


def test_several_arms():
    few = {
        row("a"): compared(0.05, [-0.01, 0.1], "undecided", 2),
        row("b"): compared(0.02, [-0.02, 0.03], "undecided", 2),
    }
    words = headline(few)
    assert words.startswith("None of 2 arms can be told to do better than “real only”; the highest is “a”: Dice +0.050")
    assert "Holm p = 0.020" in words and "U-Net" in words
    more = {
        **few,
        row("c"): compared(0.04, [0.03, 0.05], "higher", 3),
        row("d"): compared(0.05, [0.01, 0.09], "higher", 3),
    }
    assert headline(more).startswith("2 of 4 arms did better than “real only”, with the highest lower bound “c”: ")
    assert "did worse" not in headline(more)
    harm = {row("e"): compared(-0.05, [-0.1, -0.01], "lower", 3), row("f"): compared(-0.04, [-0.1, -0.01], "lower", 3)}
    assert headline(few | harm).endswith(" 2 of 4 did worse.") and "None of 4" in headline(few | harm)
    assert headline(more | harm).endswith(" 2 of 6 did worse.") and "2 of 6 arms did better" in headline(more | harm)
    assert headline({}) is None


def test_gains_on_test_patients_are_cited_where_there_are_such():
    assert cited_split(["validation", "test"]) == "test" and cited_split(["validation"]) == "validation"


@pytest.mark.slow
def test_scorecards_hold_five_figures_of_each_pool(tmp_path):
    run = start(tmp_path)
    finish(run)
    copies = {"flagged": 1, "n": 25, "share": 0.04, "interval": [0.01, 0.2]}
    useful = {"ratio": 0.7, "interval": [0.6, 0.8], "useful": False, "threshold": 0.85, "words": "Usefulness 0.70"}
    write_result(run, "audit/model_real-all_fold0", {"words": [], "kept": 20, "copies": copies, "usefulness": useful})
    results = read_results(run.path)
    found = comparisons(results, "validation")
    cards = {card["pool"]: card for card in scorecards(results, found)}
    assert set(cards) == {f"{name}, all real, fold {fold}" for name in ("model", "pasted") for fold in (0, 1)}
    card = cards["model, all real, fold 0"]
    assert card["copies"] == "4.0 % [1.0, 20.0] of 25" and card["usefulness"] == "0.70 [0.60, 0.80] (below 0.85)"
    assert card["fidelity"] == "3 [2, 4.5]" and card["coverage"] == "not measured"
    ceiling = {"comparison": "held-out vs training", "metric": "fid", "value": 1.0, "interval": None}
    pool = {**ceiling, "comparison": "synthetic vs training", "value": 3.0, "n": [9, 40]}
    assert _figure([pool, {**ceiling, "n": [9, 40]}], "fid") == "3; real 1"
    assert _figure([pool, {**ceiling, "n": [52, 40]}], "fid") == "3; real 1 (of 52 items, not 9: another scale)"
    c = found[Row("validation", "U-Net", "all", "model", 20)]
    assert (
        f"{c['difference']:+.3f} Dice" in card["gain"]
        and "model, 20" in card["gain"]
        and "16 validation patients" in card["gain"]
    )
    assert cards["pasted, all real, fold 1"]["copies"] == "not audited"
    page = write_experiment_report(run.path)
    text = (page.parent / "scorecard.md").read_text()
    assert text.count("Cite as:") == 4 and all(f"**{name}**" in text for name in HEAD[1:])
    assert "Scorecards" in page.read_text() and escape(headline(found)) in page.read_text()
