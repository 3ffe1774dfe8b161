"""The answer of an experiment in one sentence, with its interval; all reservations stand below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .answer import interval_words, p_words, patients_words, signed
from .experiment_results import Row


def headline(compared: Mapping[Row, Mapping[str, Any]]) -> str | None:
    """The one sentence, from comparisons with a reference (`comparisons`); None where nothing is defined.

    With several arms: how many do better after Holm, and of these the one with the highest lower bound; or that none
    does, and the one with the highest mean; and how many do worse.
    """
    defined = {row: c for row, c in compared.items() if c["difference"] is not None}
    if not defined:
        return None
    told = {"higher": "did better than", "lower": "did worse than"}
    reference = next(iter(defined.values()))["names"][0]
    if len(defined) == 1:
        (row, c), = defined.items()  # fmt: skip
        verb = told.get(c["conclusion"], "cannot be told from")
        return f"“{row.words}” {verb} “{reference}”: {_difference(row, c, several=False)}."
    number = sum(c["conclusion"] == "lower" for c in defined.values())
    worse = f" {number} of {len(defined)} did worse." if number else ""
    better = {row: c for row, c in defined.items() if c["conclusion"] == "higher"}
    if better:
        row = max(better, key=lambda one: better[one]["interval"][0])
        return (
            f"{len(better)} of {len(defined)} arms did better than “{reference}”, with the highest lower bound "
            f"“{row.words}”: {_difference(row, better[row])}.{worse}"
        )
    row = max(defined, key=lambda one: defined[one]["difference"])
    return (
        f"None of {len(defined)} arms can be told to do better than “{reference}”; the highest is “{row.words}”: "
        f"{_difference(row, defined[row])}.{worse}"
    )


def _difference(row: Row, c: Mapping[str, Any], several: bool = True) -> str:
    where = [row.segmenter] * several + [f"{row.real} real patients"] * (row.real != "all")
    tests = f", {'Holm ' * (c['family'] > 1)}{p_words(c['p_holm'])}" if c["p"] is not None else ""
    runs = len(c["runs"])
    trainings = f"{runs} training{'s' * (runs > 1)} an arm"
    if any(number < row.num_synthetic for number in c["had"]):
        where.append(f"with the {' or '.join(map(str, c['had']))} samples that the audit left")
    words = ", ".join([*where, patients_words(c["n"]), trainings])
    return f"Dice {signed(c['difference'])} ({interval_words(c)}{tests}; {words})"
