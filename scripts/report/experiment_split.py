"""What a gain is made of: updates, other views of the same slices, synthesis; where a protocol has the controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..pool.from_real import CLASSICAL, DUPLICATES, FROM_REAL
from .answer import interval_words, p_words, signed
from .experiment_figures import Difference, difference_figure
from .experiment_results import Results, Row, compare_rows
from .figures import save_png
from .html import html_figure, html_table

PARTS = ("updates", "augmentation", "synthesis", "all together")


def gain_parts(results: Results, split: str) -> dict[Row, dict[str, dict[str, Any]]]:
    """The gain of every generator's arm in parts that add up, each a paired comparison as of `compare_rows`.

    With as many samples in each arm, and so as many updates:

    - updates: duplicates of real slices against real only,
    - augmentation: classical copies of them against duplicates,
    - synthesis: the arm against classical copies,
    - all together: the arm against real only.

    Rows without their controls are left out; all comparisons are one family of Holm.
    """
    kinds = {name: _kind(results, name) for name in results.settings["arms"]}
    rows = [row for row in results.rows if row.split == split]

    def control(row: Row, kind: str) -> Row | None:
        alike = (r for r in rows if r[:3] == row[:3] and r.num_synthetic == row.num_synthetic)
        return next((r for r in alike if kinds[r.arm] == kind), None)

    wanted: dict[Row, dict[str, tuple[Row, Row]]] = {}
    for row in rows:
        real, again, turned = results.reference(row), control(row, DUPLICATES), control(row, CLASSICAL)
        if kinds[row.arm] == "generator" and real and again and turned:
            pairs = ((again, real), (turned, again), (row, turned), (row, real))
            wanted[row] = dict(zip(PARTS, pairs, strict=True))
    compared = compare_rows(results, split, list(dict.fromkeys(p for parts in wanted.values() for p in parts.values())))
    found = {row: {name: compared[pair] for name, pair in parts.items() if pair in compared} for row, parts in
             wanted.items()}  # fmt: skip
    return {row: parts for row, parts in found.items() if set(parts) == set(PARTS)}


def split_section(results: Results, split: str, folder: Path) -> list[str]:
    """The figure and table of `gain_parts`; nothing where a protocol has no controls."""
    found = gain_parts(results, split)
    if not found:
        return []
    groups, rows = {}, []
    for row, parts in found.items():
        title = f"{row.words}; {row.segmenter}" + ("" if row.real == "all" else f", {row.real} real patients")
        shown = {name: c for name, c in parts.items() if c["difference"] is not None}
        groups[title] = [Difference(n, c["difference"], c["interval"], c["conclusion"]) for n, c in shown.items()]
        for name, c in shown.items():
            rows.append([row.segmenter, row.real, row.words, name, signed(c["difference"]),
                         interval_words(c).removeprefix(f"{100 * c['level']:g} % interval "),
                         "–" if c["p"] is None else p_words(c["p_holm"]), c["n"], len(c["runs"])])  # fmt: skip
    figure = difference_figure(groups, "difference in DSC, mean over patients")
    drawn = save_png(figure, folder / f"gain_parts_{split}.png").read_bytes()
    n = sorted({c["n"] for parts in found.values() for c in parts.values()})
    runs = sorted({len(c["runs"]) for parts in found.values() for c in parts.values()})
    caption = (
        "What the gain over real only is made of. Updates: as many duplicates of real slices. Augmentation: classical "
        "copies instead of duplicates. Synthesis: the generator's samples instead of classical copies. The three add "
        f"up to the last row. Paired differences; n = {', '.join(map(str, n))} patients, {', '.join(map(str, runs))} "
        "trainings (folds x seeds); 95 % bootstrap intervals over patients. Filled: Holm agrees."
    )
    head = ["segmenter", "real patients", "arm", "part", "difference", "interval", "p (Holm)", "n", "runs"]
    return [
        "<h3>Updates, augmentation, synthesis</h3>",
        html_figure(drawn, caption, "What the gain is made of"),
        html_table(head, rows, "The same in numbers.", numbers=tuple(range(4, len(head)))),
    ]


def _kind(results: Results, arm: str) -> str:
    """`generator`, or the bundle of a pool of real slices; empty without a pool."""
    pool = results.settings["arms"][arm].get("pool")
    if pool is None:
        return ""
    bundle = results.settings["generators"][pool]["bundle"]
    return bundle if bundle in FROM_REAL else "generator"
