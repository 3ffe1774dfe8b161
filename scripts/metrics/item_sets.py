"""What is compared: a pool's samples and real cases, brought to the pool's grid and scaling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet_plugin.identity import same_case
from nnunet_plugin.leakage import seen_cases
from torch import Tensor

from ..data.cases import Case, Cases
from ..data.cases_of_pool import open_cases_of_generator
from ..data.description import DatasetDescription
from ..data.geometry import SliceGeometry
from ..data.scaling import Scaling, sample_scaling
from ..pool.writing import load_sample, read_pool, sample_shape
from ..runtime.errors import InputError
from ..runtime.tensor_store import StoredRows, TensorStore
from .masks import tumour_features

IMAGE_ROOM = 2**29  # bytes of memory for the images of a set; those beyond are read from a file
Track = Callable[[list[str], str], Iterable[str]]  # passes items through and shows a bar of that name


@dataclass(frozen=True)
class ItemSet:
    """Slices for the image figures, and masks of the pool's dimension for the mask figures.

    Attributes:
        name: such as "training".
        ids: of the groups: patients, or samples.
        images: (slices, channels, height, width) float32 in [0, 1], in memory or in a file.
        labels: (slices, height, width) uint8, painted integers, as well.
        slice_groups: (slices,) group of each.
        masks: (items, [depth,] height, width) uint8, as well; for slices the labels.
        mask_groups: (items,) group of each.
        tumours: feature -> (items,), NaN for empty masks.
        pooled: extractor -> (slices, features).
    """

    name: str
    ids: list[str]
    images: Tensor | StoredRows
    labels: Tensor | StoredRows
    slice_groups: np.ndarray
    masks: Tensor | StoredRows
    mask_groups: np.ndarray
    tumours: dict[str, np.ndarray]
    pooled: dict[str, np.ndarray] = field(default_factory=dict)

    def subset(self, chosen: np.ndarray) -> ItemSet:
        """The groups `chosen` (numbers of `ids`) alone, renumbered in this order."""
        number = np.full(len(self.ids), -1)
        number[chosen] = np.arange(len(chosen))
        rows, items = np.flatnonzero(number[self.slice_groups] >= 0), np.flatnonzero(number[self.mask_groups] >= 0)
        return ItemSet(
            self.name,
            [self.ids[i] for i in chosen],
            self.images[torch.from_numpy(rows)],
            self.labels[torch.from_numpy(rows)],
            number[self.slice_groups[rows]],
            self.masks[torch.from_numpy(items)],
            number[self.mask_groups[items]],
            {name: values[items] for name, values in self.tumours.items()},
            {name: values[rows] for name, values in self.pooled.items()},
        )


@dataclass(frozen=True)
class OpenedPool:
    """A pool and the real cases that its generator learnt from (`training`) or never saw (`held_out`).

    `kept` are the ids of the samples that no audit dropped; `shape` is (depth, height, width) of every sample, or where
    another program made them in several shapes, the median depth, the largest height and the largest width.
    """

    folder: Path
    record: dict[str, Any]
    cases: Cases
    training: list[str]
    held_out: list[str]
    kept: list[str]
    shape: tuple[int, int, int]

    @property
    def dimension(self) -> int:
        """2 for slices, 3 for volumes."""
        return int(self.record["dimension"])

    @property
    def description(self) -> DatasetDescription:
        """Channels and labels."""
        return self.cases.description

    @property
    def scaling(self) -> Scaling:
        """The generator's map of intensities to [0, 1]."""
        return Scaling.from_record(self.record["provenance"]["scaling"])

    @property
    def classes(self) -> list[int]:
        """Every integer of a painted label map, background first."""
        return [0, *self.description.painted.values()]


