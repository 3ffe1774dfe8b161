"""The page of `synthaug tune`: what was chosen and why, what was left out, and how to train it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .answer import p_words, patients_words, signed
from .experiment_plateau import rising_words
from .experiment_results import read_results
from .figures import write_whole
from .html import document, escaped, html_table, setting_rows


def write_tune_page(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write tune.html beside tune.json.

    Args:
        folder: of the run.
        record: content of tune.json.
    """
    title = f"What helps in fold {record['fold']} of {record['dataset']}: {record['chosen']}"
    report = os.path.join(*Path(record["report"]).parts)
    body = [
        f"<h1>{escaped(title)}</h1>",
        f'<p class="about">{escaped(_about(record))}</p>',
        f'<div class="answer"><p>{escaped(tune_words(record))}</p></div>',
        *(f'<p class="loud">{escaped(words)}</p>' for words in rising_words(read_results(folder))),
        "<h2>Train it</h2>",
        f"<pre>{escaped(_commands(record))}</pre>",
    ]
    if record["settings"]:
        caption = f"What the configuration {record['name']} mixes in, in {Path(record['written']).name}."
        body.append(html_table([], setting_rows(record["settings"]), caption))
    body += [
        "<h2>The arms</h2>",
        _table(record),
        "<h2>What this says, and what not</h2>",
        "<ul>" + "".join(f"<li>{escaped(words)}</li>" for words in _limits(record)) + "</ul>",
        f'<p>All numbers, patient by patient: <a href="{escaped(report)}">{escaped(report)}</a></p>',
        f"<pre>{escaped(record['command'])}</pre>",
    ]
    return write_whole(document(title, body).encode(), folder / "tune.html")


def tune_words(record: Mapping[str, Any]) -> str:
    """The choice and its reason, in a sentence or two."""
    chosen, arms = record["chosen"], record["arms"]
    compared = {arm: one for arm, one in arms.items() if "difference" in one}
    if chosen in compared:
        one = compared[chosen]
        return (
            f"Train with “{chosen}”: on {patients_words(one['n'])} of this fold's training, each validated once, it "
            f"gained {_gain(one)} of Dice over real cases only, Holm {p_words(one['p_holm'])}."
        )
    if not compared:
        return "Train on real cases only: no arm could be compared with them, for the reasons below."
    best = max(compared, key=lambda arm: compared[arm]["difference"])
    gain = f"{_gain(compared[best])} ({patients_words(compared[best]['n'])})"
    return (
        f"Train on real cases only: of {len(compared)} arm{'s' * (len(compared) > 1)} none can be told to do better (a "
        f"lower bound above 0, and p below 0.05 by Holm over the arms). The highest gain was that of “{best}”, {gain}. "
        "That is no proof that it does not help."
    )


def _about(record: Mapping[str, Any]) -> str:
    left = sum("difference" not in one for one in record["arms"].values())
    return (
        f"{record['dataset']}, {record['configuration']}, {len(record['training_cases'])} training patients of fold "
        f"{record['fold']} in three inner folds · {record['hours_used']:.2f} of {record['hours']:g} hours"
        + (f" · {left} arms left out" if left else "")
    )


def _gain(one: Mapping[str, Any]) -> str:
    if not one["interval"]:
        return f"{signed(one['difference'])} (no interval, too few patients)"
    low, high = one["interval"]
    return f"{signed(one['difference'])} [{signed(low)}, {signed(high)}]"


def _table(record: Mapping[str, Any]) -> str:
    rows = []
    for arm, one in record["arms"].items():
        if "difference" in one:
            verdict = "chosen" if arm == record["chosen"] else "compared"
            rows.append([arm, _gain(one), one["n"], f"{one['better']} / {one['worse']}", verdict])
        else:
            rows.append([arm, "–", "–", "–", f"left out: {one['why']}"])
    caption = (
        "Gain in Dice over real cases only, patient by patient: mean and 95 % bootstrap interval over patients. "
        f"Pools: {record['bundle']}, a generator for each inner fold."
    )
    return html_table(["arm", "gain", "patients", "better / worse", ""], rows, caption)


def _commands(record: Mapping[str, Any]) -> str:
    if record["written"] is None:
        return str(record["train_command"])
    return f"export nnUNet_extTrainer=$(synthaug ext-path)\n{record['train_command']}"


def _limits(record: Mapping[str, Any]) -> list[str]:
    compared = sum("difference" in one for one in record["arms"].values())
    words = [
        "Measured with a small U-Net on small slices, one training of each arm in an inner fold, on two thirds of the "
        "training patients; nnU-Net's own network may gain more or less.",
        "Intervals cover the choice of patients, not that of trainings or generators.",
        "The validation patients of the fold, and test patients, had no part in it: they can still judge the choice.",
    ]
    if compared > 1 and record["chosen"] in record["arms"]:
        words.insert(
            1,
            f"The best of {compared} arms was taken, and its interval is not adjusted for that: what it gains on other "
            "patients is likely less.",
        )
    return words
