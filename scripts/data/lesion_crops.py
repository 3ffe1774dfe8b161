"""What a painter of lesions learns from: windows around lesions, and around healthy places of the same shapes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunet_plugin.transplant.anatomy import UNKNOWN, Anatomy
from nnunet_plugin.transplant.bank import Bank, Transplant
from nnunet_plugin.transplant.making import NoLesionError, make_bank
from nnunet_plugin.transplant.render import render
from nnunet_plugin.transplant.store import files_without_names
from scipy import ndimage
from torch import Tensor

from ..runtime.errors import InputError
from ..runtime.tensor_store import TensorStore
from .cases import Case, Cases, LearntCases
from .description import DatasetDescription
from .geometry import fit_geometry, own_grid
from .holes import FRAME, Intensities, Window
from .scaling import Scaling
from .training_set import CACHE_GB, Collected, Items, KeptCases, TrainingSet, check_cache, recorded

logger = logging.getLogger(__name__)

LEAST_VOXELS = {2: 15, 3: 30}  # a smaller part of a lesion in a window is nothing to learn from
VALUES = (0.02, 99.98)  # percentiles of the training values that painted ones are kept between
MOST_DRAWN = 10_000  # healthy places that are sought together


@dataclass(frozen=True)
class LesionCrops(TrainingSet):
    """Windows of one fold, in the model's units, of slices or volumes.

    Items are `{"image": (channels + labels + 2, *size) float32, "case": id}`. The last two channels are the shape that
    is painted over, a lesion or the outline of one in healthy tissue, and where the image is.

    Attributes:
        values: `(2, channels)` least and greatest value of the model's units in the training cases.
        steps: millimetres per voxel along the axes of the windows.
    """

    values: np.ndarray
    steps: tuple[float, ...]

    @property
    def num_labels(self) -> int:
        """Labels or regions."""
        return self.num_channels - self.num_image_channels

    def has_lesion(self, item: dict[str, Any]) -> bool:
        """Whether a lesion is what an item's shape is of."""
        masks, shape = item["image"][self.num_image_channels : -2], item["image"][-2]
        return bool((masks.any(dim=0) & (shape > 0)).any())

    @property
    def as_settings(self) -> dict[str, Any]:
        """What sampling has to know beside the provenance of other generators."""
        return {"values": self.values.tolist(), "steps": list(self.steps)}


class Scene(NamedTuple):
    """A case as the painter sees it: slices of it, or the volume.

    Attributes:
        case: what it was.
        anatomy: for placing lesions.
    """

    case: Case
    anatomy: Anatomy

    @property
    def intensities(self) -> Intensities:
        """To the model's units."""
        return Intensities(self.anatomy.median, self.anatomy.scale)

    def image(self, plane: int | None) -> np.ndarray:
        """The image `(channels, *spatial)` of a plane, or of the volume."""
        return self.case.image if plane is None else self.case.image[:, plane]

    def inside(self, plane: int | None) -> np.ndarray:
        """Whether nnU-Net saw something `(*spatial)`."""
        return self.case.inside if plane is None else self.case.inside[plane]

    def label(self, plane: int | None) -> np.ndarray:
        """The label map `(*spatial)` int16, -1 where nnU-Net saw nothing."""
        label = self.case.label if plane is None else self.case.label[plane]
        return np.where(self.inside(plane), label, -1).astype(np.int16)


class Scenes(Sequence):
    """Cases and what lesions are placed by in them, read where they are asked for.

    Args:
        names: of the cases, in the order of their bank.
        kept: reads them.
        bank: made of them.
    """

    def __init__(self, names: Sequence[str], kept: KeptCases, bank: Bank):
        self.names, self._kept, self._bank = list(names), kept, bank

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: Any) -> Any:
        """One of them."""
        return Scene(self._kept.load(self.names[number]), self._bank.anatomies[number])


def lesion_integers(description: DatasetDescription, lesion_labels: Sequence[str] | None) -> list[int]:
    """The integers of the labels that are lesions; all foreground unless named.

    Raises:
        InputError: a name that the data set does not have.
    """
    known = dict(description.foreground)
    names = list(known) if lesion_labels is None else list(lesion_labels)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"lesion_labels {unknown}", f"labels of the data set: {list(known)}", "set lesion_labels")
    return sorted({value for name in names for value in known[name]})


