"""The picture of a generator's training, measured on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from .figures import COLOURS, new_figure, plain_style

LEFT_OUT = ("epochs", "minutes", "samples", "kept_epoch", "loss")


def draw_curve(points: Sequence[Mapping[str, float]], real: Mapping[str, float], title: str) -> Figure:
    """A panel for each figure against minutes of training, on a scale of doublings.

    Args:
        points: `{"minutes", ...}`, all with the same keys.
        real: what training cases reach against held-out ones, a dashed line in the panels of those names.
        title: of the whole.
    """
    names = [name for name in points[0] if name not in LEFT_OUT]
    with plain_style():
        figure = new_figure(300 * len(names), 330)
        figure.suptitle(title)
        for number, name in enumerate(names, start=1):
            axes = figure.add_subplot(1, len(names), number)
            axes.plot([p["minutes"] for p in points], [p[name] for p in points], "o-", color=COLOURS[6], markersize=3)
            if name in real:
                axes.axhline(real[name], linestyle="--", linewidth=0.8, color=COLOURS[4], label="training cases")
                axes.legend()
            axes.set(title=name.replace("_", " "), xlabel="minutes", xscale="log")
            if name in ("precision", "recall", "copies"):
                axes.set_ylim(-0.02, 1.02)
        figure.tight_layout()
    return figure
