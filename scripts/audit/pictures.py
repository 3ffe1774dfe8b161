"""The picture of an audit: what each check drops, of samples and of real cases, and the samples themselves."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..pool.adopt import origin
from ..report.figures import COLOURS, new_figure, plain_style, points
from ..report.sheets import grey_window, mask_contours

if TYPE_CHECKING:
    from torch import Tensor

    from .result import AuditResult
    from .thresholds import Check

_INK, _FAINT = "#222222", "#777777"
_POOL, _REAL = COLOURS[4], COLOURS[6]
TITLES = {
    "fragments": "mask in many pieces",
    "largest_fragment": "mask without a main piece",
    "outside_body": "mask outside the body",
    "mask_range": "mask: a size, shape or place unseen",
    "mask_joint": "mask: size, shape, place together",
    "image_range": "image: brightness or contrast unseen",
    "image_unlike": "image unlike every training case",
    "agreement": "mask is not where a segmenter finds it",
    "memorisation_pixels": "copy of a training case (pixels)",
    "memorisation_features": "copy of a training case (features)",
    "memorisation_structure": "copy of a training case (turned, scaled)",
    "memorisation_detail": "copy of a training case (detail)",
    "memorisation_halves": "copy of half a training case",
    "duplicates": "duplicate within the pool",
}
SHOWN = ("agreement", "memorisation_pixels", "memorisation_features", "duplicates", "mask_joint", "image_unlike")
AXIS_TITLES = {
    "agreement": "Dice of mask and segmentation",
    "memorisation_pixels": "nearest training case, pixels\n(distance relative to the next patients')",
    "memorisation_features": "nearest training case, features\n(distance relative to the next patients')",
    "duplicates": "nearest other sample, pixels\n(distance relative to training patients')",
    "mask_joint": "size, shape, place of the mask\n(Mahalanobis distance)",
    "image_unlike": "nearest training case, features\n(distance)",
}
COLUMNS = 10
WIDTH, TOP, PLOTS, TILE = 1500, 84, 500, 138


def audit_figure(result: AuditResult) -> Figure:
    """Draw an audit: shares, scores, the ten pairs nearest to training items, and samples that are dropped."""
    dropped = _examples(result)
    lines = -(-len(dropped) // COLUMNS)
    row = TILE + 42
    pictures = 40 + 2 * row + (40 + lines * row if lines else 0)
    height = TOP + PLOTS + pictures + 20
    with plain_style():
        figure = new_figure(WIDTH, height)
        _head(figure, result, height)

        def place(x: int, y: int, width: int, tall: int) -> Axes:
            return figure.add_axes((x / WIDTH, 1 - (y + tall) / height, width / WIDTH, tall / height))

        _shares(place(305, TOP + 26, 330, PLOTS - 130), result)
        for index, key in enumerate(SHOWN):
            check = next(check for check in result.checks if check.key == key)
            _scores(place(715 + index % 3 * 268, TOP + 26 + index // 3 * 235, 220, 135), check)
        y = TOP + PLOTS
        title = "The ten samples nearest to a training case (above), and the case (below), flipped as it was compared"
        _write(figure, 20, y, title, 15, height, weight="bold")
        draw = _Tiles(figure, result, height)
        for column, index in enumerate(result.closest):
            found = result.memorisation.copied(index)
            x, training = 20 + column * (TILE + 8), result.memorisation.training
            verdict = "copy" if result.copies[index] else "no copy"
            draw(
                x,
                y + 28,
                result.audit.samples,
                index,
                f"{result.names[index]}\n{verdict}, {found['by']} {found['relative_distance']:.2f}",
            )
            draw(x, y + 28 + row, training, found["index"], found["of"].replace(", slice", "\nslice"), found["flipped"])
        y += 40 + 2 * row
        if lines:
            total = int(result.dropped.sum())
            title = f"Dropped samples: the furthest out for each reason, {len(dropped)} of {total}"
            _write(figure, 20, y, title, 15, height, weight="bold")
            for number, (index, reason) in enumerate(dropped):
                x, top = 20 + number % COLUMNS * (TILE + 8), y + 28 + number // COLUMNS * row
                draw(
                    x,
                    top,
                    result.audit.samples,
                    index,
                    f"{result.names[index]}\n{textwrap.shorten(reason, 30, placeholder='…')}",
                )
    return figure


def _head(figure: Figure, result: AuditResult, height: int) -> None:
    record = result.audit.record
    share, real = result.share(result.dropped), result.real_dropped
    title = f"Audit of {share['n']} samples of {origin(record)}"
    _write(figure, 20, 14, title, 20, height, weight="bold")
    low, high = (100 * value for value in share["interval"])
    words = (
        f"{share['n'] - share['flagged']} kept, {share['flagged']} dropped: {100 * share['share']:.1f} % "
        f"(95 % interval {low:.1f} to {high:.1f} %). "
    )
    if real["share"] is not None:
        interval = ""
        if real["interval"]:
            interval = f" ({100 * real['interval'][0]:.1f} to {100 * real['interval'][1]:.1f} %)"
        words += (
            f"The same checks would drop {100 * real['share']:.1f} %{interval} of {real['n']} real items of "
            f"{real['patients']} patients, each judged without their own."
        )
    _write(figure, 20, 44, words, 13, height, colour=_FAINT)


def _write(figure: Figure, x: float, y: float, text: str, size: float, height: int, colour: str = _INK, **more) -> None:
    figure.text(
        x / WIDTH, 1 - y / height, text, fontsize=points(size), color=colour, va="top", parse_math=False, **more
    )  # fmt: skip


def _shares(axes: Axes, result: AuditResult) -> None:
    """What each check drops, with intervals: of the pool and of real items."""
    nothing = {"share": None}  # real cases are never blank or without a mask
    rows: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    if result.audit.broken:
        broken = np.isin(result.names, list(result.audit.broken))
        rows.append(("cannot be used (blank, not finite)", result.share(broken), nothing))
    rows.append(("empty mask", result.share(result.empty), nothing))
    for check in result.checks:
        of_real = result.real_share(check.real_flagged, check.defined)
        rows.append((TITLES[check.key], result.share(result.flagged(check)), of_real))
    for place, (_, pool, real) in enumerate(rows):
        for found, colour, shift in ((pool, _POOL, -0.14), (real, _REAL, 0.14)):
            if found["share"] is None:
                continue
            y = len(rows) - place - shift
            if found["interval"]:
                axes.plot(found["interval"], [y, y], color=colour, linewidth=1.2, solid_capstyle="butt")
            axes.plot([found["share"]], [y], "o", color=colour, markersize=4, clip_on=False, zorder=3)
    axes.set_yticks(range(len(rows), 0, -1), [name for name, *_ in rows], color=_INK)
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.set_title("dropped, share of samples and of real items (95 % intervals)", loc="left", color=_INK, x=-0.86)
    axes.plot([], [], "o", color=_POOL, markersize=4, label=f"pool, n = {len(result.names)}")
    axes.plot([], [], "o", color=_REAL, markersize=4, label="real, each by thresholds of other patients")
    axes.legend(loc="upper center", bbox_to_anchor=(0.1, -0.06), ncols=2, handletextpad=0.2, columnspacing=1)


def _scores(axes: Axes, check: Check) -> None:
    """Densities of the scores of real items and samples, and the threshold."""
    real, pool = check.real[check.defined], check.samples[~np.isnan(check.samples)]
    both = np.concatenate([real, pool])
    low, high = np.quantile(both, [0, 0.995]) if not check.low else (both.min(), both.max())
    edges = np.linspace(low, high if high > low else low + 1, 31).tolist()
    for values, colour in ((real, _REAL), (pool, _POOL)):
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            axes.hist(np.clip(values, edges[0], edges[-1]), edges, weights=weights, color=colour, alpha=0.25)
            axes.hist(
                np.clip(values, edges[0], edges[-1]), edges, weights=weights, color=colour, histtype="step", linewidth=1
            )
    limits = check.thresholds[~np.isnan(check.thresholds)]
    for limit in limits:
        axes.axvline(limit, color=_INK, linewidth=0.9, linestyle=(0, (3, 2)))
    if len(limits):
        several = f"{len(limits)} thresholds by size" if len(limits) > 1 else f"threshold {limits[0]:.2g}"
        axes.set_title(f"{several}; {len(real)} real, {len(pool)} pool", loc="left", color=_FAINT)
    axes.set_xlabel(AXIS_TITLES[check.key], color=_INK)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _examples(result: AuditResult) -> list[tuple[int, str]]:
    """Up to two rows of dropped samples: for each reason in turn the one that is furthest out and not yet shown."""
    queues: list[list[tuple[int, str]]] = []
    broken = [result.names.index(name) for name in result.audit.broken]
    queues.append([(i, result.audit.broken[result.names[i]]) for i in broken])
    queues.append([(int(i), "empty mask") for i in np.flatnonzero(result.empty)])
    for check in result.checks:
        if check.key.startswith("memorisation"):
            continue  # shown above
        ranked = np.argsort(check.samples if check.low else -check.samples, kind="stable")
        flagged = result.flagged(check)
        queues.append([(int(i), _short(result, check, int(i))) for i in ranked if flagged[i]])
    chosen: dict[int, str] = {}
    while any(queues) and len(chosen) < 2 * COLUMNS:
        for queue in queues:
            while queue and queue[0][0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < 2 * COLUMNS:
                index, reason = queue.pop(0)
                chosen[index] = reason
    return list(chosen.items())


def _short(result: AuditResult, check: Check, index: int) -> str:
    score = check.samples[index]
    words = {
        "fragments": f"{score:.0f} pieces",
        "largest_fragment": f"main piece {100 * score:.0f} %",
        "outside_body": f"{100 * score:.0f} % outside the body",
        "mask_joint": f"mask unlike others, {score:.1f}",
        "image_unlike": "image unlike others",
        "agreement": f"Dice {score:.2f}",
        "duplicates": f"as {result.names[result.duplicate_of.get(index, 0)]}",
    }
    return words.get(check.key, check.notes[index] if check.notes else "")


class _Tiles:
    """Draws items on a figure, all in the grey window of the real training items."""

    def __init__(self, figure: Figure, result: AuditResult, height: int):
        self.figure, self.height = figure, height
        training = result.memorisation.training
        flat = training.images[:: max(1, len(training) // 200), :1].float().flatten(2).unsqueeze(-1).numpy()
        self.window = grey_window(flat, (0.5, 99.5))[0]
        self.aspect = result.audit.spacing[0] / result.audit.spacing[1]

    def __call__(self, x: float, y: float, items, index: int, caption: str, flipped: str = "") -> None:
        """Draw one item with the contours of its labels; of a volume the slice with the largest mask."""
        image, masks = _plane(items.images[index, 0].float(), items.masks[index], flipped)
        axes = self.figure.add_axes(
            (x / WIDTH, 1 - (y + TILE) / self.height, TILE / WIDTH, TILE / self.height), facecolor="black"
        )
        axes.imshow(
            image, cmap="gray", vmin=self.window[0], vmax=self.window[1], interpolation="bicubic", aspect=self.aspect
        )
        for number, mask in enumerate(masks):
            lines = mask_contours(mask)
            axes.add_collection(
                LineCollection(lines, colors=COLOURS[number % len(COLOURS)], linewidths=points(1.2)), autolim=False
            )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        _write(self.figure, x, y + TILE + 4, caption, 10.5, self.height, colour=_FAINT, linespacing=1.15)


def _plane(image: Tensor, masks: Tensor, flipped: str) -> tuple[np.ndarray, np.ndarray]:
    """Image (height, width) and masks (labels, height, width), flipped as a name of `flips` says."""
    names = ("up-down", "left-right", "along depth")
    dims = [axis for axis, name in enumerate(names) if name in flipped]
    image, masks = image.flip(dims), masks.flip([axis + 1 for axis in dims])
    if image.ndim == 3:
        areas = masks.any(dim=0).sum(dim=(0, 1))
        depth = int(areas.argmax()) if areas.any() else image.shape[2] // 2
        image, masks = image[..., depth], masks[..., depth]
    return image.numpy(), masks.numpy()
