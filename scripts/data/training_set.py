"""What a joint image-mask generator learns from: the slices or the volumes of one fold."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet_plugin.identity import Identity
from nnunet_plugin.leakage import check_held_out

from ..runtime.errors import InputError
from ..runtime.tensor_store import StoredRows, TensorStore
from .cases import Case, Cases, LearntCases, open_cases
from .geometry import SliceGeometry, VolumeGeometry, fit_geometry, geometry_from_record, own_grid
from .scaling import AUTO, LINEAR, Scaling
from .warping import warped_case

logger = logging.getLogger(__name__)

CACHE_GB = 4.0


class Items(Sequence):
    """Items `{"image": tensor, "case": id, ...}` whose images are read from a store where they are asked for.

    Args:
        store: of the images.
        records: of each item, all but its image.
        numbers: of each item, its image in the store.
    """

    def __init__(self, store: TensorStore, records: list[dict[str, Any]], numbers: list[int]):
        self.store, self.records, self.numbers = store, records, numbers

    @classmethod
    def of(cls, items: Sequence[dict[str, Any]]) -> Items:
        """Items whose images lie in memory."""
        collected = Collected(TensorStore())
        for item in items:
            collected.add(item["image"], {key: value for key, value in item.items() if key != "image"})
        return collected.items()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        """One item, or those of a slice."""
        if isinstance(index, slice):
            return Items(self.store, self.records[index], self.numbers[index])
        return {"image": self.store[self.numbers[index]], **self.records[index]}

    def __add__(self, other: Items) -> Items:
        """These and then others of the same store."""
        return Items(self.store, self.records + other.records, self.numbers + other.numbers)

    @property
    def images(self) -> StoredRows:
        """The images of all items `(item, ...)`."""
        return StoredRows(self.store, np.array(self.numbers, int))


@dataclass(frozen=True)
class TrainingSet:
    """Slices or volumes of one fold on the generator's grid.

    Attributes:
        training: items `{"image": (channels + labels, height, width[, depth]) float32, "case": id}`; those of
            slices also hold `"slice"`, the index in the case.
        validation: the same of the fold's validation cases (those with foreground), never learnt from.
        cases: where they come from.
        seen: id, hash and fingerprint of every training case.
        scaling, geometry: the invertible maps that were applied.
    """

    training: Items
    validation: Items
    cases: Cases
    seen: list[dict[str, str]]
    scaling: Scaling
    geometry: SliceGeometry | VolumeGeometry

    @property
    def num_channels(self) -> int:
        """Image channels and mask channels."""
        return self.cases.description.num_channels

    @property
    def num_image_channels(self) -> int:
        """Image channels alone."""
        return self.cases.description.num_image_channels

    @property
    def grid_spacing(self) -> tuple[float, ...]:
        """Millimetres per voxel along the axes of the grid `(height, width[, depth])`."""
        depth, *plane = self.cases.spacing
        geometry = self.geometry
        flat = geometry.plane if isinstance(geometry, VolumeGeometry) else geometry
        steps = [step * room / size for step, room, size in zip(plane, flat.canvas, flat.spatial_size, strict=True)]
        if isinstance(geometry, VolumeGeometry):
            steps.append(depth * geometry.depth / geometry.spatial_size[2])
        return tuple(steps)

    def training_tensor(self) -> StoredRows:
        """All training items `(item, channels + labels, height, width[, depth])`, read where they are indexed."""
        return self.training.images


def recorded(cases: LearntCases) -> dict[str, Any]:
    """The attributes of the `TrainingSet` that weights have learnt from, without its items."""
    record, none = cases.record, Items.of([])
    return {
        "training": none, "validation": none, "cases": cases, "seen": record["cases"],
        "scaling": Scaling.from_record(record["scaling"]), "geometry": geometry_from_record(record["geometry"]),
    }  # fmt: skip


def item_name(item: dict[str, Any]) -> str:
    """What a reader finds an item of a training set by."""
    return f"{item['case']}, slice {item['slice']}" if "slice" in item else str(item["case"])


def load_training_set(
    cases: Cases,
    spatial_size: Sequence[int] | str,
    background_share: float | None = 0.1,
    seed: int = 0,
    size_limit: Sequence[int] = (64, 64),
    size_multiple: int = 1,
    cache_gb: float = CACHE_GB,
    cache_dir: str | Path | None = None,
    intensities: str = LINEAR,
    warped_copies: int = 0,
) -> TrainingSet:
    """Bring the fold's cases to the grid: every slice or volume with foreground, and a share of those without.

    Slices and volumes that hold the ignore label are left out: nobody said what is in them. What is
    learnt does not depend on the cache.

    Args:
        cases: open cases of one fold.
        spatial_size: the generator's grid, `(height, width)` for slices, `(height, width, depth)` for volumes; or
            "auto": the cases' own, see `own_grid`.
        background_share: share of the training items that hold no foreground, in [0, 1); None: all of them are items.
        seed: chooses which.
        size_limit, size_multiple: of an automatic grid.
        cache_gb: memory that cases may take, and that items may; cases beyond are read twice, items from a file.
        cache_dir: where that file is made; None: where the system keeps temporary files.
        intensities: "linear", or "auto": channels whose bulk lies low, as that of PET does, are curved, see `Scaling`.
        warped_copies: of each training case, to be learnt from beside it, see `warped_case`; `"copy"` of a training
            item is 0, or the number of the copy that it is of, from 1.

    Raises:
        InputError: a case or a setting cannot be used, nothing holds foreground, or an image is in training and, under
            another name, in validation.
    """
    if isinstance(cases, LearntCases):
        return TrainingSet(**recorded(cases))
    if background_share is not None and not 0 <= background_share < 1:
        raise InputError(
            f"background_share {background_share}", "a number in [0, 1), or null", "set --background_share"
        )
    room = check_cache(cache_gb)
    if type(warped_copies) is not int or warped_copies < 0:
        raise InputError(f"warped_copies {warped_copies!r}", "a whole number from 0", "set --warped_copies")
    if intensities not in (LINEAR, AUTO):
        raise InputError(f"intensities {intensities!r}", f"{AUTO!r} or {LINEAR!r}", "set --intensities")
    if isinstance(spatial_size, str) and spatial_size != "auto":
        raise InputError(f"spatial_size {spatial_size!r}", "'auto', or a list of numbers", "set spatial_size")
    kind = "slice" if len(size_limit if spatial_size == "auto" else spatial_size) == 2 else "volume"
    if kind == "slice" and cases.is_3d:
        raise InputError(
            f"slices of the 3D configuration {cases.space['configuration']}",
            "slices of a 2d configuration, or volumes",
            "a slice with the spacing and normalisation of a 3D configuration can enter no nnU-Net training: give "
            "--configuration 2d, or a spatial_size of three numbers",
        )
    kept, names = KeptCases(cases, room), cases.fold.train
    raw = cases.space["kind"] == "raw"
    scaling = Scaling.fit(map(kept.load, names), raw, cases.masked, curved=intensities == AUTO)
    if isinstance(spatial_size, str):
        spatial_size = own_grid(kept.training_shapes, size_limit, size_multiple)
    geometry = fit_geometry(kept.training_shapes, spatial_size)
    store = TensorStore(room, cache_dir)
    foreground, background = Collected(store), Collected(store)
    dimension, rng = len(geometry.spatial_size), np.random.default_rng([seed, 1])
    for case in (kept.load(name, last=True) for name in names):
        for number in range(warped_copies + 1):
            seen = case if number == 0 else warped_case(case, cases.spacing, dimension, rng)
            for marked, image, record in _on_grid(seen, cases, scaling, geometry):
                (foreground if marked else background).add(image, record | {"copy": number})
    if not foreground.numbers:
        raise InputError(
            f"no {kind} with foreground in the {len(names)} training cases of fold {cases.fold.name}",
            "annotated cases (a slice or volume that holds the ignore label is left out)",
            "check the labels, or choose another fold",
        )
    wanted = len(background.numbers)
    if background_share is not None:
        wanted = min(wanted, round(background_share / (1 - background_share) * len(foreground.numbers)))
    chosen = np.random.default_rng(seed).permutation(len(background.numbers))[:wanted]
    background.keep(sorted(chosen.tolist()))
    validation = Collected(store)
    for case in (kept.load(name, last=True) for name in cases.fold.val):
        for marked, image, record in _on_grid(case, cases, scaling, geometry):
            if marked:
                validation.add(image, record)
    kept.check_held_out()
    logger.info(
        "fold %s: %d %ss with foreground and %d without, of %d training cases%s; %d validation %ss of %d cases; "
        "grid %s", cases.fold.name, len(foreground.numbers), kind, wanted, len(names),
        f" and {warped_copies} warped copies of each" if warped_copies else "", len(validation.numbers), kind,
        len(cases.fold.val), " x ".join(map(str, geometry.spatial_size)),
    )  # fmt: skip
    training = foreground.items() + background.items()
    return TrainingSet(training, validation.items(), cases, kept.seen, scaling, geometry)


class KeptCases:
    """Cases by name, to go through several times: those that fit into `room` bytes are read once.

    Attributes:
        shapes, identities: of all that were read, by name.
    """

    def __init__(self, cases: Cases, room: float):
        self.cases, self.room = cases, room
        self.kept: dict[str, Case] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.identities: dict[str, Identity] = {}

    def load(self, name: str, last: bool = False) -> Case:
        """A case, which is not kept any longer if this was the last time."""
        if name in self.kept:
            return self.kept.pop(name) if last else self.kept[name]
        case = self.cases.load(name)
        if name not in self.identities:
            self.shapes[name], self.identities[name] = case.label.shape, case.identity
        size = case.image.nbytes + case.label.nbytes + case.inside.nbytes
        if size <= self.room and not last:
            self.room -= size
            self.kept[name] = case
        return case

    def check_held_out(self) -> None:
        """Raise `InputError` when an image of the fold is in training and, under another name, in validation."""
        for name in self.cases.fold.val:
            if name not in self.identities:
                self.load(name, last=True)
        learnt, held_out = (
            {name: self.identities[name] for name in names} for names in (self.cases.fold.train, self.cases.fold.val)
        )
        check_held_out(learnt, held_out, self.cases.fold.name, "whatever learns from this fold")

    @property
    def seen(self) -> list[dict[str, str]]:
        """Id, hash and fingerprint of every training case, after they were read."""
        return [{"id": name, **self.identities[name]._asdict()} for name in self.cases.fold.train]

    @property
    def training_shapes(self) -> list[tuple[int, ...]]:
        """Of every training case, after they were read."""
        return [self.shapes[name] for name in self.cases.fold.train]


def check_cache(cache_gb: Any) -> float:
    """The bytes of a cache of so many gigabytes.

    Raises:
        InputError: it is no number, or less than 0.
    """
    if isinstance(cache_gb, bool) or not isinstance(cache_gb, int | float) or not cache_gb >= 0:
        raise InputError(f"cache_gb {cache_gb!r}", "gigabytes, 0 or more", f"such as {CACHE_GB}")
    return cache_gb * 1e9


class Collected:
    """Items that go to a store."""

    def __init__(self, store: TensorStore):
        self.store = store
        self.records: list[dict[str, Any]] = []
        self.numbers: list[int] = []

    def add(self, image: torch.Tensor, record: dict[str, Any]) -> None:
        """One more."""
        self.numbers.append(self.store.append(image))
        self.records.append(record)

    def keep(self, chosen: list[int]) -> None:
        """Forget all but those of the given places, which stand in this order from now on."""
        for place in {*range(len(self.numbers))} - {*chosen}:
            self.store.forget(self.numbers[place])
        self.records, self.numbers = [self.records[i] for i in chosen], [self.numbers[i] for i in chosen]

    def items(self) -> Items:
        """What was collected."""
        return Items(self.store, self.records, self.numbers)


def own_size(cases: Cases, volumes: bool) -> list[int]:
    """The largest height and width of the fold's training cases, and for volumes their median depth."""
    return own_grid([case.label.shape for case in cases.training()], [sys.maxsize] * (3 if volumes else 2))


