"""Patients of an experiment: a dot or a row for each, and each label beside their mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .answer import conclusion_words, interval_words, mean_and_spread, p_words, patients_words, runs_words, signed
from .experiment_results import LEVEL, PRIMARY, Results, Row, label_comparisons, seed_runs
from .figures import save_png
from .html import html_figure, html_table
from .plots import paired_dice_figure

MOST_COLUMNS = 8


def paired_figures(results: Results, split: str, compared: dict[Row, dict[str, Any]], folder: Path) -> list[str]:
    """Every patient of each comparison as a dot, and with several labels a table of each."""
    table, parts = results.patients(PRIMARY, split), []
    measure = results.labels[0] if len(results.labels) == 1 else "mean over labels"
    for number, (row, c) in enumerate(compared.items()):
        other = results.reference(row)
        if other is None or not c["n"]:
            continue
        sides = [seed_runs(table[side], c["runs"]) for side in (other, row)]
        figure = paired_dice_figure(sides[0], sides[1], (c["names"][0], c["names"][1]), f"Dice ({measure})")
        drawn = save_png(figure, folder / f"patients_{split}{number or ''}.png").read_bytes()
        caption = (
            f"Dice ({measure}) of each {split} patient, {row.segmenter}, “{c['names'][1]}” against “{c['names'][0]}”; "
            f"{patients_words(c['n'])}, {runs_words(c['runs'])}. On the grey line both are equal. Difference "
            f"{signed(c['difference'])} ({interval_words(c)}). {conclusion_words(c)}"
        )
        words = f"Dice of each patient, {c['names'][1]} against {c['names'][0]}"
        parts.append(html_figure(drawn, caption, words))
        if len(results.labels) > 1:
            parts.append(_label_table(results, c, row, other))
    return parts


def _label_table(results: Results, c: dict[str, Any], row: Row, other: Row) -> str:
    rows = [
        [
            label, mean_and_spread(one["reference"]), mean_and_spread(one["other"]),
            "not defined" if one["difference"] is None else signed(one["difference"]),
            interval_words(one).removeprefix(f"{100 * LEVEL:g} % interval "),
            "–" if one["p"] is None else p_words(one["p"]), one["n"], len(one["excluded"]),
            f"{one['better']} / {one['worse']} / {one['equal']}",
        ]
        for label, one in label_comparisons(results, c, row, other).items()
    ]  # fmt: skip
    head = ["label", *c["names"], "difference", "interval", "p", "n", "left out", "better / worse / equal"]
    caption = (
        f"Dice of each label, “{c['names'][1]}” against “{c['names'][0]}”, {runs_words(c['runs'])}: mean ± SD over "
        f"patients, {100 * LEVEL:g} % bootstrap percentile interval, Wilcoxon signed-rank. {len(rows)} rows, not "
        "adjusted for their number."
    )
    return html_table(head, rows, caption, numbers=tuple(range(1, len(head))))


def patient_section(results: Results, split: str) -> list[str]:
    """A row for each patient, where the trainings are few; else patients.csv has them."""
    table = {row: runs for row, runs in results.patients(PRIMARY, split).items() if runs}
    columns = [(row, run) for row, runs in table.items() for run in sorted(runs, key=str)]
    if not 0 < len(columns) <= MOST_COLUMNS:
        return []
    several = len({row.segmenter for row in table}) > 1, len({row.real for row in table}) > 1
    patients = sorted({patient for runs in table.values() for cases in runs.values() for patient in cases})
    rows = []
    for patient in patients:
        values = [table[row][run].get(patient, math.nan) for row, run in columns]
        rows.append([patient, *("–" if math.isnan(value) else f"{value:.3f}" for value in values)])
    head = ["patient"]
    for row, (fold, seed) in columns:
        words = [row.segmenter] * several[0] + [f"{row.real} real"] * several[1]
        head.append(", ".join([*words, row.words, f"fold {fold}", f"seed {seed}"]))
    measure = results.labels[0] if len(results.labels) == 1 else "mean over labels"
    caption = f"Dice ({measure}) of {split} cases; {patients_words(len(patients))}; –: not defined, or not evaluated."
    heading = f"<h2>Each {split} patient</h2>"
    return [heading, html_table(head, rows, caption, numbers=tuple(range(1, len(head))))]
