"""Sample sheets: slices beside the same slices with the contours of their masks, real above synthetic."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from skimage.measure import find_contours

from ..runtime.errors import InputError
from .figures import COLOURS, new_figure, plain_style, points, save_png

BACKGROUND = 17  # grey level of the sheet: dark, yet not the black of the images, so that their frame shows
_TEXT, _FAINT = "#eeeeee", "#aaaaaa"
_MARGIN, _PAIR_GAP, _GAP = 28, 2, 16


class SheetRow(NamedTuple):
    """One group of slices, e.g. "synthetic, seed 0".

    images (slices channels height width) real values; labels (slices height width) integers; captions: one
    short text a slice, e.g. "LGG_003, slice 41", or None.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    captions: Sequence[str] | None = None


class SheetLayout(NamedTuple):
    """Where everything lies, in pixels from the top left.

    `tiles[row][slice][channel]` is (left, top) of the bare slice; the slice with contours starts
    `pair_step` pixels to its right. `scale` is the enlargement.
    """

    width: int
    height: int
    scale: float
    pair_step: int
    tiles: list[list[list[tuple[int, int]]]]
    headings: list[int]


def layout_sheet(
    rows: Sequence[SheetRow], tile: int, columns: int, header: int = 0, footer: int = 0, minimum_width: int = 0
) -> SheetLayout:
    """Place the slices of all rows at one enlargement, so that sizes compare between rows."""
    longest = max(max(row.images.shape[2:]) for row in rows)
    scale = tile / longest
    cell_height = round(max(row.images.shape[2] for row in rows) * scale)
    cell_width = round(max(row.images.shape[3] for row in rows) * scale)
    pair_step = cell_width + _PAIR_GAP
    channels = rows[0].images.shape[1]
    left = _MARGIN + (20 if channels > 1 else 0)
    across = min(columns, max(len(row.images) for row in rows))
    column_step = 2 * cell_width + _PAIR_GAP + _GAP
    top, tiles, headings = _MARGIN + header, [], []
    for row in rows:
        headings.append(top)
        top += 28
        line_height = channels * (cell_height + _PAIR_GAP) + (20 if row.captions else 0) + 10
        placed = []
        for index in range(len(row.images)):
            line, column = divmod(index, across)
            x, y = left + column * column_step, top + line * line_height
            placed.append([(x, y + channel * (cell_height + _PAIR_GAP)) for channel in range(channels)])
        tiles.append(placed)
        top += line_height * -(-len(row.images) // across) + 8
    width = max(left + across * column_step - _GAP + _MARGIN, minimum_width)
    return SheetLayout(width, top + footer + _MARGIN // 2, scale, pair_step, tiles, headings)


def _checked(
    rows: Sequence[SheetRow | tuple], labels: Mapping[str, int | Sequence[int]], channel_names: Sequence[str]
) -> list[SheetRow]:
    groups = [SheetRow(*row) for row in rows]
    groups = [row._replace(images=np.asarray(row.images), labels=np.asarray(row.labels)) for row in groups]
    if not groups:
        raise InputError("a sample sheet without rows", "one row or more", "pass the real slices first")
    known = {0, *(int(value) for values in labels.values() for value in np.atleast_1d(values))}
    for row in groups:
        images, masks = row.images, row.labels
        if images.ndim != 4 or masks.shape != (images.shape[0], *images.shape[2:]) or not len(images):
            raise InputError(
                f"row {row.name!r} with images {images.shape} and labels {masks.shape}",
                "images (slices, channels, height, width), labels (slices, height, width), not empty",
                "choose the slices of volumes before they are drawn",
            )
        if images.shape[1] != len(channel_names):
            raise InputError(
                f"row {row.name!r} with {images.shape[1]} channels",
                f"{len(channel_names)} channels: {', '.join(channel_names)}",
                "pass channel_names and slices of the same data set",
            )
        if not np.isfinite(images).all():
            raise InputError(f"row {row.name!r} holds NaN or infinite values", "finite values", "mend the images")
        if unknown := sorted({int(value) for value in np.unique(masks)} - known):
            raise InputError(
                f"row {row.name!r} with label values {unknown}",
                f"label values {sorted(known)}",
                "pass the labels of this data set's dataset.json",
            )
        if row.captions is not None and len(row.captions) != len(images):
            raise InputError(
                f"row {row.name!r} with {len(row.captions)} captions",
                f"one caption for each of its {len(images)} slices",
                "pass as many captions as slices",
            )
    return groups


def grey_window(images: np.ndarray, percentiles: tuple[float, float]) -> list[tuple[float, float]]:
    """Give (black, white) of each channel: percentiles over all pixels.

    images: (slices channels height width). A constant channel gets a window of width 1 and is drawn black.
    """
    flat = np.moveaxis(images, 1, 0).reshape(images.shape[1], -1).astype(np.float64)
    low, high = np.percentile(flat, percentiles, axis=1)
    return [(a, b if b > a else a + 1.0) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def to_grey(image: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map an image linearly from `window` to 0 ... 255 (uint8); values outside are clipped."""
    low, high = window
    scaled = (np.asarray(image, dtype=np.float64) - low) / (high - low)
    return np.rint(255 * np.clip(scaled, 0.0, 1.0)).astype(np.uint8)


def outside_black(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Show what nnU-Net masked, exactly 0 in every channel, as the darkest tissue and not as the mean one.

    images, reference: (slices channels height width); the darkest tissue is that of `reference`.
    """
    outside = (images == 0).all(axis=1, keepdims=True)
    return np.where(outside, reference.min(axis=(0, 2, 3), keepdims=True), images)


def mask_contours(mask: np.ndarray) -> list[np.ndarray]:
    """Trace the borders of a binary mask (height width), halfway between inner and outer pixel centres.

    Returns closed lines, each (points, 2) as x, y in pixels with the first pixel's centre at (0, 0).
    """
    padded = np.pad(mask.astype(np.float64), 1)  # so that a mask at the image's edge has a closed border
    return [line[:, ::-1] - 1.0 for line in find_contours(padded, 0.5)]


def _enlarge(grey: np.ndarray, scale: float) -> np.ndarray:
    size = (round(grey.shape[1] * scale), round(grey.shape[0] * scale))
    return np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))


def draw_sheet(
    rows: Sequence[SheetRow | tuple],
    labels: Mapping[str, int | Sequence[int]],
    channel_names: Sequence[str] | None = None,
    title: str | None = None,
    percentiles: tuple[float, float] = (0.5, 99.5),
    window: Sequence[tuple[float, float]] | None = None,
    tile: int = 160,
    columns: int = 4,
    unit: str = "slice",
    origin: str = "set by hand",
    scale: str = "",
) -> Figure:
    """Draw slices in pairs, bare and with contours, all rows in the grey window of the first one.

    Args:
        rows: `SheetRow`s or (name, images, labels[, captions]) tuples; images (slices channels height width)
            in any unit shared by all rows, labels (slices height width) integers, array row 0 at the top. The
            real slices come first.
        labels: as in dataset.json, name -> value or, for a region, values; background (0) is left out.
        channel_names: one name a channel, or None to number them; each channel is drawn.
        title: heading of the sheet.
        percentiles: of all pixels of the first row, per channel: black and white of every row.
        window: (black, white) a channel in the images' unit, instead of percentiles.
        tile: largest side of a slice on the sheet, in pixels.
        columns: slices side by side before a new line starts.
        unit: what one of them is called, "slice" or "volume".
        origin: where `window` comes from, for the caption.
        scale: what the images' intensities are where they are not the files' own, for the caption.

    Returns a matplotlib `Figure`; `sample_sheet` writes it, TensorBoard's `add_figure` takes it as it is.

    Raises `InputError` for shapes that do not fit, values that are not finite and unknown labels.
    """
    if channel_names is None:
        shape = np.shape(rows[0][1]) if rows else ()
        channel_names = [f"channel {index}" for index in range(shape[1] if len(shape) > 1 else 0)]
    groups = _checked(rows, labels, channel_names)
    outlines = [(name, np.atleast_1d(values)) for name, values in labels.items() if np.any(values)]
    if window is None:
        window = grey_window(groups[0].images, percentiles)
        origin = f"{percentiles[0]:g}th to {percentiles[1]:g}th percentile of “{groups[0].name}”"
    ranges = "; ".join(
        f"{name}: {low:.3g} to {high:.3g} {scale}".rstrip()
        for name, (low, high) in zip(channel_names, window, strict=True)
    )
    caption = (
        f"Each pair: the {unit} as it is, and the same {unit} with the contours of its mask. "
        f"Grey window, the same for every row: {ranges} ({origin})."
    )
    minimum_width = 560
    draft = layout_sheet(groups, tile, columns, minimum_width=minimum_width)
    lines = textwrap.wrap(caption, width=int((draft.width - 2 * _MARGIN) / 6.6))
    heading = textwrap.wrap(title or "", width=int((draft.width - 2 * _MARGIN) / 12))
    header = 34 * len(heading) + 30
    layout = layout_sheet(groups, tile, columns, header, 17 * len(lines) + 6, minimum_width)

    canvas = np.full((layout.height, layout.width), BACKGROUND, dtype=np.uint8)
    contours: list[list[np.ndarray]] = [[] for _ in outlines]
    for row, places in zip(groups, layout.tiles, strict=True):
        for image, label, place in zip(row.images, row.labels, places, strict=True):
            borders = [mask_contours(np.isin(label, values)) for _, values in outlines]
            for channel, (left, top) in enumerate(place):
                grey = _enlarge(to_grey(image[channel], window[channel]), layout.scale)
                for start in (left, left + layout.pair_step):
                    canvas[top : top + grey.shape[0], start : start + grey.shape[1]] = grey
                # The centre of pixel i of a slice lies at (i + 1/2) scale - 1/2 after the enlargement.
                shift = np.array([left + layout.pair_step, top]) + 0.5 * layout.scale - 0.5
                for lines_of_label, border in zip(contours, borders, strict=True):
                    lines_of_label.extend(line * layout.scale + shift for line in border)

    with plain_style():
        figure = new_figure(layout.width, layout.height, background="#" + f"{BACKGROUND:02x}" * 3)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(np.repeat(canvas[..., None], 3, axis=2), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for index, lines_of_label in enumerate(contours):
            axes.add_collection(LineCollection(lines_of_label, **_line(index)), autolim=False)
        _write_texts(axes, groups, layout, heading, [name for name, _ in outlines], channel_names, lines, unit)
    return figure


def _line(index: int) -> dict:
    # More labels than colours: the second round is dashed.
    style = ("solid", (0, (3, 1.5)), (0, (1, 1)))[index // len(COLOURS) % 3]
    return {"color": COLOURS[index % len(COLOURS)], "linewidth": points(1.4), "linestyle": style}


def _write_texts(
    axes: Axes,
    rows: Sequence[SheetRow],
    layout: SheetLayout,
    title: Sequence[str],
    names: Sequence[str],
    channel_names: Sequence[str],
    caption: Sequence[str],
    unit: str,
) -> None:
    """Write title, legend, row names with n, slice captions, channel names and the caption."""

    def write(x: float, y: float, text: str, size: float, colour: str = _TEXT, **more) -> None:
        axes.text(x, y, text, fontsize=points(size), color=colour, va="top", parse_math=False, **more)

    top = _MARGIN
    for line in title:
        write(_MARGIN, top, line, 19, weight="bold")
        top += 34
    x = float(_MARGIN)
    for index, name in enumerate(names):
        axes.add_line(Line2D([x, x + 24], [top + 7, top + 7], **{**_line(index), "linewidth": points(2.4)}))
        write(x + 32, top, name, 13)
        x += 32 + 8.2 * len(name) + 26
    for row, heading, places in zip(rows, layout.headings, layout.tiles, strict=True):
        count = f"n = {len(row.images)} {unit if len(row.images) == 1 else unit + 's'}"
        write(_MARGIN, heading + 4, f"{row.name}, {count}", 14, weight="bold")
        for index, place in enumerate(places):
            if row.captions is not None:
                bottom = place[-1][1] + round(row.images.shape[2] * layout.scale)
                write(place[0][0], bottom + 4, row.captions[index], 11, _FAINT)
            if len(channel_names) > 1 and place[0][0] == places[0][0][0]:
                for name, (left, y) in zip(channel_names, place, strict=True):
                    middle = y + round(row.images.shape[2] * layout.scale / 2)
                    axes.text(
                        left - 6, middle, name, fontsize=points(12), color=_FAINT, rotation=90, ha="right",
                        va="center", parse_math=False,
                    )  # fmt: skip
    for number, line in enumerate(caption):
        write(_MARGIN, layout.height - _MARGIN // 2 - 17 * (len(caption) - number), line, 12, _FAINT)


def sample_sheet(
    rows: Sequence[SheetRow | tuple],
    path: str | os.PathLike,
    title: str | None = None,
    *,
    labels: Mapping[str, int | Sequence[int]],
    **settings,
) -> Path:
    """Write the sheet that `draw_sheet` draws (same arguments, same errors) as PNG; returns its path."""
    return save_png(draw_sheet(rows, labels, title=title, **settings), path)