def open_pool(pool_dir: str | Path, dataset_dir: str | Path, num_samples: int | None = None) -> OpenedPool:
    """Open a pool and the data set of its generator, see `open_cases_of_generator`.

    Of the samples that no audit dropped, `num_samples` are taken, spread evenly over the pool (None: all).

    Raises:
        InputError: no finished pool, no samples left, or another data set.
    """
    record = read_pool(pool_dir)
    cases = open_cases_of_generator(record, dataset_dir)
    kept = [sample["id"] for sample in record["samples"] if sample.get("decision", "keep") == "keep"]
    if not kept or (num_samples is not None and num_samples < 2):
        raise InputError(
            f"{len(kept)} samples of {pool_dir} that the audit keeps, num_samples {num_samples}",
            "at least one kept sample; num_samples at least 2, or none for all",
            "sample a larger pool, or mend --num_samples",
        )
    if num_samples is not None and num_samples < len(kept):
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, num_samples).astype(int)]
    shapes = [sample_shape(pool_dir, name) for name in (kept if _of_several_shapes(record) else kept[:1])]
    shape = (sorted(s[0] for s in shapes)[len(shapes) // 2], max(s[1] for s in shapes), max(s[2] for s in shapes))
    training, held_out = sorted(cases.fold.train), cases.fold.val
    return OpenedPool(Path(pool_dir), record, cases, training, held_out, kept, shape)


def _of_several_shapes(record: dict) -> bool:
    """Another program's samples, and real cases with something new in them, are of the size that they were."""
    return "adopted" in record["provenance"] or bool(record.get("real_anatomy"))


def read_samples(pool: OpenedPool, track: Track) -> ItemSet:
    """The kept samples: slices of a 2D pool all of them, of volumes those with foreground."""
    builder = _Builder(pool, keep_empty=True)
    for name in track(pool.kept, "reading samples"):
        builder.add(name, *scaled_sample(pool, name))
    return builder.build("synthetic")


def scaled_sample(pool: OpenedPool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Image (channel, depth, height, width) in [0, 1] and label (depth, height, width) of a sample.

    Raises:
        InputError: it is of another shape than the first one of its generator, or holds NaN.
    """
    scaling = sample_scaling(pool.record["provenance"], pool.dimension)
    image, label = load_sample(pool.folder, name, pool.description.num_image_channels)
    other = label.shape != pool.shape and not _of_several_shapes(pool.record)
    if other or not np.isfinite(image).all():
        raise InputError(
            f"sample {name} of shape {label.shape}, {'finite' if np.isfinite(image).all() else 'not finite'}",
            f"finite intensities of shape {pool.shape}, as the first sample",
            "sample the pool again",
        )
    # What nnU-Net masked is 0 in every channel.
    inside = (image != 0).any(axis=0) if scaling.masked else np.ones(label.shape, bool)
    case = Case(name, image, label.astype(np.int16), inside)
    return scaling.apply(case), case.label


def read_cases(pool: OpenedPool, name: str, ids: list[str], track: Track) -> ItemSet:
    """Real cases, centred on the pool's grid: slices with foreground, and volumes with foreground.

    Slices and volumes that hold the ignore label are left out, as in training.

    Raises:
        InputError: a training case is not the one that the generator saw, or nothing holds foreground.
    """
    seen = seen_cases(pool.record["provenance"])
    builder = _Builder(pool, keep_empty=False)
    for case_id in track(ids, f"reading {name} cases"):
        case = pool.cases.load(case_id)
        if case_id in seen and not same_case(seen[case_id], case.identity):
            raise InputError(
                f"case {case_id} has changed since the generator was trained on it",
                "the data set that the generator was trained on",
                "preprocess it as before, or train the generator again",
            )
        builder.add(case_id, pool.scaling.apply(case), case.label)
    return builder.build(name)


class _Builder:
    """Collects slices and masks of one set."""

    def __init__(self, pool: OpenedPool, keep_empty: bool):
        self.pool, self.keep_empty = pool, keep_empty
        self.volumes = pool.dimension == 3
        self.plane = SliceGeometry(pool.shape[1:], pool.shape[1:])  # pads and cuts, no zoom
        self.ids: list[str] = []
        self.images, self.labels = TensorStore(IMAGE_ROOM), TensorStore(IMAGE_ROOM / 4)
        self.slice_groups: list[int] = []
        self.masks = TensorStore(IMAGE_ROOM / 4) if self.volumes else self.labels
        self.mask_groups: list[int] = []
        self.tumours: list[dict[str, float]] = []

    def add(self, name: str, image: np.ndarray, label: np.ndarray) -> None:
        """Add image (channel, depth, height, width) in [0, 1] and label (depth, height, width)."""
        description = self.pool.description
        ignored = label == (-1 if description.ignore_label is None else description.ignore_label)
        if self.volumes and ignored.any():
            return
        slices = self.plane.to_grid(np.ascontiguousarray(image.swapaxes(0, 1)), image.min(axis=(1, 2, 3)))
        painted = description.to_label_map(description.to_channels(label))
        planes = self.plane.to_grid(painted[:, None].astype(np.float32), np.zeros(1))[:, 0].numpy().astype(np.uint8)
        used = [i for i, plane in enumerate(planes) if plane.any() and not ignored[i].any()]
        if not used and not self.keep_empty:
            return
        group = len(self.ids)
        self.ids.append(name)
        spacing = self.pool.cases.spacing
        if self.volumes:
            # Each voxel of the pool's depth takes the slice that its centre lies in.
            depth = self.pool.shape[0]
            nearest = ((np.arange(depth) + 0.5) * len(planes) / depth).astype(int)
            self.masks.append(torch.from_numpy(planes[nearest]))
            measured = [tumour_features(planes > 0, spacing)]
        else:
            used = list(range(len(planes))) if self.keep_empty else used
            measured = [tumour_features(planes[i] > 0, spacing[1:]) for i in used]
        for i in used:
            self.images.append(slices[i])
            self.labels.append(torch.from_numpy(planes[i]))
        self.slice_groups += [group] * len(used)
        self.mask_groups += [group] * len(measured)
        self.tumours += measured

    def build(self, name: str) -> ItemSet:
        """The finished set."""
        if not self.ids:
            raise InputError(
                f"no foreground in the {name} cases", "annotated cases", "check the labels, or evaluate on another fold"
            )
        groups = np.array(self.slice_groups, dtype=int)
        tumours = {key: np.array([found[key] for found in self.tumours]) for key in self.tumours[0]}
        images, labels, masks = (store.rows() for store in (self.images, self.labels, self.masks))
        return ItemSet(name, self.ids, images, labels, groups, masks, np.array(self.mask_groups), tumours)


def mask_channels(items: ItemSet, description: DatasetDescription) -> Tensor | StoredRows:
    """Masks (slices, labels or regions, height, width) of a set's label maps."""

    def channels(labels: Tensor) -> Tensor:
        return torch.from_numpy(description.to_channels(labels.numpy())).movedim(0, 1)

    return channels(items.labels) if isinstance(items.labels, Tensor) else items.labels.changed(channels)
