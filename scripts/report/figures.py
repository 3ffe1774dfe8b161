"""How every figure of a report looks, and how it becomes the same PNG bytes every time."""

import io
import os
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito (2008): told apart with any common colour blindness, and on grey.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")

# A power of two, so that a width in pixels survives the division to inches and back.
DPI = 128

_STYLE = {
    "figure.dpi": DPI,
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
}


def plain_style() -> AbstractContextManager[None]:
    """Matplotlib's defaults and the report's type, whatever the user's matplotlibrc holds."""
    return matplotlib.style.context(["default", _STYLE])


def new_figure(width: int, height: int, background: str = "white") -> Figure:
    """Make an empty figure of `width` x `height` pixels that pyplot does not know."""
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=background)


def points(pixels: float) -> float:
    """Convert pixels of these figures to typographic points, the unit of matplotlib's type and lines."""
    return pixels * 72 / DPI


def png_bytes(figure: Figure) -> bytes:
    """Draw a figure as RGB PNG without time stamp or software name: same figure, same bytes."""
    with plain_style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_whole(content: bytes, path: str | os.PathLike) -> Path:
    """Write a file under a temporary name and rename it, so that no reader meets half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return path


def save_png(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure to `path` as PNG, see `png_bytes`."""
    return write_whole(png_bytes(figure), path)
