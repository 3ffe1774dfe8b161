"""A scorecard of each pool, five figures that can be cited: fidelity, coverage, copies, usefulness, gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..pool.from_real import CLASSICAL, DUPLICATES
from .answer import interval_words, p_words, signed
from .experiment_pools import where
from .experiment_results import Results, Row
from .html import html_table

# As many samples as there are held-out items, so that both figures are of one n; else all.
POOLED, CEILING = ("synthetic (n of held-out) vs training", "synthetic vs training"), "held-out vs training"
HEAD = ("pool", "fidelity", "coverage", "copies", "usefulness", "gain")


def cited_split(splits: Sequence[str]) -> str:
    """The split whose gain is cited: test patients where there are such."""
    return "test" if "test" in splits else splits[0]


def scorecards(results: Results, compared: Mapping[Row, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each pool: the words of `HEAD`, and "id" that names its settings.

    Args:
        results: of the experiment.
        compared: its arms against the reference, of `comparisons`.
    """
    rows = []
    for cell in results.cells("pool"):
        place = {key: cell["settings"][key] for key in ("label", "real", "fold")}

        def values_of(kind: str, place: dict[str, Any] = place) -> dict[str, Any]:
            found = (c for c in results.cells(kind) if {key: c["settings"][key] for key in place} == place)
            return next((v for c in found if (v := results.values(c["id"])) is not None), {})

        if results.values(cell["id"]) is None or cell["settings"]["bundle"] in (DUPLICATES, CLASSICAL):
            continue  # not there yet, or real slices, which only say what the others are to be held against
        figures, audit = values_of("metrics").get("figures", []), values_of("audit")
        rows.append({
            "pool": where(cell["settings"]),
            "fidelity": _figure(figures, "fid"),
            "coverage": _figure(figures, "coverage"),
            "copies": _copies(audit.get("copies")),
            "usefulness": _usefulness(audit.get("usefulness")),
            "gain": _gain(results, place, compared),
            "id": str(results.results[cell["id"]].get("settings_sha256", ""))[:12],
        })  # fmt: skip
    return rows


def scorecard_section(results: Results, compared: Mapping[Row, Mapping[str, Any]]) -> list[str]:
    """The scorecards as a table; nothing without pools."""
    cards = scorecards(results, compared)
    if not cards:
        return []
    caption = (
        "Fidelity: Frechet distance (FID) of samples from training items, in the features that the table of metrics "
        "names; coverage (Naeem et al. 2020): the part of training items with a sample among their neighbours; beside "
        "each what held-out real cases reach. Copies: of training cases, by the audit. Usefulness: Dice on held-out "
        "patients of a network that learnt from the pool alone, over that of one that learnt from real slices. Gain: "
        "of the arm with the most samples of this generator over real only, on test patients where there are such. "
        "Intervals: 95 %. To cite: scorecard.md."
    )
    return ["<h3>Scorecards</h3>", html_table(list(HEAD), [[card[name] for name in HEAD] for card in cards], caption)]


def scorecard_text(results: Results, compared: Mapping[Row, Mapping[str, Any]]) -> str:
    """Markdown of the scorecards, each with a line that says which pool of which run it is."""
    data = results.settings["dataset_dir"]
    name = data.rstrip("/").rpartition("/")[2] if data else f"phantom ({results.settings['dataset']['modality']})"
    lines = ["# Scorecards of pools", ""]
    for card in scorecards(results, compared):
        lines += [f"## {card['pool']}", ""]
        lines += [f"- **{key}**: {card[key]}" for key in HEAD[1:]]
        lines += ["", f"Cite as: synthaug scorecard, {name}, protocol {results.settings['name']}, pool {card['pool']}, "
                      f"settings {card['id']}, {results.content['started']}.", ""]  # fmt: skip
    return "\n".join(lines)


def _figure(figures: list[dict[str, Any]], metric: str) -> str:
    found = {one["comparison"]: one for one in figures if one["metric"] == metric and one["value"] is not None}
    one = next((found[name] for name in POOLED if name in found), None)
    if one is None:
        return "not measured"
    words = f"{one['value']:.3g}" + (" [{:.3g}, {:.3g}]".format(*one["interval"]) if one["interval"] else "")
    if CEILING not in found:
        return words
    ceiling = found[CEILING]
    more = "" if ceiling["n"][0] == one["n"][0] else f" (of {ceiling['n'][0]} items, not {one['n'][0]}: another scale)"
    return f"{words}; real {ceiling['value']:.3g}{more}"


def _copies(copies: Mapping[str, Any] | None) -> str:
    if not copies:
        return "not audited"
    low, high = copies["interval"] or (0.0, 1.0)
    return f"{100 * copies['share']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {copies['n']}"


def _usefulness(useful: Mapping[str, Any] | None) -> str:
    if not useful:
        return "not measured"
    if useful["ratio"] is None:
        return "cannot be told"
    between = "" if useful["interval"] is None else " [{:.2f}, {:.2f}]".format(*useful["interval"])
    below = useful["ratio"] < useful["threshold"]
    return f"{useful['ratio']:.2f}{between}" + (f" (below {useful['threshold']:g})" if below else "")


def _gain(results: Results, place: Mapping[str, Any], compared: Mapping[Row, Mapping[str, Any]]) -> str:
    """Of the arms that use this generator with as many real patients, the one with the most samples; over all folds."""
    arms = results.settings["arms"]
    rows = [row for row, c in compared.items() if arms[row.arm].get("pool") == place["label"]
            and row.real == place["real"] and c["difference"] is not None]  # fmt: skip
    if not rows:
        return "not measured"
    row = max(rows, key=lambda one: one.num_synthetic)
    c = compared[row]
    p = "" if c["p"] is None else f", Holm {p_words(c['p_holm'])}"
    patients = f"{c['n']} {row.split} patients"
    return f"{signed(c['difference'])} Dice ({interval_words(c)}{p}; “{row.words}”, {row.segmenter}, {patients})"
