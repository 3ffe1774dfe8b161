"""Figures of an experiment: a measure against a number, and differences from real only with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .figures import COLOURS, new_figure, plain_style

_INK = "#222222"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Yellow is too faint for a line on white.
_LINES = tuple(colour for colour in COLOURS if colour != "#F0E442")


class Point(NamedTuple):
    """A mean over patients at `x`, and its interval if there are enough of them."""

    x: float
    mean: float
    interval: Sequence[float] | None


class Panel(NamedTuple):
    """Lines over a number, arms that do not depend on it, and where all lines start."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    levels: Mapping[str, Point]
    start: tuple[str, Point] | None = None


class Difference(NamedTuple):
    """A row of the forest: what is compared, the mean difference and its interval, what it allows to say."""

    name: str
    difference: float
    interval: Sequence[float] | None
    conclusion: str


def number_figure(panels: Sequence[Panel], xlabel: str, ylabel: str) -> Figure:
    """Draw each arm as a line over a number; arms that do not depend on it as dashed lines.

    Bars are intervals of the mean over patients. Arms are set apart a little along x so that bars do not hide each
    other.
    """
    names = list(dict.fromkeys(name for panel in panels for name in (*panel.lines, *panel.levels)))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    with plain_style():
        figure = new_figure(max(640, 460 * across + 40), 400 * down + 70)
        figure.set_layout_engine("constrained")
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes in grid.ravel()[len(panels) :]:
            axes.set_axis_off()
        handles = {}
        for axes, panel in zip(grid.ravel(), panels, strict=False):
            shown = [point for points in panel.lines.values() for point in points]
            if panel.start:
                name, point = panel.start
                shown.append(point)
                style = {"color": _INK, "marker": "D", "linestyle": "none", "zorder": 4}
                handles[name] = axes.errorbar(
                    [point.x], [point.mean], _bars([point]), markersize=5, elinewidth=0.8, capsize=2, **style
                )
            places = sorted({point.x for point in shown})
            step = (max(places) - min(places)) / 60 if len(places) > 1 else 0.01
            for name, points in panel.lines.items():
                number = names.index(name)
                style = {"color": _LINES[number % len(_LINES)], "marker": _MARKERS[number % len(_MARKERS)]}
                x = np.array([point.x for point in points]) + step * (
                    list(panel.lines).index(name) - (len(panel.lines) - 1) / 2
                )
                if panel.start:
                    axes.plot([0, x[0]], [panel.start[1].mean, points[0].mean], color=style["color"], linewidth=1.2)
                handles[name] = axes.errorbar(
                    x, [point.mean for point in points], _bars(points), markersize=4, linewidth=1.2, elinewidth=0.8,
                    capsize=2, **style,
                )  # fmt: skip
            for name, level in panel.levels.items():
                colour = _LINES[names.index(name) % len(_LINES)]
                handles[name] = axes.axhline(level.mean, color=colour, linestyle="--", linewidth=1.1)
            axes.set_title(panel.title, loc="left", color=_INK)
            axes.set_xticks(places)
            axes.set_xlabel(xlabel, color=_INK)
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel, color=_INK)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(3 * across, 6, len(handles))
        )
    return figure


def _bars(points: Sequence[Point]) -> np.ndarray:
    intervals = [point.interval or (point.mean, point.mean) for point in points]
    low, high = np.array(intervals).T
    mean = np.array([point.mean for point in points])
    return np.maximum(0, np.stack([mean - low, high - mean]))


def difference_figure(groups: Mapping[str, Sequence[Difference]], xlabel: str) -> Figure:
    """Draw every difference from real only as a dot with its interval, a panel for each segmenter.

    Filled: the interval leaves out 0 and the adjusted test agrees; open: it cannot be told.
    """
    count = sum(len(rows) for rows in groups.values())
    with plain_style():
        figure = new_figure(900, 30 * count + 50 * len(groups) + 60)
        figure.set_layout_engine("constrained")
        grid = figure.subplots(
            len(groups), 1, squeeze=False, sharex=True, height_ratios=[len(rows) + 1 for rows in groups.values()]
        )
        for axes, (title, rows) in zip(grid[:, 0], groups.items(), strict=True):
            axes.axvline(0, color="#555555", linewidth=1.2, zorder=1)
            for place, row in enumerate(rows):
                told = row.conclusion in ("higher", "lower")
                colour = COLOURS[6] if told else "#555555"
                if row.interval:
                    axes.plot(row.interval, [place, place], color=colour, linewidth=1.4, zorder=2)
                axes.scatter(
                    row.difference, place, s=26, zorder=3, edgecolor=colour, facecolor=colour if told else "white"
                )
            axes.set_yticks(range(len(rows)), [row.name for row in rows])
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_title(title, loc="left", color=_INK)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="#e6e6e6", linewidth=0.6, zorder=0)
        grid[-1, 0].set_xlabel(xlabel, color=_INK)
    return figure
