"""The picture of a pool: its samples, beside real slices or volumes when they are at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.cases import Case, Cases
from ..data.cases_of_pool import open_cases_of_pool
from ..data.description import DatasetDescription
from ..pool.adopt import origin
from ..pool.writing import load_sample, read_pool
from .sheets import SheetRow, outside_black, sample_sheet
from .sweep import sweep_sheet

_GAP = 2  # pixels between the planes of a volume


class _Volume(NamedTuple):
    """image (channels depth height width), label (depth height width), fill (channels,) around it."""

    name: str
    image: np.ndarray
    label: np.ndarray
    fill: np.ndarray


def pool_cases(pool_dir: str | Path, dataset_dir: str | Path | None) -> Cases | None:
    """The cases of the fold that a pool's generator learnt from, to be shown beside it; None without a data set."""
    if dataset_dir is None:
        return None
    return open_cases_of_pool(read_pool(pool_dir), dataset_dir)


def pool_sheet(
    pool_dir: str | Path, cases: Cases | None = None, count: int = 12, path: str | Path | None = None
) -> Path:
    """Write `samples.png` in the pool: `count` samples spread evenly over it, not chosen.

    A volume is shown by the three planes through the centre of its mask. A pool that holds a sweep also gets
    `sweep.png`.

    Args:
        pool_dir: a finished pool.
        cases: adds as many real training slices or volumes above them.
        count: slices in each row; of volumes half as many.
        path: another file to write to.
    """
    record = read_pool(pool_dir)
    description = DatasetDescription(**record["dataset"])
    samples, slices = record["samples"], record["dimension"] == 2
    number = min(count if slices else -(-count // 2), len(samples))
    chosen = [samples[i]["id"] for i in np.linspace(0, len(samples) - 1, number).astype(int)]
    pairs = [load_sample(pool_dir, name, description.num_image_channels) for name in chosen]
    spacing = [float(value or 1.0) for value in record["space"]["spacing"]]
    name, masked = f"synthetic (seed {record['sampling']['seed']}, spread evenly over the pool)", _masked(record)
    if slices:
        shape = np.max([label.shape[1:] for _, label in pairs], axis=0).tolist()
        images = np.stack([_centre(image[:, 0], shape, _fill(image, masked)) for image, _ in pairs])
        labels = np.stack([_centre(label, shape, np.zeros(1))[0] for _, label in pairs])
        rows = [SheetRow(name, images, labels, chosen)]
        if cases is not None:
            rows.insert(0, _real_row(cases, images.shape[2:], len(chosen)))
        rows = [row._replace(images=_true(row.images, spacing), labels=_true(row.labels, spacing)) for row in rows]
    else:
        volumes = [_Volume(i, *pair, _fill(pair[0], masked)) for i, pair in zip(chosen, pairs, strict=True)]
        real = [] if cases is None else [_real_volume(case, cases) for case in _spread(cases, len(chosen))]
        shape = np.max([volume.label.shape for volume in [*real, *volumes]], axis=0).tolist()
        named = {"real (training cases)": real, name: volumes}
        rows = [_volume_row(title, group, shape, spacing) for title, group in named.items() if group]
    if masked:
        rows = [row._replace(images=outside_black(row.images, rows[0].images)) for row in rows]
    if (samples[0]["condition"] or {}).get("sweep") and path is None:
        sweep_sheet(pool_dir)
    return sample_sheet(
        rows,
        path or Path(pool_dir) / "samples.png",
        title=f"{origin(record)}, n = {len(samples)} samples",
        labels=description.painted,
        channel_names=list(description.channel_names.values()),
        scale="(normalised by nnU-Net)" if record["space"]["kind"] == "nnunet_preprocessed" else "",
        **({"columns": 4} if slices else {"columns": 1, "tile": 440, "unit": "volume"}),
    )


def _masked(record: dict) -> bool:
    return any(record["space"]["use_mask_for_norm"] or [])


def _fill(image: np.ndarray, masked: bool) -> np.ndarray:
    """What a channel shows outside: 0 where nnU-Net masked it, else its darkest value."""
    return np.zeros(len(image)) if masked else image.min(axis=tuple(range(1, image.ndim)))


def _spread(cases: Cases, count: int) -> Iterator[Case]:
    """`count` training cases, spread evenly over the fold."""
    for case_id in cases.fold.train[:: max(1, len(cases.fold.train) // count)][:count]:
        yield cases.load(case_id)


def _real_row(cases: Cases, shape: tuple[int, ...], count: int) -> SheetRow:
    """The slice with the median foreground area of each of `count` training cases, centred on the samples' grid."""
    images, labels, captions = [], [], []
    for case in _spread(cases, count):
        areas = (case.label > 0).sum(axis=(1, 2))
        marked = np.flatnonzero(areas)
        if not len(marked):
            continue
        index = int(marked[np.argsort(areas[marked])[len(marked) // 2]])
        # Regions are drawn as nested labels; what a sample paints, the real integers paint as well.
        images.append(_centre(case.image[:, index], shape, _fill(case.image, cases.masked)))
        labels.append(_centre(case.label[None, index], shape, np.zeros(1))[0].astype(np.uint8))
        captions.append(f"{case.id}, slice {index}")
    return SheetRow("real (training cases)", np.stack(images), np.stack(labels), captions)


def _real_volume(case: Case, cases: Cases) -> _Volume:
    ignored = case.label == (-1 if cases.description.ignore_label is None else cases.description.ignore_label)
    return _Volume(case.id, case.image, np.where(ignored, 0, case.label), _fill(case.image, cases.masked))


def _volume_row(name: str, volumes: Sequence[_Volume], shape: Sequence[int], spacing: Sequence[float]) -> SheetRow:
    """The planes of each volume, which `shape` (depth, height, width) has room for, side by side."""
    images, labels, captions = [], [], []
    for volume in volumes:
        places = np.argwhere(volume.label > 0)
        centre = places.mean(axis=0) if len(places) else np.array(volume.label.shape) / 2
        at = [int(value) for value in centre]
        images.append(_planes(volume.image, volume.fill, at, shape, spacing))
        labels.append(_planes(volume.label[None], np.zeros(1), at, shape, spacing)[0].astype(np.uint8))
        captions.append(f"{volume.name}: the planes at depth {at[0]}, height {at[1]}, width {at[2]}")
    return SheetRow(name, np.stack(images), np.stack(labels), captions)


def _planes(
    x: np.ndarray, fill: np.ndarray, at: Sequence[int], shape: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """Planes of `(channel, depth, height, width)` as one picture of square pixels `(channel, rows, columns)`.

    Where depth runs down the picture, the last slice is at the top.
    """
    panels = []
    for axis in range(3):
        across = [other for other in range(3) if other != axis]
        panel = _centre(x.take(at[axis], axis=axis + 1), [shape[i] for i in across], fill)
        if axis:
            panel = panel[:, ::-1]
        panels.append(_true(panel, [spacing[i] for i in across], min(spacing)))
    height = max(panel.shape[1] for panel in panels)
    return np.concatenate([_centre(p, (height, p.shape[2] + _GAP), fill) for p in panels], axis=2)[..., 1:-1]


def _true(x: np.ndarray, spacing: Sequence[float], pixel: float | None = None) -> np.ndarray:
    """Slices `(..., height, width)` in square pixels, of `pixel` mm or else the smaller spacing of their plane."""
    plane = spacing[-2:]
    rows, columns = (_square(n, mm / (pixel or min(plane))) for n, mm in zip(x.shape[-2:], plane, strict=True))
    return x[..., rows, :][..., columns]


def _square(length: int, stretch: float) -> np.ndarray:
    """For each pixel of a side `stretch` times as long, the voxel that it shows."""
    return ((np.arange(round(length * stretch)) + 0.5) / stretch).astype(int).clip(max=length - 1)


def _centre(x: np.ndarray, shape: Sequence[int], fill: np.ndarray) -> np.ndarray:
    """Centre `(channel, height, width)` on a grid of `shape`, padded with `fill` or cut."""
    result = np.broadcast_to(fill.reshape(-1, 1, 1), (len(x), *shape)).astype(x.dtype)
    here, there = [], []
    for size, wanted in zip(x.shape[1:], shape, strict=True):
        length = min(size, wanted)
        here.append(slice((wanted - length) // 2, (wanted - length) // 2 + length))
        there.append(slice((size - length) // 2, (size - length) // 2 + length))
    result[:, here[0], here[1]] = x[:, there[0], there[1]]
    return result