def open_bank(
    names: Sequence[str], kept: KeptCases, dimension: int, lesions: Sequence[int], room: float,
    cache_dir: str | Path | None,
) -> tuple[Bank, Scenes]:  # fmt: skip
    """The donor bank of cases, and what it placed them by; about `room` bytes of its files in `cache_dir` are read.

    Raises:
        InputError: nothing holds a lesion.
    """
    ignored = kept.cases.description.ignore_label

    def known(case: Case) -> np.ndarray:
        return np.select([~case.inside, case.label == ignored], [-1, UNKNOWN], case.label).astype(np.int16)

    cases = ((case.image, known(case), kept.cases.spacing) for case in map(kept.load, names))
    try:
        bank = make_bank(cases, dimension, lesions, open_file=files_without_names(cache_dir), room=room)
    except NoLesionError as error:
        raise InputError(f"no lesion (labels {list(lesions)}) in {len(names)} cases of fold {kept.cases.fold.name}",
                         "cases with lesions", "set lesion_labels, or choose another fold") from error  # fmt: skip
    return bank, Scenes(names, kept, bank)


def load_lesion_crops(
    cases: Cases,
    spatial_size: Sequence[int],
    healthy_share: float = 0.3,
    lesion_labels: Sequence[str] | None = None,
    seed: int = 0,
    cache_gb: float = CACHE_GB,
    cache_dir: str | Path | None = None,
) -> LesionCrops:
    """Cut windows around every lesion of the fold and, in the share `healthy_share` of all, around healthy places.

    A healthy place is one where the lesion of another patient would be put, its hole the outline of that lesion.

    Args:
        cases: open cases of one fold.
        spatial_size: of the windows, `(height, width)` or `(depth, height, width)`.
        healthy_share: in [0, 1).
        lesion_labels: names of the labels that are lesions; None: all.
        seed: of the healthy places.
        cache_gb, cache_dir: as of `load_training_set`; what lesions are placed by may take as much, too.

    Raises:
        InputError: a case or a setting cannot be used, nothing holds a lesion, or an image is in training and, under
            another name, in validation.
    """
    if isinstance(cases, LearntCases):
        windows = cases.record["training"]["windows"]
        return LesionCrops(**recorded(cases), values=np.array(windows["values"]), steps=tuple(windows["steps"]))
    if not 0 <= healthy_share < 1:
        raise InputError(f"healthy_share {healthy_share}", "a number in [0, 1)", "set --healthy_share")
    dimension = len(spatial_size)
    if dimension == 2 and cases.is_3d:
        raise InputError(f"slices of the 3D configuration {cases.space['configuration']}", "a 2d configuration",
                         "give --configuration 2d, or the overlay volume.json")  # fmt: skip
    if dimension not in (2, 3) or min(spatial_size) <= 2 * FRAME:
        raise InputError(f"spatial_size {list(spatial_size)}", f"two or three numbers above {2 * FRAME}",
                         "set spatial_size")  # fmt: skip
    lesions = lesion_integers(cases.description, lesion_labels)
    room = check_cache(cache_gb)
    reader = _Reader(KeptCases(cases, room), TensorStore(room, cache_dir), spatial_size, lesions, room, cache_dir)
    rng, names, kept, values = np.random.default_rng(seed), cases.fold.train, reader.kept, []
    for name in names:
        kept.load(name)
    kept.check_held_out()
    training, scenes = reader.items(names, healthy_share, rng)

    def measured() -> Iterator[Case]:
        for scene in scenes:
            inside = scene.intensities.apply(scene.case.image)[:, scene.case.inside]
            values.append(np.stack([np.percentile(inside, percentile, axis=1) for percentile in VALUES]))
            yield scene.case

    scaling = Scaling.fit(measured(), per_case=cases.space["kind"] == "raw", masked=cases.masked)
    validation = Items(reader.store, [], [])
    if len(cases.fold.val) > 1:
        validation, _ = reader.items(cases.fold.val, healthy_share, rng)
    crops = LesionCrops(
        training,
        validation,
        cases,
        kept.seen,
        scaling,
        fit_geometry(kept.training_shapes, own_grid(kept.training_shapes, [sys.maxsize] * dimension)),
        np.stack([np.min(values, axis=0)[0], np.max(values, axis=0)[1]]),
        cases.spacing[-dimension:],
    )
    lesion = sum(crops.has_lesion(item) for item in training)
    logger.info("fold %s: %d windows of lesions and %d of healthy places in %d training cases; %d held out",
                cases.fold.name, lesion, len(training) - lesion, len(names), len(validation))  # fmt: skip
    return crops


