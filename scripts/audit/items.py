"""What an audit compares: a pool's samples and the real cases, all on the generator's grid and scaled to [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet_plugin.identity import Identity, same_case
from nnunet_plugin.leakage import seen_cases
from torch import Tensor

from ..data.cases import Case
from ..data.cases_of_pool import open_cases_of_generator
from ..data.scaling import AUTO, LINEAR, Scaling, sample_scaling
from ..data.training_set import TrainingSet, item_name, load_training_set
from ..pool.writing import load_sample, read_pool, sample_shape
from ..runtime.errors import InputError

Track = Callable[[Sequence, str], Iterable]  # passes a sequence through and shows a bar of that name


@dataclass(frozen=True)
class Items:
    """Slices or volumes.

    Attributes:
        images: (items, channels, *grid) float16 in [0, 1].
        masks: (items, labels, *grid) bool.
        groups: (items,) patient of each; of samples their own id.
        names: (items,) what a reader finds them by.
    """

    images: Tensor
    masks: Tensor
    groups: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, chosen: np.ndarray) -> Items:
        """The items of the given numbers, or where a boolean array is true."""
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        index = torch.from_numpy(rows)
        return Items(self.images[index], self.masks[index], self.groups[rows], [self.names[i] for i in rows])

    @property
    def foreground(self) -> Tensor:
        """Union of the labels, (items, *grid) bool."""
        return self.masks.any(dim=1)


@dataclass(frozen=True)
class AuditData:
    """A pool and the real cases that belong to it.

    Attributes:
        record: of the pool.
        samples: every sample of the pool, whatever was decided on it.
        broken: why a sample cannot be used at all, by id; its values that are not finite are 0 here.
        empty: why a sample has no mask here, by id.
        real: the slices or volumes that the generator learnt from, and those with foreground of held-out cases.
        held_out: (real,) bool, which of these the generator never saw.
        judged: (real,) bool, those with foreground, which samples are held against. Slices without are only what a
            sample may be a copy of: the empty ones of all patients may be the same.
        spacing: millimetres per voxel of the grid, along its axes.
        data: how real cases came to the grid.
        painted: (samples, *grid) bool, the box that was painted, of samples that are a real patient elsewhere; or None.
    """

    record: dict[str, Any]
    samples: Items
    broken: dict[str, str]
    empty: dict[str, str]
    real: Items
    held_out: np.ndarray
    judged: np.ndarray
    spacing: tuple[float, ...]
    data: TrainingSet
    painted: Tensor | None = None


def load_audit_data(pool_dir: str | Path, dataset_dir: str | Path, track: Track) -> AuditData:
    """Read a pool and the data set of its generator, see `open_cases_of_generator`.

    Raises:
        InputError: no finished pool, files of it that cannot be read, or another or a changed data set.
    """
    record = read_pool(pool_dir)
    data = _open_data(record, dataset_dir)
    items = data.training + data.validation
    channels = data.num_image_channels
    real = Items(
        torch.stack([item["image"][:channels].half() for item in items]),
        torch.stack([_as_sampled(item["image"][channels:], data) for item in track(items, "reading real masks")]),
        np.array([item["case"] for item in items]),
        [item_name(item) for item in items],
    )
    samples, broken, empty = _read_samples(Path(pool_dir), record, data, track)
    held_out = np.arange(len(items)) >= len(data.training)
    judged = real.foreground.flatten(1).any(dim=1).numpy()
    painted = _painted(record, Path(pool_dir), data)
    return AuditData(record, samples, broken, empty, real, held_out, judged, data.grid_spacing, data, painted)


def _painted(record: dict, folder: Path, data: TrainingSet) -> Tensor | None:
    """The boxes that the records name, brought to the grid as the samples were."""
    if not all("hole" in sample for sample in record["samples"]):
        return None
    boxes = []
    for sample in record["samples"]:
        box = np.zeros(sample_shape(folder, sample["id"]), np.float32)
        start, size = sample["hole"]["start"], sample["hole"]["size"]
        hole = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        box[(slice(None),) * (3 - len(hole)) + hole] = 1
        item = box[:, None] if record["dimension"] == 2 else box[None, None]
        boxes.append(data.geometry.to_grid(item, np.zeros(1, np.float32))[0, 0] >= 0.5)
    return torch.stack(boxes)


def _open_data(record: dict, dataset_dir: str | Path) -> TrainingSet:
    provenance = record["provenance"]
    cases = open_cases_of_generator(record, dataset_dir)
    if not provenance["cases"]:  # another program that saw none: a copy of whichever case would be one
        cases.fold = replace(cases.fold, train=sorted([*cases.fold.train, *cases.fold.val]), val=[])
    # The same seed and share choose the slices without foreground that the generator saw.
    share = provenance["training"].get("background_share", 0.1)
    curved = Scaling.from_record(provenance["scaling"]).knee is not None
    data = load_training_set(
        cases, provenance["geometry"]["spatial_size"], share, provenance["seed"],
        intensities=AUTO if curved else LINEAR,
    )  # fmt: skip
    seen = seen_cases(provenance)
    now = {case["id"]: Identity(case["sha256"], case["fingerprint"]) for case in data.seen}
    if changed := [case for case in seen if case in now and not same_case(seen[case], now[case])]:
        raise InputError(
            f"{len(changed)} cases that changed since the generator was trained on them: {', '.join(changed[:5])}",
            f"the data set that the generator was trained on ({provenance['dataset']})",
            "preprocess them as before, or train the generator again",
        )
    return data


def _as_sampled(masks: Tensor, data: TrainingSet) -> Tensor:
    """Masks (labels, *grid) as they were after the way of a sample's: to the cases' grid as a label map, and back.

    It frays edges, above all between labels. Samples would be dropped for it if real masks had not gone the same way.
    """
    description = data.cases.description
    there = data.geometry.from_grid(masks[None])[0].clamp(0, 1).numpy()
    channels = description.to_channels(description.to_label_map(there)).astype(np.float32)
    return data.geometry.to_grid(channels[None], np.zeros(len(channels), np.float32))[0] >= 0.5


def _read_samples(
    folder: Path, record: dict, data: TrainingSet, track: Track
) -> tuple[Items, dict[str, str], dict[str, str]]:
    names = [sample["id"] for sample in record["samples"]]
    description = data.cases.description
    scaling = sample_scaling(record["provenance"], record["dimension"])
    known = {0, *description.painted.values(), *description.known_integers} - {description.ignore_label}
    broken: dict[str, str] = {}
    empty: dict[str, str] = {}
    images, masks = [], []
    for name in track(names, "reading the pool"):
        image, label = load_sample(folder, name, description.num_image_channels)
        if record["dimension"] == 2 and label.shape[0] != 1:
            raise InputError(f"sample {name} of depth {label.shape[0]}", "slices of depth 1", "sample the pool again")
        if not np.isfinite(image).all():
            broken[name] = "intensities that are not finite"
        elif constant := [i for i, channel in enumerate(image) if channel.min() == channel.max()]:
            broken[name] = f"a blank image (channel {constant[0]})"
        elif unknown := sorted({int(value) for value in np.unique(label)} - known):
            broken[name] = f"labels that the data set does not have ({unknown})"
        image = np.nan_to_num(image, posinf=0.0, neginf=0.0)
        inside = (image != 0).any(axis=0) if scaling.masked else np.ones(label.shape, bool)
        scaled = scaling.apply(Case(name, image, label.astype(np.int16), inside))
        joint = np.concatenate([scaled, description.to_channels(label).astype(np.float32)])
        item = joint.swapaxes(0, 1) if record["dimension"] == 2 else joint[None]
        fill = np.concatenate([scaled.min(axis=(1, 2, 3)), np.zeros(len(joint) - len(scaled), np.float32)])
        grid = data.geometry.to_grid(np.ascontiguousarray(item), fill).clamp(0, 1)[0]
        images.append(grid[: len(scaled)].half())
        masks.append(grid[len(scaled) :] >= 0.5)
        if not masks[-1].any():
            small = joint[len(scaled) :].any()
            empty[name] = "a mask too small for the generator's grid" if small else "an empty mask"
    return Items(torch.stack(images), torch.stack(masks), np.array(names), names), broken, empty
