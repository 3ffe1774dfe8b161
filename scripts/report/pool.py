"""The picture of a pool: its samples, beside real slices when they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scripts.data.cases import Cases
from scripts.data.description import DatasetDescription
from scripts.data.pool import load_sample, read_pool
from scripts.report.sheets import SheetRow, sample_sheet


def pool_sheet(
    pool_dir: str | Path, cases: Cases | None = None, count: int = 12, path: str | Path | None = None
) -> Path:
    """Write `samples.png` in the pool: `count` samples spread evenly over it, not chosen.

    Args:
        pool_dir: a finished pool of slices.
        cases: adds as many real training slices above them.
        count: slices in each row.
        path: another file to write to.
    """
    record = read_pool(pool_dir)
    description = DatasetDescription(**record["dataset"])
    samples = record["samples"]
    chosen = [samples[i]["id"] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]
    pairs = [load_sample(pool_dir, name, description.num_image_channels) for name in chosen]
    images, labels = np.stack([image[:, 0] for image, _ in pairs]), np.stack([label[0] for _, label in pairs])
    rows = [SheetRow(f"synthetic (seed {record['sampling']['seed']}, spread evenly over the pool)",
                     images, labels, chosen)]  # fmt: skip
    if cases is not None:
        rows.insert(0, _real_row(cases, images.shape[2:], len(chosen)))
    if any(record["space"]["use_mask_for_norm"] or []):
        rows = [row._replace(images=_outside_black(row.images, rows[0].images)) for row in rows]
    return sample_sheet(
        rows,
        path or Path(pool_dir) / "samples.png",
        title=f"{record['provenance']['bundle']['name']} trained on fold {record['provenance']['fold']} of "
        f"{description.name}, n = {len(samples)} samples",
        labels=description.painted,
        channel_names=list(description.channel_names.values()),
        columns=4,
    )


def _outside_black(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Show what nnU-Net masked, exactly 0 in every channel, as the darkest tissue and not as the mean one."""
    outside = (images == 0).all(axis=1, keepdims=True)
    return np.where(outside, reference.min(axis=(0, 2, 3), keepdims=True), images)


def _real_row(cases: Cases, shape: tuple[int, ...], count: int) -> SheetRow:
    """The slice with the median foreground area of each of `count` training cases, centred on the samples' grid."""
    images, labels, captions = [], [], []
    for case_id in cases.fold.train[:: max(1, len(cases.fold.train) // count)][:count]:
        case = cases.load(case_id)
        areas = (case.label > 0).sum(axis=(1, 2))
        marked = np.flatnonzero(areas)
        if not len(marked):
            continue
        index = int(marked[np.argsort(areas[marked])[len(marked) // 2]])
        # Regions are drawn as nested labels; what a sample paints, the real integers paint as well.
        fill = np.zeros(len(case.image)) if cases.masked else case.image.min(axis=(1, 2, 3))
        images.append(_centre(case.image[:, index], shape, fill))
        labels.append(_centre(case.label[None, index], shape, np.zeros(1))[0].astype(np.uint8))
        captions.append(f"{case_id}, slice {index}")
    return SheetRow("real (training cases)", np.stack(images), np.stack(labels), captions)


def _centre(x: np.ndarray, shape: tuple[int, ...], fill: np.ndarray) -> np.ndarray:
    """Centre `(channel, height, width)` on a grid of `shape`, padded with `fill` or cut."""
    result = np.broadcast_to(fill.reshape(-1, 1, 1), (len(x), *shape)).astype(x.dtype)
    here, there = [], []
    for size, wanted in zip(x.shape[1:], shape, strict=True):
        length = min(size, wanted)
        here.append(slice((wanted - length) // 2, (wanted - length) // 2 + length))
        there.append(slice((size - length) // 2, (size - length) // 2 + length))
    result[:, here[0], here[1]] = x[:, there[0], there[1]]
    return result
