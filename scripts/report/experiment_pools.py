"""The pools of an experiment's report: their metrics, what the audits found, and sheets of samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ..pool.from_real import FROM_REAL
from .experiment_results import Results
from .figures import png_bytes
from .html import escaped, html_figure, html_table
from .plots import loss_figure, read_series

# The others are in the CSV.
SHOWN = ("synthetic vs training", "held-out vs training")
# When a pool is called bad; where real cases say what can be reached, beside them.
LOW_OF_CEILING, LOW_ALONE = 0.5, 0.3
MANY_DROPPED = 0.3
BLURRED = 0.7


def pool_section(results: Results, folder: Path) -> list[str]:
    """Generators, metrics, audits and samples of all pools."""
    if not results.cells("pool"):
        return []
    parts = ["<h2>Pools</h2>", _generator_table(results)]
    for comparison in SHOWN:
        parts += _metric_table(results, comparison)
    parts += _audits(results)
    return parts + ([] if one_generator(results) else sheets(results, folder)) + loss_section(results)


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
            "–" if values.get("sharpness") is None else f"{values['sharpness']:.2f}",
        ])  # fmt: skip
    head = ["pool", "bundle", "parameters", "training steps", "training s", "samples", "candidates", "s per sample",
            "kept by audit", "fine detail"]  # fmt: skip
    caption = (
        "Generators and their pools; a generator learns from the training cases of one fold, and its pool serves that "
        "fold alone. Seconds: wall clock, on the device named below, with starting and what else ran there; one run. "
        "Fine detail: SD of the Laplacian over SD of the slice, median, beside that of real training slices."
    )
    return html_table(head, rows, caption, numbers=tuple(range(2, 10)))


def bad_pool_words(results: Results) -> list[str]:
    """A line for each pool that looks bad, and why: a reader must not have to find it in the tables."""
    lines = []
    for cell in results.cells("pool"):
        if why := _complaints(results, cell):
            lines.append(f"The pool of {where(cell['settings'])} looks bad: {'; '.join(why)}.")
    return lines


def _complaints(results: Results, pool: dict[str, Any]) -> list[str]:
    place, why = _place(pool), []

    def values_of(kind: str) -> dict[str, Any]:
        cell = next((cell for cell in results.cells(kind) if _place(cell) == place), None)
        return (results.values(cell["id"]) if cell else None) or {}

    values, audit = results.values(pool["id"]) or {}, values_of("audit")
    for metric, meaning in (("precision", "slices that look real"), ("recall", "what real slices show")):
        found = {
            one["comparison"]: one["value"] for one in values_of("metrics").get("figures", ())
            if one["metric"] == metric and one["value"] is not None
        }  # fmt: skip
        value, ceiling = (found.get(comparison) for comparison in SHOWN)
        if value is not None and value < (LOW_ALONE if ceiling is None else LOW_OF_CEILING * ceiling):
            beside = "" if ceiling is None else f", where unseen real cases have {ceiling:.2f}"
            why.append(f"{metric} {value:.2f}{beside} ({meaning})")
    dropped, real = audit.get("dropped"), audit.get("real_dropped")
    if dropped is not None and dropped >= MANY_DROPPED and dropped >= 2 * (real or 0.0):
        beside = "" if real is None else f", where it would drop {100 * real:.0f} % of unseen real slices"
        why.append(f"the audit drops {100 * dropped:.0f} % of its samples{beside}")
    useful = audit.get("usefulness") or {}
    if useful.get("useful") is False:
        why.append(
            f"a network that learns from it alone reaches {useful['ratio']:.2f} of the Dice that real cases give "
            f"(below {useful['threshold']:g}): mixing it in is unlikely to help"
        )
    wanted = [cell["settings"]["num_synthetic"] for cell in results.cells("train") if pool["id"] in
              cell["needs"].values()]  # fmt: skip
    if audit and wanted and audit["kept"] < max(wanted):
        why.append(f"{audit['kept']} samples are left of {max(wanted)} that were asked for")
    if (sharp := values.get("sharpness")) is not None and sharp < BLURRED:
        why.append(f"its slices are blurred, with {sharp:.2f} of the fine detail of real ones")
    return why


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
    parts = ["<h3>Audits</h3>"]
    if any(cell["settings"]["bundle"] in FROM_REAL for cell in results.cells("pool")):
        why = "Pools of real slices are not audited: each is a training case, or all but its tumour is."
        parts.append(f"<p>{why}</p>")
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


def one_generator(results: Results) -> bool:
    """Whether there are samples of one generator alone, which then stand at the top."""
    return len({cell["settings"]["label"] for cell in results.cells("pool")}) == 1


def loss_section(results: Results) -> list[str]:
    """Losses of each generator, of its first fold, where the training's files were kept."""
    parts, shown = [], set()
    for cell in results.cells("generator"):
        s, file = cell["settings"], results.folder / "cells" / cell["id"] / "models" / "losses.csv"
        if s["label"] in shown or not file.is_file() or cell["id"] not in results.results:
            continue
        shown.add(s["label"])
        series = {name: values for name, values in read_series(file).items() if name not in ("epoch", "seconds")}
        cases = (results.values(cell["id"]) or {}).get("cases", "?")
        caption = (
            f"{s['label']}, trained on n = {cases} cases of fold {s['fold']}, seed {s['seed']}; "
            f"{len(series['iteration']):,} logged rows. Faint: as logged; dark: running median."
        )
        parts.append(html_figure(png_bytes(loss_figure(series)), caption, f"Losses of {s['label']}"))
    return ["<h3>Losses of the generators</h3>", *parts] if parts else []


def sheets(results: Results, folder: Path) -> list[str]:
    """Samples of each generator's first pool beside real slices; the others lie in the folders of their cells."""
    parts, shown = [], set()
    for cell in results.cells("pool"):
        label = cell["settings"]["label"]
        picture = results.folder / "cells" / cell["id"] / "pool" / "samples.png"
        if label in shown or not picture.is_file():
            continue
        shown.add(label)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, folder / f"samples_{cell['id'].rpartition('/')[2]}.png")
        n = (results.values(cell["id"]) or {}).get("samples", "?")
        audit = ", before the audit" if any(_place(c) == _place(cell) for c in results.cells("audit")) else ""
        caption = (
            f"Real training cases beside samples of {where(cell['settings'])}, at one scale and grey window: n = {n} "
            f"samples, seed {cell['settings']['seed']}, spread evenly over the pool{audit}. Examples; they measure "
            "nothing."
        )
        parts.append(html_figure(picture.read_bytes(), caption, f"Samples of {label}"))
    return ["<h2>Real beside synthetic</h2>", *parts] if parts else []
