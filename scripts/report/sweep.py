"""The picture of a sweep: one condition changes from left to right, all else stays (Kebaili et al. 2024b, figure 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ..data.conditions import UNITS
from ..data.description import DatasetDescription
from ..pool.writing import load_sample, read_pool
from ..runtime.errors import InputError
from .figures import COLOURS, new_figure, plain_style, points, save_png
from .sheets import BACKGROUND, grey_window, mask_contours, outside_black, to_grey

_TEXT, _FAINT = "#eeeeee", "#aaaaaa"
_MARGIN, _GAP, _HEAD, _FOOT = 28, 8, 100, 40


def sweep_sheet(pool_dir: str | Path, groups: int = 6, path: str | Path | None = None) -> Path:
    """Write `sweep.png` in the pool: a row for each group, a column for each step.

    A tile is the slice through the centre that was asked for, with the contour of the mask and the box that was asked
    for; above the column stands what was asked for, under the tile what was measured (of the whole mask).

    Args:
        pool_dir: a finished pool that was drawn with a sweep as condition.
        groups: at most so many rows.
        path: another file to write to.

    Raises:
        InputError: the pool holds no sweep.
    """
    record = read_pool(pool_dir)
    samples = record["samples"]
    if not (samples[0]["condition"] or {}).get("sweep"):
        raise InputError(
            f"{pool_dir}, which holds no sweep",
            "a pool drawn with a sweep",
            """sample with --condition '{"sweep": {"feature": "volume", "start": ..., "stop": ..., "steps": 6}}'""",
        )
    shown = [sample for sample in samples if sample["condition"]["sweep"]["group"] < groups]
    figure = _figure(Path(pool_dir), record, shown)
    return save_png(figure, path or Path(pool_dir) / "sweep.png")


def _figure(folder: Path, record: dict, shown: list[dict], tile: int = 190) -> Figure:
    description = DatasetDescription(**record["dataset"])
    spacing = np.array([float(value or 1.0) for value in record["space"]["spacing"]])
    images, masks = [], []
    for sample in shown:
        image, label = load_sample(folder, sample["id"], description.num_image_channels)
        depth = int(np.clip(sample["condition"]["centre"][0] / spacing[0], 0, len(label) - 1))
        images.append(image[:1, depth])
        masks.append(label[depth] > 0)
    stack = np.stack(images)
    if any(record["space"]["use_mask_for_norm"] or []):
        stack = outside_black(stack, stack)
    window = grey_window(stack, (0.5, 99.5))[0]
    scale = spacing[1:] * tile / (spacing[1:] * stack.shape[2:]).max()  # pixels per voxel along height, width
    size = np.rint(scale * stack.shape[2:]).astype(int)
    sweep = shown[0]["condition"]["sweep"]["feature"]
    places = [(s["condition"]["sweep"]["group"], s["condition"]["sweep"]["step"]) for s in shown]
    rows, columns = (max(numbers) + 1 for numbers in zip(*places, strict=True))
    pitch = size + (_GAP + _FOOT // 2, _GAP)
    width = max(2 * _MARGIN + columns * pitch[1] - _GAP, 620)
    height = _HEAD + rows * pitch[0] + _FOOT
    contours, boxes = [], []
    with plain_style():
        figure = new_figure(int(width), int(height), background="#" + f"{BACKGROUND:02x}" * 3)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()

        def write(x: float, y: float, text: str, size: float = 12, colour: str = _FAINT, **more) -> None:
            axes.text(x, y, text, fontsize=points(size), color=colour, va="top", parse_math=False, **more)

        for image, mask, sample, (row, column) in zip(stack[:, 0], masks, shown, places, strict=True):
            top, left = np.array([_HEAD, _MARGIN]) + pitch * (row, column)
            axes.imshow(
                to_grey(image, window), cmap="gray", vmin=0, vmax=255, interpolation="bicubic", aspect="auto",
                extent=(left, left + size[1], top + size[0], top),
            )  # fmt: skip
            corner = np.array([left, top])
            contours += [(line + 0.5) * scale[::-1] + corner for line in mask_contours(mask)]
            centre, extent = (np.array(sample["condition"][name])[:0:-1] for name in ("centre", "extent"))
            low, high = ((centre + sign * extent / 2) / spacing[:0:-1] * scale[::-1] + corner for sign in (-1, 1))
            boxes.append(np.array([low, (high[0], low[1]), high, (low[0], high[1]), low]))
            write(left, top + size[0] + 3, _words(sweep, sample["features"][sweep]))
            if row == 0:
                asked = _words(sweep, sample["condition"][sweep])
                write(left, _HEAD - 18, asked, 13, _TEXT, weight="bold")
        axes.add_collection(LineCollection(boxes, color=_TEXT, linewidth=points(1), linestyle=(0, (3, 3))))
        axes.add_collection(LineCollection(contours, color=COLOURS[0], linewidth=points(1.4)))
        axes.set(xlim=(0, width), ylim=(height, 0))
        number = f"{rows} group{'' if rows == 1 else 's'}, n = {len(shown)} samples, none rejected"
        name = sweep.replace("_", " ")
        title = f"{record['provenance']['bundle']['name']}: {name} from left to right, {number}"
        write(_MARGIN, 18, title, 17, _TEXT, weight="bold")
        head = (
            "Above each column: what was asked for. Under each tile: what the whole mask measures. "
            f"Within a row the noise is the same, and only the {name} changes, with what follows from it."
        )
        write(_MARGIN, 44, head)
        foot = "the slice through the centre that was asked for; solid: the mask, dashed: the box that was asked for."
        write(_MARGIN, height - _FOOT + 10, f"{description.channel_names['0']}: {foot}")
    return figure


def _words(feature: str, value: float | list[float]) -> str:
    if isinstance(value, list):
        return ", ".join(f"{number:.0f}" for number in value) + UNITS[feature]
    words = f"{value:.2f}" if feature == "sphericity" else f"{value:,.0f}"
    return words + UNITS[feature]