def load_own_items(
    dataset_dir: str | Path,
    fold: int | str,
    plans: str,
    configuration: str,
    spatial_size: Sequence[int] | None,
    background_share: float,
    seed: int,
) -> TrainingSet:
    """The training set of a data set for pools made of real items: by default at the cases' own size."""
    cases = open_cases(dataset_dir, fold, plans, configuration)
    size = own_size(cases, cases.is_3d) if spatial_size is None else list(spatial_size)
    return load_training_set(cases, size, background_share, seed)


def _on_grid(
    case: Case, cases: Cases, scaling: Scaling, geometry: SliceGeometry | VolumeGeometry
) -> Iterator[tuple[bool, torch.Tensor, dict[str, Any]]]:
    """Whether an item of a case holds foreground, its image, and all else of it."""
    grid, left_out = grid_items(case, cases, scaling, geometry)
    for index in np.flatnonzero(~left_out).tolist():
        record = {"case": case.id, **({"slice": index} if isinstance(geometry, SliceGeometry) else {})}
        yield bool(grid[index, cases.description.num_image_channels :].any()), grid[index], record


def grid_items(
    case: Case, cases: Cases, scaling: Scaling, geometry: SliceGeometry | VolumeGeometry
) -> tuple[torch.Tensor, np.ndarray]:
    """A case on the grid `(item, channels + labels, *spatial_size)`, and which items hold the ignore label."""
    description = cases.description
    image = scaling.apply(case)
    mask = description.to_channels(case.label).astype(np.float32)
    joint = np.concatenate([image, mask])
    ignored = case.label == (-1 if description.ignore_label is None else description.ignore_label)
    if isinstance(geometry, SliceGeometry):
        items, left_out = np.ascontiguousarray(joint.swapaxes(0, 1)), ignored.any(axis=(1, 2))
    else:
        items, left_out = joint[None], ignored.any(keepdims=True).ravel()
    fill = np.concatenate([image.min(axis=(1, 2, 3)), np.zeros(len(mask), np.float32)])
    grid = geometry.to_grid(items, fill).clamp(0, 1)
    grid[:, description.num_image_channels :] = (grid[:, description.num_image_channels :] >= 0.5).float()
    return grid, left_out