@dataclass(frozen=True)
class _Reader:
    """Makes windows of cases, which go to a store."""

    kept: KeptCases
    store: TensorStore
    size: Sequence[int]
    lesions: Sequence[int]
    room: float
    cache_dir: str | Path | None

    def items(self, names: Sequence[str], healthy_share: float, rng: np.random.Generator) -> tuple[Items, Scenes]:
        """Windows of these cases."""
        description, size, found = self.kept.cases.description, self.size, Collected(self.store)
        bank, scenes = open_bank(names, self.kept, len(size), self.lesions, self.room, self.cache_dir)
        for scene in scenes:
            for image, record in _lesion_items(scene, description, size, self.lesions):
                found.add(image, record)
        wanted = round(healthy_share / (1 - healthy_share) * len(found.numbers))
        _add_healthy(found, wanted, bank, scenes, description, size, rng)
        return found.items(), scenes


def _lesion_items(
    scene: Scene, description: DatasetDescription, size: Sequence[int], lesions: Sequence[int]
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Windows centred on each lesion; a lesion that is larger than a window gets several, side by side."""
    planes: list[int | None] = [None] if len(size) == 3 else list(range(len(scene.case.label)))
    for plane in planes:
        label = scene.label(plane)
        found, _ = ndimage.label(np.isin(label, lesions), np.ones([3] * label.ndim))
        for number, box in enumerate(ndimage.find_objects(found), start=1):
            rooms = [side - 2 * FRAME for side in size]
            parts = [-(-(part.stop - part.start) // room) for part, room in zip(box, rooms, strict=True)]
            for index in np.ndindex(*parts):
                centre = [
                    part.start + round((part.stop - part.start) * (i + 0.5) / count)
                    for part, i, count in zip(box, index, parts, strict=True)
                ]
                item = _item(scene, description, plane, centre, size, found == number)
                if item is not None:
                    yield item


def _add_healthy(
    found: Collected, wanted: int, bank: Bank, scenes: Scenes, description: DatasetDescription, size: Sequence[int],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Windows around healthy places, in the order of their draws; every case is read once for as many as may be."""
    left, before = 20 * wanted, len(found.numbers)
    while left and (missing := wanted + before - len(found.numbers)):
        draws = [bank.draw(rng, 0.0) for _ in range(min(missing, left, MOST_DRAWN))]
        left -= len(draws)
        order, first = [], len(found.numbers)
        by_case = sorted(((turn, drawn) for turn, drawn in enumerate(draws) if drawn), key=lambda pair: pair[1].case)
        for case, turns in groupby(by_case, lambda pair: pair[1].case):
            scene = scenes[case]
            for turn, drawn in turns:
                item = _healthy_item(bank, drawn, scene, description, size)
                if item is not None:
                    order.append(turn)
                    found.add(*item)
        found.keep([*range(first), *(first + np.argsort(order)).tolist()])


def _healthy_item(
    bank: Bank, drawn: Transplant, scene: Scene, description: DatasetDescription, size: Sequence[int]
) -> tuple[Tensor, dict[str, Any]] | None:
    """The window of a place; None where it would cover a lesion."""
    plane = drawn.plane if len(size) == 2 else None
    label = scene.label(plane)
    shape = np.zeros(label.shape, bool)
    patch = render(bank, drawn, shape.shape)
    box = tuple(slice(s, s + n) for s, n in zip(patch.start.tolist(), patch.labels.shape, strict=True))
    shape[box] = patch.labels > 0
    if np.isin(label[shape], bank.lesion_labels).any():
        return None
    return _item(scene, description, plane, [round(c) for c in drawn.centre.tolist()], size, shape)


def _item(
    scene: Scene, description: DatasetDescription, plane: int | None, centre: Sequence[int], size: Sequence[int],
    shape: np.ndarray,
) -> tuple[Tensor, dict[str, Any]] | None:  # fmt: skip
    """A window; None where there is hardly anything to paint over, or where nobody said what is in it."""
    window = Window(tuple(c - side // 2 for c, side in zip(centre, size, strict=True)), tuple(size))
    label = window.cut(scene.label(plane)[None])[0]
    shape = window.cut(shape[None])
    inner = tuple(slice(FRAME, side - FRAME) for side in size)
    if shape[0][inner].sum() < LEAST_VOXELS[len(size)]:
        return None
    if description.ignore_label is not None and (label == description.ignore_label).any():
        return None
    inside = window.cut(scene.inside(plane)[None])
    image = scene.intensities.apply(window.cut(scene.image(plane))) * inside
    parts = [image, description.to_channels(label), shape, inside]
    return torch.from_numpy(np.concatenate(parts).astype(np.float32)), {"case": scene.case.id}
