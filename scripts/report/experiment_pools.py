"""The pools of an experiment's report: their metrics, what the audits found, and sheets of samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .experiment_results import Results
from .html import escaped, html_figure, html_table

# The others are in the CSV.
SHOWN = ("synthetic vs training", "held-out vs training")


def pool_section(results: Results, folder: Path) -> list[str]:
    """Generators, metrics, audits and samples of all pools."""
    if not results.cells("pool"):
        return []
    parts = ["<h2>Pools</h2>", _generator_table(results)]
    for comparison in SHOWN:
        parts += _metric_table(results, comparison)
    parts += _audits(results)
    return parts + _sheets(results, folder)


def where(settings: dict[str, Any]) -> str:
    """The generator of a pool, and what it was trained on."""
    return f"{settings['label']}, {settings['real']} real, fold {settings['fold']}"


def _generator_table(results: Results) -> str:
    generators = {_place(cell): cell["id"] for cell in results.cells("generator")}
    audits = {_place(cell): cell["id"] for cell in results.cells("audit")}
    rows = []
    for cell in results.cells("pool"):
        values = results.values(cell["id"]) or {}
        trained = results.values(generators.get(_place(cell), "")) or {}
        seconds = results.results.get(generators.get(_place(cell), ""), {}).get("seconds")
        kept = (results.values(audits.get(_place(cell), "")) or {}).get("kept")
        rows.append([
            where(cell["settings"]), cell["settings"]["bundle"], _number(trained.get("parameters")),
            _number(trained.get("iterations")), _number(seconds), _number(values.get("samples")),
            _number(values.get("candidates")),
            "–" if "seconds_per_sample" not in values else f"{values['seconds_per_sample']:.3g}", _number(kept),
        ])  # fmt: skip
    head = ["pool", "bundle", "parameters", "training steps", "training s", "samples", "candidates", "s per sample",
            "kept by audit"]  # fmt: skip
    caption = (
        "Generators and their pools; a generator learns from the training cases of one fold, and its pool serves that "
        "fold alone. Seconds: wall clock, on the device named below, with starting and what else ran there; one run."
    )
    return html_table(head, rows, caption, numbers=tuple(range(2, 9)))


def _place(cell: dict[str, Any]) -> tuple:
    return tuple(cell["settings"][key] for key in ("label", "real", "fold"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def metric_rows(results: Results) -> list[dict[str, Any]]:
    """Every figure of every pool: {"pool", "label", "real", "fold", and the fields of `evaluate_pool`}."""
    rows = []
    for cell in results.cells("metrics"):
        place = {key: cell["settings"][key] for key in ("label", "real", "fold")}
        for one in (results.values(cell["id"]) or {"figures": []})["figures"]:
            rows.append({"pool": where(cell["settings"]), **place, **one})
    return rows


def _metric_table(results: Results, comparison: str) -> list[str]:
    """A row for each figure, a column for each generator and number of real patients."""
    figures = [one for one in metric_rows(results) if one["comparison"] == comparison]
    if not figures:
        return []
    columns = list(dict.fromkeys((one["label"], one["real"]) for one in figures))
    table: dict[str, dict[tuple, list[dict[str, Any]]]] = {}
    for one in figures:
        n = f",n={one['n'][0]}/{one['n'][1]}]"
        name = f"{one['name'].replace(n, ']')} {one['unit']} {'↑' if one['better'] == 'higher' else '↓'}"
        table.setdefault(name, {}).setdefault((one["label"], one["real"]), []).append(one)
    rows = [[name, *(_cell(found.get(column, [])) for column in columns)] for name, found in table.items()]
    numbers = [
        "n: items / items; patients or samples",
        *(
            "; ".join(
                f"fold {one['fold']}: {one['n'][0]} / {one['n'][1]}; {one['groups'][0]} / {one['groups'][1]}"
                for one in next(iter(table.values())).get(column, [])
            )
            for column in columns
        ),
    ]
    meaning = next(
        c["meaning"]
        for cell in results.cells("metrics")
        for c in (results.values(cell["id"]) or {"comparisons": []})["comparisons"]
        if c["key"] == comparison
    )
    intervals = next(v["intervals"] for c in results.cells("metrics") if (v := results.values(c["id"])))
    caption = (
        f"{comparison}: {meaning}. One fold: value and interval ({intervals}); several: mean ± SD over the folds' "
        "pools. ↑ ↓: which way is better. No tests were made. Figures of other n do not compare."
    )
    head = ["figure", *(f"{label}, {real} real" for label, real in columns)]
    return [html_table(head, [numbers, *rows], caption)]


def _cell(figures: list[dict[str, Any]]) -> str:
    values = [one["value"] for one in figures if one["value"] is not None]
    if not values:
        return "not defined" if figures else "–"
    if len(values) > 1:
        return f"{np.mean(values):.3g} ± {np.std(values, ddof=1):.2g} ({len(values)} folds)"
    interval = figures[0]["interval"]
    return f"{values[0]:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else " [too few]")


def _audits(results: Results) -> list[str]:
    cells = results.cells("audit")
    if not cells:
        return []
    parts = [
        "<h3>Audits</h3>",
        "<p>Pasted tumours are not audited: all but the tumour is a training case, as the audit would say of each.</p>",
    ]
    for cell in cells:
        if (values := results.values(cell["id"])) is not None:
            words = [line for line in values["words"] if not line.endswith((".json", ".png"))]
            listed = "".join(f"<li>{escaped(line.strip())}</li>" for line in words)
            parts.append(f"<p>{escaped(where(cell['settings']))}:</p><ul>{listed}</ul>")
            picture = results.folder / "cells" / cell["needs"]["pool"] / "pool" / "audit.png"
            if picture.is_file() and cell is cells[0]:
                caption = f"Audit of {where(cell['settings'])}; those of the other pools lie beside their samples."
                parts.append(html_figure(picture.read_bytes(), caption, "Audit"))
    return parts


def _sheets(results: Results, folder: Path) -> list[str]:
    """Samples of each generator's first pool; the others lie in the folders of their cells."""
    parts, shown = [], set()
    for cell in results.cells("pool"):
        label = cell["settings"]["label"]
        picture = results.folder / "cells" / cell["id"] / "pool" / "samples.png"
        if label in shown or not picture.is_file():
            continue
        shown.add(label)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, folder / f"samples_{cell['id'].rpartition('/')[2]}.png")
        caption = f"Samples of {where(cell['settings'])}, spread evenly over the pool; examples, they measure nothing."
        parts.append(html_figure(picture.read_bytes(), caption, f"Samples of {label}"))
    return ["<h3>Samples</h3>", *parts] if parts else []
