"""One self-contained HTML page from a run's record.

The record is a dict that JSON can hold; `write_report` saves it as `run.json` beside the page, too. What is
optional may be left out, and its section goes too. Paths are absolute or relative to the page's folder.

    title           str
    command         str; optional, as are all below but dataset and segmentation
    started         str, e.g. "2025-01-31 14:05"
    seconds         {stage: seconds}
    device          str
    versions        {package: version}
    commit          str
    limits          [str]: what the reader must know before believing it, e.g. that the data are a phantom
    dataset         {"name", "channel_names", "labels", "training_cases": n, "test_cases": n, "fold", ...}
    generator       {"bundle", "settings": {...}, "parameters": n, "feature_extractor": name,
                     "losses_file": CSV or JSONL with a column "iteration"; "epoch" and "seconds" are not
                     drawn, the other columns are losses, ...}
    pool            {"samples": n, "kept": n, "dropped": n, "seed", ...}
    segmentation    {"settings": {...}, "arms": {name: {"share": 0 ... 1, "steps": iterations (optional),
                     "runs": [{"seed", "dice": {case: {label: value or None}}, "log": path (optional),
                     "shares_file": CSV or JSONL with columns epoch, realised[, planned] (optional)}]}}};
                     one arm has share 0: the reference. A case is one patient.
    pictures        {"samples": PNG of `scripts.report.sheets.sample_sheet`, any other name: PNG}; a value is
                     a path or {"path", "caption"}

`run.json` gains the key "comparison", as of `scripts.report.answer.compare_arms` without the single values.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from .answer import (
    answer,
    both_seeds_words,
    compare_arms,
    conclusion_words,
    interval_words,
    mean_and_spread,
    p_words,
    patients_words,
    signed,
)
from .figures import png_bytes, write_whole
from .html import document, escaped, html_figure, html_table, setting_rows
from .plots import loss_figure, paired_dice_figure, read_series, share_figure


def _file(path: str | os.PathLike, folder: Path, what: str) -> Path:
    found = folder / path  # an absolute path stays itself
    if not found.is_file():
        raise InputError(f"{what}: no file {found}", "a file", f"write it, or leave {what} out of the record")
    return found


def _sample_section(record: Mapping[str, Any], folder: Path) -> list[str]:
    parts = []
    for name, picture in record.get("pictures", {}).items():
        entry = picture if isinstance(picture, Mapping) else {"path": picture}
        png = _file(entry["path"], folder, f"pictures.{name}").read_bytes()
        if not png.startswith(b"\x89PNG"):
            raise InputError(f"pictures.{name}: {entry['path']} is no PNG", "a PNG file", "save it as PNG")
        caption = entry.get("caption", "")
        if name == "samples":
            data, pool = record["dataset"], record.get("pool", {})
            default = f"Slices of {data['name']}, fold {data.get('fold', 'not recorded')}, with their masks; "
            default += "n, the grey window and its source stand in the picture. "
            if pool:
                default += f"Pool: {pool.get('samples')} samples, seed {pool.get('seed')}. "
            caption = caption or default + "The slices shown are examples; they measure nothing."
        heading = "Real beside synthetic" if name == "samples" else name
        parts += [f"<h2>{escaped(heading)}</h2>", html_figure(png, caption or name, heading)]
    return parts


def _dice_section(record: Mapping[str, Any], compared: Mapping[str, Any]) -> list[str]:
    reference, data = compared["reference"], record["dataset"]["name"]
    parts = ["<h2>Dice on held-out cases</h2>"]
    for name, comparisons in compared["arms"].items():
        rows = [
            [
                measure, mean_and_spread(c["reference"]), mean_and_spread(c["other"]),
                "not defined" if c["difference"] is None else signed(c["difference"]),
                interval_words(c).removeprefix(f"{100 * c['level']:g} % interval "),
                "–" if c["p"] is None else p_words(c["p"]), c["n"], len(c["excluded"]),
                f"{c['better']} / {c['worse']} / {c['equal']}",
            ]
            for measure, c in comparisons.items()
        ]  # fmt: skip
        main = next(iter(comparisons.values()))
        seeds = both_seeds_words(main)
        caption = (
            f"{data}: “{name}” against “{reference}”, {patients_words(main['n'])}, {seeds}. Mean ± SD over "
            f"patients, each averaged over seeds first; interval: {100 * main['level']:g} % bootstrap "
            f"percentile, {main['resamples']:,} resamples of patients; p: Wilcoxon signed-rank, two-sided."
        )
        if len(rows) > 1:
            caption += f" {len(rows)} rows, not adjusted for their number."
        head = [
            "label",
            reference,
            name,
            "difference",
            "interval",
            "p",
            "n",
            "left out",
            "better / worse / equal",
        ]
        parts.append(html_table(head, rows, caption, numbers=(1, 2, 3, 4, 5, 6, 7, 8), strong=True))
        measure, runs = next(iter(compared["values"].items()))
        if main["n"]:
            figure = paired_dice_figure(runs[reference], runs[name], (reference, name), f"Dice ({measure})")
            caption = (
                f"{data}: Dice ({measure}) of each patient, “{name}” against “{reference}”; "
                f"{patients_words(main['n'])}, {seeds}. On the grey line both are equal. Difference "
                f"{signed(main['difference'])} ({interval_words(main)}). {conclusion_words(main)}"
            )
            parts.append(html_figure(png_bytes(figure), caption, f"Dice of each patient, {name} against {reference}"))
    parts.append(_seed_table(compared))
    return parts


def _seed_table(compared: Mapping[str, Any]) -> str:
    main, summary = next(iter(compared["summary"].items()))
    arms = {compared["reference"]: summary} | {
        name: comparisons[main]["other"] for name, comparisons in compared["arms"].items()
    }
    seeds = sorted({seed for arm in arms.values() for seed in arm["seed_means"]})
    rows = [
        [
            name, *(f"{arm['seed_means'][s]:.3f}" if s in arm["seed_means"] else "–" for s in seeds),
            "not known (one seed)" if arm["sd_over_seeds"] is None else f"{arm['sd_over_seeds']:.3f}",
            arm["n"],
        ]
        for name, arm in arms.items()
    ]  # fmt: skip
    head = ["arm", *(f"seed {seed}" for seed in seeds), "SD over seeds", "patients"]
    caption = f"Dice ({main}), mean over patients, for each training seed: what the intervals above do not cover."
    return html_table(head, rows, caption, numbers=tuple(range(1, len(head))))


def _loss_section(record: Mapping[str, Any], folder: Path) -> list[str]:
    generator, parts = record.get("generator", {}), []
    if "losses_file" in generator:
        series = read_series(_file(generator["losses_file"], folder, "generator.losses_file"))
        series = {name: values for name, values in series.items() if name not in ("epoch", "seconds")}
        seed = generator.get("settings", {}).get("seed", generator.get("seed", "not recorded"))
        caption = (
            f"{generator.get('bundle', 'Generator')} on {record['dataset']['name']}, "
            f"n = {record['dataset'].get('training_cases', 'not recorded')} training cases, seed {seed}; "
            f"{len(series['iteration']):,} logged rows. Faint: as logged; dark: running median."
        )
        parts += [
            "<h2>Losses of the generator</h2>",
            html_figure(png_bytes(loss_figure(series)), caption, "Losses"),
        ]
    shares = {
        f"{name}, seed {run['seed']}": read_series(
            _file(run["shares_file"], folder, f"shares_file of {name!r}, seed {run['seed']}"), "epoch"
        )
        for name, arm in record["segmentation"]["arms"].items()
        for run in arm["runs"]
        if "shares_file" in run
    }
    if shares:
        caption = (
            f"Share of synthetic samples in the training batches of each epoch; {record['dataset']['name']}, "
            f"n = {len(shares)} runs, seeds in the legend."
        )
        figure = png_bytes(share_figure(shares))
        parts += [
            "<h2>Share of synthetic samples</h2>",
            html_figure(figure, caption, "Share of synthetic samples"),
        ]
    return parts


def _run_section(record: Mapping[str, Any]) -> list[str]:
    parts = ["<h2>What was run</h2>"]
    if "command" in record:
        parts.append(f"<pre>{escaped(record['command'])}</pre>")
    if seconds := record.get("seconds"):
        total = sum(seconds.values())
        rows = [[stage, f"{value:,.1f}"] for stage, value in seconds.items()]
        rows.append([f"all stages ({int(total // 60)} min {int(total % 60):02d} s)", f"{total:,.1f}"])
        caption = f"Wall-clock time of each stage, one run, on {record.get('device', 'a device not recorded')}."
        parts.append(html_table(["stage", "seconds"], rows, caption, numbers=(1,)))
    runs = [
        [
            name,
            f"{100 * arm['share']:g} %",
            run["seed"],
            arm.get("steps", "not recorded"),
            run.get("log", "–"),
        ]
        for name, arm in record["segmentation"]["arms"].items()
        for run in arm["runs"]
    ]
    head = ["arm", "synthetic share", "seed", "training steps", "log"]
    parts.append(html_table(head, runs, "Every segmentation run.", numbers=(1, 2, 3)))
    for name in ("dataset", "generator", "pool", "segmentation", "versions"):
        values = {key: value for key, value in record.get(name, {}).items() if key != "arms"}
        if rows := setting_rows(values):
            parts += [f"<h3>{name.capitalize()}</h3>", html_table([], rows)]
    return parts


def _limits(record: Mapping[str, Any], compared: Mapping[str, Any]) -> list[str]:
    """List the given limits and those that follow from the record itself."""
    summary = next(iter(compared["summary"].values()))
    limits = list(record.get("limits", []))
    limits.append("The intervals and p values cover the choice of patients, not of training seeds, fold or pool.")
    seeds = min(len(arm["runs"]) for arm in record["segmentation"]["arms"].values())
    if seeds < 3:
        limits.append(f"{seeds} training seed{'' if seeds == 1 else 's'} in an arm: the spread is hardly known.")
    if summary["n"] < 20:
        limits.append(
            f"{patients_words(summary['n'])}: with so few, bootstrap percentile intervals are shorter than "
            "they say (a nominal 95 % covers about 89 % for 8 normal values); a difference is named only "
            "where the rank test agrees."
        )
    if len(compared["labels"]) > 1 or len(compared["arms"]) > 1:
        limits.append("Several labels or arms were compared; intervals and p values are not adjusted for that.")
    return limits


def _patient_table(compared: Mapping[str, Any]) -> list[str]:
    measure, arms = next(iter(compared["values"].items()))
    columns = [(name, seed) for name, runs in arms.items() for seed in sorted(runs)]
    patients = sorted(next(iter(arms[compared["reference"]].values())))
    rows = []
    for patient in patients:
        values = [arms[name][seed][patient] for name, seed in columns]
        rows.append([patient, *("–" if v is None or math.isnan(v) else f"{v:.3f}" for v in values)])
    head = ["patient", *(f"{name}, seed {seed}" for name, seed in columns)]
    caption = f"Dice ({measure}); {patients_words(len(patients))}; –: not defined."
    return ["<h2>Each patient</h2>", html_table(head, rows, caption, numbers=tuple(range(1, len(head))))]


def _page(record: Mapping[str, Any], folder: Path, compared: Mapping[str, Any]) -> str:
    about = [record["dataset"]["name"], f"fold {record['dataset'].get('fold', 'not recorded')}"]
    about += [str(record[key]) for key in ("device", "started") if key in record]
    about += [f"commit {record['commit']}"] if "commit" in record else []
    body = [
        f"<h1>{escaped(record['title'])}</h1>",
        f'<p class="about">{escaped(" · ".join(about))}</p>',
        '<div class="answer">',
        *(f"<p>{escaped(paragraph)}</p>" for paragraph in answer(record, compared).splitlines()),
        "</div>",
        *_sample_section(record, folder),
        *_dice_section(record, compared),
        *_loss_section(record, folder),
        "<h2>Limits</h2>",
        f"<ul>{''.join(f'<li>{escaped(limit)}</li>' for limit in _limits(record, compared))}</ul>",
        *_run_section(record),
        *_patient_table(compared),
    ]
    return document(record["title"], body)


def write_report(record: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Write the page of a run record (layout: see the module), `run.json` beside it; returns the page's path.

    Raises `InputError` for missing parts, files that do not exist, no reference arm and arms over different
    patients; nothing is written then.
    """
    path = Path(path)
    if missing := [key for key in ("title", "dataset", "segmentation") if key not in record]:
        raise InputError(
            f"a run record without {', '.join(missing)}", "title, dataset and segmentation", "fill the record"
        )
    compared = compare_arms(record)
    page = _page(record, path.parent, compared)
    content = _plain({**record, "comparison": {key: compared[key] for key in compared if key != "values"}})
    write_whole((json.dumps(content, indent=1, allow_nan=False) + "\n").encode(), path.with_name("run.json"))
    return write_whole(page.encode(), path)


def _plain(value: Any) -> Any:
    """Make what JSON holds: paths as text, NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value
