"""Whether trainings ended on a plateau: a comparison with a reference that still rises says little."""

from __future__ import annotations

from typing import Any

import numpy as np

from .answer import signed
from .experiment_results import Results
from .html import escaped, html_table

POINTS = ("0.6", "0.8", "1.0")  # parts of the training
RISING = 0.01  # of Dice, in the last fifth


def plateaus(results: Results) -> list[dict[str, Any]]:
    """Validation Dice of each arm at 60, 80 and 100 % of its training, mean over its trainings.

    Returns rows of "segmenter", "real", "arm", "num_synthetic", "reference", "dice" (three values), "runs", "rise" (in
    the last fifth) and "rising"; arms whose trainings validated nothing (fold all, nnU-Net) have no row.
    """
    found: dict[tuple, list[list[float]]] = {}
    references = {}
    for cell in results.cells("train"):
        plateau = (results.values(cell["id"]) or {}).get("plateau") or {}
        s = cell["settings"]
        key = (s["segmenter"], s["real"], s["arm"], s["num_synthetic"])
        references[key] = s["reference"]
        if all(plateau.get(point) is not None for point in POINTS):
            found.setdefault(key, []).append([plateau[point] for point in POINTS])
    rows = []
    for key, runs in found.items():
        dice = np.mean(runs, axis=0)
        if np.isnan(dice).any():
            continue
        rise = float(dice[2] - dice[1])
        place = dict(zip(("segmenter", "real", "arm", "num_synthetic"), key, strict=True))
        rows.append({**place, "reference": references[key], "dice": dice.tolist(), "runs": len(runs), "rise": rise,
                     "rising": rise > RISING})  # fmt: skip
    return rows


def rising_words(results: Results) -> list[str]:
    """A warning for each reference that still rises when its training ends."""
    return [
        f"“{one['arm']}” of {one['segmenter']} ({one['real']} real patients) is not trained to a plateau: its "
        f"validation Dice still rose by {signed(one['rise'])} in the last fifth of the training. A longer training may "
        "turn what is told here round."
        for one in plateaus(results) if one["reference"] and one["rising"]
    ]  # fmt: skip


def plateau_section(results: Results) -> list[str]:
    """The table of `plateaus`; nothing where no training validated."""
    rows = [
        [one["segmenter"], one["real"], one["arm"], one["num_synthetic"] or "–",
         *(f"{value:.3f}" for value in one["dice"]), signed(one["rise"]) + (" RISING" if one["rising"] else ""),
         one["runs"]]
        for one in plateaus(results)
    ]  # fmt: skip
    if not rows:
        return []
    head = ["segmenter", "real patients", "arm", "synthetic", "at 60 %", "at 80 %", "at 100 %", "last fifth", "runs"]
    caption = (
        "Did the trainings end on a plateau? Dice on the fold's validation cases at 60, 80 and 100 % of the training, "
        f"mean over the trainings of an arm. RISING: by more than {RISING:g} in the last fifth."
    )
    return [f"<h3>{escaped('Plateau')}</h3>", html_table(head, rows, caption, numbers=tuple(range(3, len(head))))]
