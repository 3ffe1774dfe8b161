"""Plots of a run: losses while training, Dice of each patient in two arms, share of synthetic samples."""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..metrics.comparison import Runs, compare_paired
from ..runtime.errors import InputError
from .figures import COLOURS, new_figure, plain_style

_INK, _FAINT, _LINE = "#222222", "#9a9a9a", "#0072B2"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

Series = Mapping[str, np.ndarray]


def read_series(path: str | os.PathLike, index: str = "iteration") -> dict[str, np.ndarray]:
    """Read rows of numbers from CSV (with a header) or JSONL (one object a line, suffix .jsonl).

    Rows are sorted by `index`; of several rows with one index the last counts, because a resumed training
    writes the rows since its checkpoint again. Empty, null and missing values become NaN.

    Returns {column: float64 array}, all of one length, `index` among them.

    Raises `InputError` for a missing file, no rows, no `index` column and text where a number should be.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}", "a CSV or JSONL file", "name the file that the training wrote")
    with path.open(newline="", encoding="utf-8-sig") as lines:
        try:
            jsonl = path.suffix == ".jsonl"
            rows = [json.loads(line) for line in lines if line.strip()] if jsonl else list(csv.DictReader(lines))
            number = {
                float(row[index]): {
                    name: float("nan") if value in (None, "") else float(value) for name, value in row.items()
                }
                for row in rows
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} cannot be read: {type(error).__name__}: {error}",
                f"rows of numbers with a column {index!r}",
                "name the file that the training wrote; an unfinished last line may be deleted",
            ) from error
    if not number:
        raise InputError(f"{path} holds no rows", "one row or more", "train for one logged step at least")
    ordered = [number[key] for key in sorted(number)]
    names = list(dict.fromkeys(name for row in ordered for name in row))
    return {name: np.array([row.get(name, np.nan) for row in ordered]) for name in names}


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Median of the values (NaN left out) within `width` // 2 rows; NaN where the row itself is NaN."""
    half = width // 2
    padded = np.pad(values, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    result = np.full(len(values), np.nan)
    some = ~np.isnan(values)
    result[some] = np.nanmedian(windows[some], axis=1)
    return result


def loss_figure(series: Series, index: str = "iteration", title: str | None = None) -> Figure:
    """Draw each named loss over `index` in a panel of its own, since the terms have different units.

    Faint: the rows as logged; dark: their running median over a twentieth of the rows, from 40 rows on.
    A panel is logarithmic where all values are positive and span more than a factor of 30, and says so.

    series: as of `read_series`. Columns that hold no finite value are left out, and of those that
    have one now and then the rows between them.
    """
    names = [name for name in series if name != index and np.isfinite(series[name]).any()]
    if not names:
        raise InputError("no finite loss", "one column of numbers or more", "see the training's log")
    across = min(3, len(names))
    down = -(-len(names) // across)
    head = 34 if title else 0
    with plain_style():
        figure = new_figure(360 * across, 250 * down + head)
        figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - head / (250 * down + head)))
        grid = np.atleast_1d(figure.subplots(down, across, sharex=True, squeeze=False)).ravel()
        for axes in grid[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(grid, names, strict=False):
            x, y = series[index], np.where(np.isfinite(series[name]), series[name], np.nan)
            there = ~np.isnan(y)
            seen = y[there]
            if (there[1:] & there[:-1]).sum() < len(seen) / 2:  # measured now and then, as held-out figures are
                x, y = x[there], seen
            logarithmic = seen.min() > 0 and seen.max() > 30 * seen.min()
            smooth = len(y) >= 40
            axes.plot(x, y, color=_LINE, linewidth=0.7, alpha=0.3 if smooth else 1.0)
            if smooth:
                axes.plot(x, _running_median(y, len(y) // 20), color=_LINE, linewidth=1.3)
            if logarithmic:
                axes.set_yscale("log")
            axes.set_title(f"{name} (log scale)" if logarithmic else name, loc="left", color=_INK)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        for axes in grid[max(0, len(names) - across) : len(names)]:
            axes.set_xlabel(index, color=_INK)
            axes.tick_params(labelbottom=True)
        if title:
            figure.suptitle(title, x=0.01, y=0.99, ha="left", va="top", fontsize=9, weight="bold", color=_INK)
    return figure


def paired_dice_figure(
    reference: Runs, other: Runs, names: tuple[str, str] = ("real only", "real + synthetic"), measure: str = "Dice"
) -> Figure:
    """Draw each patient as a dot, one arm against the other, with the identity line.

    The dot is the patient's mean over seeds; with several seeds, a small open mark for each seed of both
    arms hangs on it by a thin line. Patients without a defined value in a run are left out, as in
    `compare_paired`, and counted in the title.

    Raises what `compare_paired` raises, and `InputError` where no patient is left.
    """
    summary = compare_paired(reference, other, names, resamples=1)
    patients = [patient for patient in sorted(reference[min(reference)]) if patient not in summary["excluded"]]
    if not patients:
        raise InputError("no patient with a value in all runs", "one patient or more", "see the evaluation")
    x, y = (
        np.array([np.mean([runs[seed][patient] for seed in runs]) for patient in patients])
        for runs in (reference, other)
    )
    seeds = sorted(set(reference) & set(other))
    several = len(reference) > 1 or len(other) > 1
    marks = {
        seed: (np.array([reference[seed][p] for p in patients]), np.array([other[seed][p] for p in patients]))
        for seed in (seeds if several else [])
    }
    everything = np.concatenate([x, y, *(value for pair in marks.values() for value in pair)])
    span = max(0.05, float(np.ptp(everything)))
    low, high = float(everything.min()) - 0.08 * span, float(everything.max()) + 0.08 * span
    with plain_style():
        figure = new_figure(640, 670)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        axes.plot([low, high], [low, high], color=_FAINT, linewidth=0.8, zorder=1)
        for number, (seed, (a, b)) in enumerate(marks.items()):
            axes.plot([x, a], [y, b], color=_FAINT, linewidth=0.5, alpha=0.6, zorder=2)
            axes.scatter(
                a, b, s=11, marker=_MARKERS[number % len(_MARKERS)], facecolor="none", edgecolor=COLOURS[4],
                linewidth=0.7, zorder=3, label=f"seed {seed}",
            )  # fmt: skip
        dot = "a patient, mean over seeds" if several else "a patient"
        axes.scatter(x, y, s=22, color=_LINE, linewidth=0, zorder=4, label=dot)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_xlabel(f"{measure}, {names[0]}", color=_INK)
        axes.set_ylabel(f"{measure}, {names[1]}", color=_INK)
        note: dict[str, Any] = {"color": _FAINT, "transform": axes.transAxes, "parse_math": False}
        axes.text(0.02, 0.98, f"better with {names[1]}", va="top", **note)
        axes.text(0.98, 0.02, f"better with {names[0]}", ha="right", **note)
        left_out = f", {len(summary['excluded'])} left out" if summary["excluded"] else ""
        axes.set_title(f"n = {len(patients)} patients{left_out}, {_seed_words(reference, other)}", loc="left")
        # Outside: a dot of the legend among the patients' would be taken for one of them.
        figure.legend(loc="outside lower center", ncols=len(marks) + 1, fontsize=6.5)
    return figure


def _seed_words(reference: Runs, other: Runs) -> str:
    def words(seeds: list[int]) -> str:
        return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"

    first, second = sorted(reference), sorted(other)
    return words(first) if first == second else f"{words(first)} against {words(second)}"


def share_figure(runs: Mapping[str, Series], title: str | None = None) -> Figure:
    """Draw the share of synthetic samples in each epoch's training batches, realised beside planned.

    runs: {name: {"epoch", "realised"[, "planned"]}} as of `read_series(path, "epoch")`; shares 0 to 1.
    """
    for name, series in runs.items():
        if missing := {"epoch", "realised"} - set(series):
            raise InputError(
                f"shares of {name!r} without {', '.join(sorted(missing))}",
                "the columns epoch, realised and, if known, planned",
                "name the file that the trainer wrote",
            )
    with plain_style():
        figure = new_figure(820, 330)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        for number, (name, series) in enumerate(runs.items()):
            colour = COLOURS[number % len(COLOURS)]
            if "planned" in series:
                axes.step(series["epoch"], 100 * series["planned"], where="mid", color=colour, linewidth=0.8)
            axes.plot(
                series["epoch"], 100 * series["realised"], color=colour, markersize=3, linestyle="none",
                marker=_MARKERS[number % len(_MARKERS)], label=name,
            )  # fmt: skip
        planned = any("planned" in series for series in runs.values())
        axes.set(ylim=(-4, 104), xlabel="epoch", ylabel="synthetic samples, %")
        axes.set_title(title or f"Dots: realised{'; lines: planned' if planned else ''}", loc="left", color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
