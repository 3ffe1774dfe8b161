"""The figures of a pool as files: JSON for machines, a Markdown table and a picture of feature space for readers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..metrics.evaluate_pool import EvaluationSettings, evaluate_pool
from ..runtime.files import write_json, write_text
from .figures import COLOURS, new_figure, plain_style, points, save_png


def write_pool_metrics(
    pool: str | Path,
    dataset_dir: str | Path,
    output: str | Path | None = None,
    *,
    weights_inception: str | Path | None = None,
    weights_alexnet: str | Path | None = None,
    weights_vgg: str | Path | None = None,
    num_samples: int | None = None,
    settings: EvaluationSettings | None = None,
    progress: bool = True,
) -> Path:
    """Evaluate a pool and write `metrics.json`, `metrics.md` and `metrics.png` to `output` (the pool's folder).

    For the arguments and errors see `evaluate_pool`. Returns the path of the Markdown table.
    """
    record, components = evaluate_pool(
        pool,
        dataset_dir,
        weights_inception=weights_inception,
        weights_alexnet=weights_alexnet,
        weights_vgg=weights_vgg,
        num_samples=num_samples,
        settings=settings,
        progress=progress,
    )
    folder = Path(pool if output is None else output)
    write_json(folder / "metrics.json", record)
    save_png(feature_figure(components, record), folder / "metrics.png")
    return write_text(folder / "metrics.md", metrics_table(record))


def metrics_table(record: dict[str, Any]) -> str:
    """The figures as Markdown: a row each, a column a comparison, the numbers of items in the columns' heads."""
    pool, samples = record["pool"], record["pool"]["evaluated"]
    ceiling = len(record["held_out_cases"])
    lines = [
        f"# {record['dataset']}, fold {record['fold']}: pool {pool['name']} of {pool['bundle']['name']}",
        "",
        f"{samples} of {pool['samples']} samples ({_dropped_words(pool)}), "
        f"{len(record['training_cases'])} training cases, {ceiling} held-out cases.",
        f"In brackets: {record['intervals']}.",
        f"Data range: {record['data_range']['meaning']} (low {_numbers(record['data_range']['low'])}, "
        f"high {_numbers(record['data_range']['high'])}).",
        "",
    ]
    keys = [comparison["key"] for comparison in record["comparisons"]]
    sections: dict[str, list[dict[str, Any]]] = {}
    for figure in record["figures"]:
        title = f"Images, features of {figure['of']}" if "features" in figure else "Images, pair by pair"
        title = "Masks" if figure["of"].startswith("mask-") else title
        sections.setdefault(title, []).append(figure)
    for title, figures in sections.items():
        heads = {figure["comparison"]: (figure["n"], figure["groups"]) for figure in reversed(figures)}
        kind = "volumes" if title == "Masks" and pool["dimension"] == 3 else "slices"
        cells = [f"{key}: {_n(heads[key][0])} {kind} of {_groups(key, heads[key][1])}" for key in keys if key in heads]
        lines += [f"## {title}", "", "| figure | " + " | ".join(cells) + " |", "|---" * (len(cells) + 1) + "|"]
        rows: dict[str, dict[str, str]] = {}
        for figure in figures:
            n, _ = heads[figure["comparison"]]
            cell = _cell(figure) + ("" if figure["n"] == n else f" (n = {_n(figure['n'])})")
            rows.setdefault(_row_name(figure), {})[figure["comparison"]] = cell
        lines += [
            f"| {name} | " + " | ".join(row.get(key, "") for key in keys if key in heads) + " |"
            for name, row in rows.items()
        ]
        lines.append("")
    lines += [f"- {comparison['key']}: {comparison['meaning']}." for comparison in record["comparisons"]]
    warnings = dict.fromkeys(f"{f['name']}: {f['warning']}" for f in record["figures"] if f.get("warning"))
    lines += [f"- {note}" for note in record["notes"]] + [f"- {warning}." for warning in warnings]
    return "\n".join(lines) + "\n"


def _dropped_words(pool: dict[str, Any]) -> str:
    if pool["audited"]:
        return f"{pool['dropped']} dropped by the audit"
    return "no audit ran" + (f", {pool['dropped']} dropped otherwise" if pool["dropped"] else "")


def _row_name(figure: dict[str, Any]) -> str:
    arrow = {"higher": "↑", "lower": "↓"}[figure["better"]]
    name = figure["name"].replace(f",n={_n(figure['n'])}]", "]").replace("|", "\\|")
    return f"{name} {figure['unit']} {arrow}".replace("  ", " ")


def _n(pair: list[int]) -> str:
    return f"{pair[0]}/{pair[1]}"


def _groups(key: str, groups: list[int]) -> str:
    return f"{groups[0]} {'samples' if key.startswith('synthetic') else 'patients'}/{groups[1]} patients"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _cell(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "not defined"
    interval = figure["interval"]
    text = f"{figure['value']:.3g}" + (f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else " [too few]")
    identical = figure.get("identical_pairs")
    return text + (f", {identical} identical" if identical else "")


def feature_figure(components: dict[str, np.ndarray], record: dict[str, Any]) -> Figure:
    """Draw each set's slices on the two main axes of the training slices' features, one panel a set.

    components: name of set -> (slices, 2). The training slices lie behind every panel, in grey, and all panels
    share one frame: where grey is bare, the set leaves real slices out; where colour leaves the grey, it is new.
    """
    shown = [name for name in components if name != "training"]
    with plain_style():
        width = 440 * max(1, len(shown))
        figure = new_figure(width, 470)
        axes = figure.subplots(1, max(1, len(shown)), squeeze=False, sharex=True, sharey=True)[0]
        for axis, name, colour in zip(axes, shown, (COLOURS[4], COLOURS[6]), strict=False):
            for key, tint in (("training", "#b8b8b8"), (name, colour)):
                x, y = components[key].T
                size = min(14.0, 3 + 600 / math.sqrt(len(x) * 25))
                label = f"{key}, n = {len(x)} slices"
                axis.scatter(x, y, s=size, color=tint, alpha=0.7, linewidths=0, label=label, rasterized=True)
            axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=points(12), borderaxespad=0)
            axis.set_xlabel("first component")
        axes[0].set_ylabel("second component")
        title = f"{record['extractors'][0]}: principal components of the training slices' features"
        figure.suptitle(title, fontsize=points(13), x=0.01, ha="left")
        figure.subplots_adjust(left=104 / width, right=0.99, bottom=0.11, top=0.88, wspace=0.06)
    return figure
