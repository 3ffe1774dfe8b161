"""How many real patients each arm is worth, where a protocol has several numbers of them."""

from __future__ import annotations

from typing import Any

from ..metrics.worth import patients_worth, worth_words
from .experiment_results import LEVEL, PRIMARY, Results, Row, average_runs
from .html import html_table


def arms_worth(results: Results, split: str) -> dict[Row, dict[str, Any]]:
    """`patients_worth` of every arm but the reference, over the folds and seeds that it shares with the whole curve.

    "all" patients are as many as the trainings say, where they say one number. Rows without two points of the curve are
    left out.
    """
    table = {row: runs for row, runs in results.patients(PRIMARY, split).items() if runs}
    numbers = {row.real: _number(results, row.real) for row in table}
    found = {}
    for row, runs in table.items():
        reference = results.reference(row)
        if reference is None or row == reference:
            continue
        points = {
            n: r for r in table
            if r.arm == reference.arm and r.segmenter == row.segmenter and (n := numbers[r.real]) is not None
        }  # fmt: skip
        both = set(runs).intersection(*(table[r] for r in points.values()))
        if len(points) < 2 or not both:
            continue
        sides = {n: average_runs({run: table[r][run] for run in both}) for n, r in points.items()}
        one = patients_worth(sides, average_runs({run: runs[run] for run in both}), LEVEL)
        found[row] = {**one, "had": numbers[row.real], "runs": len(both)}
    return found


def worth_section(results: Results, split: str) -> list[str]:
    """The table of `arms_worth`; nothing where a protocol has one number of patients."""
    rows = []
    for row, one in arms_worth(results, split).items():
        interval = "too few patients"
        if one["interval"]:
            low, high = (worth_words(value, one) for value in one["interval"])
            interval = f"{low} to {high}" if low != high else low
        had = one["had"] or row.real
        rows.append([row.segmenter, row.words, had, worth_words(one["worth"], one), interval, one["n"], one["runs"]])
    if not rows:
        return []
    head = ["segmenter", "arm", "real patients it had", "real patients it is worth", "95 % interval", "n", "runs"]
    caption = (
        "How many real patients the reference needs to reach the arm's DSC: its curve over the logarithm of their "
        "number, straight between two points. Intervals: bootstrap over the n evaluated patients; they cover neither "
        "trainings (runs: folds x seeds) nor which patients were drawn for training. Beyond the ends of the curve "
        "nothing is told but that."
    )
    heading = "<h3>What an arm is worth in real patients</h3>"
    return [heading, html_table(head, rows, caption, numbers=tuple(range(2, len(head))))]


def _number(results: Results, real: int | str) -> int | None:
    if real != "all":
        return int(real)
    trained = [results.values(cell["id"]) for cell in results.cells("train") if cell["settings"]["real"] == real]
    counts = {values["cases"] for values in trained if values is not None and "cases" in values}
    return counts.pop() if len(counts) == 1 else None
