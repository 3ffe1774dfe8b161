"""Obedience of a pool in words and as a picture: asked-for against measured volume and centre."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..data.conditions import FEATURES, to_vector
from ..metrics.obedience import MEASURES, summarise_obedience
from ..pool.writing import read_pool
from ..runtime.files import write_json
from .figures import COLOURS, new_figure, plain_style, save_png

_INK, _FAINT, _DOT = "#222222", "#9a9a9a", COLOURS[6]
AXES = ("depth", "height", "width")


def report_obedience(pool_dir: str | Path) -> str:
    """Measure how far a conditional generator's masks are from what was asked for, in volume, place and size.

    Prints the answer with n, and writes it as obedience.json and obedience.png into the pool.

    Args:
        pool_dir: A finished pool of volumes, sampled from a conditional generator such as sbldm.

    Raises:
        InputError: the pool is not finished, or is not of volumes that were asked for something.

    Example:
        synthaug obedience pool_large
    """
    folder = Path(pool_dir)
    record = read_pool(folder)
    summary = summarise_obedience(record)
    words = obedience_words(summary)
    save_png(obedience_figure(record, summary), folder / "obedience.png")
    path = write_json(folder / "obedience.json", {"pool": folder.name, "words": words, **summary})
    return f"{words}\n{path}\n{path.with_suffix('.png')}"


def obedience_words(summary: Mapping[str, Any]) -> str:
    """Say what `summarise_obedience` found, with n and the comparison, one line a measure."""
    percent = f"{100 * summary['level']:g} %"
    lines = [f"One trained generator, {_count(summary)}."]
    for name, measure in MEASURES.items():
        found, unit = summary["measures"][name], measure.unit
        low, high = (_number(value) for value in found["quartiles"])
        line = f"{measure.words}: median {_number(found['median'])}{unit} (quartiles {low} to {high}; "
        if found["interval"] is None:
            line += "too few for an interval)"
        else:
            low, high = (_number(value) for value in found["interval"])
            line += f"{percent} interval of the median {low} to {high})"
        if summary["rejected"]:
            line += f", {_number(found['median_with_rejected'])}{unit} with the rejected counted as empty"
        low, high = (_number(value) for value in found["shuffled"]["range"])
        line += f"; with shuffled requests {_number(found['shuffled']['median'])}{unit} ({percent} of "
        line += f"{summary['shuffles']} shuffles: {low} to {high})"
        verdict = {
            "closer": ": closer than shuffled",
            "farther": ": farther than shuffled",
            "undecided": ": not told apart from shuffled",
            "too few": ": too few to tell them apart",
            None: "",
        }[found["verdict"]]
        lines.append(line + verdict + ".")
    unit = f"groups of a sweep over {summary['sweep']}" if summary["sweep"] else "samples"
    lines.append(
        f"The intervals cover the choice of {unit} ({summary['groups']}), not another training of the generator or "
        "other requests."
    )
    if summary["rejected"]:
        lines.append(
            f"{summary['rejected']} of {summary['candidates']} candidates had fewer than {summary['min_foreground']} "
            "voxels of mask and are not in the pool: what is kept is a selection."
        )
    return "\n".join(lines)


def obedience_figure(record: Mapping[str, Any], summary: Mapping[str, Any]) -> Figure:
    """Draw each sample as a dot: volume, and centre along each axis, measured against asked for.

    record: of the pool; summary: of `summarise_obedience`.
    """
    asked, measured = (
        np.array([to_vector(sample[key]) for sample in record["samples"]]) for key in ("condition", "features")
    )
    found = measured[:, 0] > 0
    with plain_style():
        figure = new_figure(1320, 390)
        figure.set_layout_engine("constrained")
        volume, *places = figure.subplots(1, 4)
        _scatter(volume, asked[found, 0], measured[found, 0], "volume, mm³", logarithmic=True)
        if not found.all():  # a logarithm has no place for them
            bottom = np.full((~found).sum(), volume.get_ylim()[0])
            volume.plot(
                asked[~found, 0], bottom, "x", color=COLOURS[4], markersize=4, clip_on=False, label="empty mask"
            )
            volume.legend(loc="upper left")
        factor = summary["measures"]["volume_factor"]
        medians = _number(factor["median"]), _number(factor["shuffled"]["median"])
        volume.set_title(f"median factor {medians[0]}, {medians[1]} with shuffled requests", loc="left")
        distance = summary["measures"]["centre_distance"]
        places[0].set_title(f"median distance of the centres {_number(distance['median'])} mm", loc="left")
        for name, axes, column in zip(AXES, places, range(9)[FEATURES["centre"]], strict=True):
            _scatter(axes, asked[found, column], measured[found, column], f"centre along {name}, mm")
        figure.suptitle(_count(summary), x=0.01, ha="left", fontsize=9, weight="bold", color=_INK)
    return figure


def _scatter(axes: Axes, asked: np.ndarray, measured: np.ndarray, words: str, logarithmic: bool = False) -> None:
    both = np.concatenate([asked, measured])
    low, high = (both.min(), both.max()) if both.size else (1.0, 10.0)
    margin = 0.05 * (high - low) + 1
    low, high = (low / 1.3, high * 1.3) if logarithmic else (low - margin, high + margin)
    axes.plot([low, high], [low, high], color=_FAINT, linewidth=0.8, zorder=1)
    axes.scatter(asked, measured, s=12, color=_DOT, alpha=0.6, linewidth=0, zorder=2)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_formatter(NullFormatter())
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel(f"asked for: {words}", color=_INK)
    axes.set_ylabel("measured", color=_INK)


def _count(summary: Mapping[str, Any]) -> str:
    words = f"n = {summary['n']} samples, {summary['empty']} with an empty mask"
    if summary["sweep"]:
        words += f", in {summary['groups']} groups of a sweep over {summary['sweep']}"
    return f"{words}, {summary['rejected']} of {summary['candidates']} candidates rejected"


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:#.3g}".rstrip(".")
