"""What a painter of lesions learns from: windows around lesions, and around healthy places of the same shapes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunet_plugin.transplant.anatomy import Anatomy
from nnunet_plugin.transplant.bank import Bank
from nnunet_plugin.transplant.making import make_bank
from nnunet_plugin.transplant.render import render
from scipy import ndimage

from ..runtime.errors import InputError
from .cases import Case, Cases, LearntCases
from .description import DatasetDescription
from .geometry import fit_geometry
from .holes import FRAME, Intensities, Window
from .scaling import Scaling
from .training_set import Items, TrainingSet, own_size, recorded

logger = logging.getLogger(__name__)

LEAST_VOXELS = {2: 15, 3: 30}  # a smaller part of a lesion in a window is nothing to learn from
VALUES = (0.02, 99.98)  # percentiles of the training values that painted ones are kept between
# As pools of pasted tumours: what the audit holds samples against.
BACKGROUND_SHARE = 0.1


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


@dataclass(frozen=True)
class Scene:
    """A case as the painter sees it: slices of it, or the volume.

    Attributes:
        case: what it was.
        anatomy: for placing lesions.
        intensities: to the model's units.
        labels: `(depth, height, width)` int16, -1 outside nnU-Net's nonzero mask.
    """

    case: Case
    anatomy: Anatomy
    intensities: Intensities
    labels: np.ndarray

    def image(self, plane: int | None) -> np.ndarray:
        """The image `(channels, *spatial)` of a plane, or of the volume."""
        return self.case.image if plane is None else self.case.image[:, plane]

    def label(self, plane: int | None) -> np.ndarray:
        """Its label map `(*spatial)`."""
        return self.labels if plane is None else self.labels[plane]


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


def open_bank(cases: Sequence[Case], space: Cases, dimension: int, lesions: Sequence[int]) -> tuple[Bank, list[Scene]]:
    """The donor bank of cases, and what it placed them by."""
    labels = [np.where(case.inside, case.label, -1).astype(np.int16) for case in cases]
    triples = zip((case.image for case in cases), labels, strict=True)
    bank = make_bank([(image, label, space.spacing) for image, label in triples], dimension, lesions)
    scenes = [
        Scene(case, anatomy, Intensities(anatomy.median, anatomy.scale), label)
        for case, anatomy, label in zip(cases, bank.anatomies, labels, strict=True)
    ]
    return bank, scenes


def load_lesion_crops(
    cases: Cases,
    spatial_size: Sequence[int],
    healthy_share: float = 0.3,
    lesion_labels: Sequence[str] | None = None,
    seed: int = 0,
) -> LesionCrops:
    """Cut windows around every lesion of the fold and, in the share `healthy_share` of all, around healthy places.

    A healthy place is one where the lesion of another patient would be put, its hole the outline of that lesion.

    Args:
        cases: open cases of one fold.
        spatial_size: of the windows, `(height, width)` or `(depth, height, width)`.
        healthy_share: in [0, 1).
        lesion_labels: names of the labels that are lesions; None: all.
        seed: of the healthy places.

    Raises:
        InputError: a case or a setting cannot be used, or nothing holds a lesion.
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
    learnt = list(cases.training())
    rng = np.random.default_rng(seed)
    training, scenes = _items(learnt, cases, spatial_size, healthy_share, lesions, rng)
    held_out = list(cases.validation())
    validation = _items(held_out, cases, spatial_size, healthy_share, lesions, rng)[0] if len(held_out) > 1 else []
    own = own_size(cases, dimension == 3)
    crops = LesionCrops(
        Items.of(training),
        Items.of(validation),
        cases,
        [{"id": case.id, **case.identity._asdict()} for case in learnt],
        Scaling.fit(learnt, per_case=cases.space["kind"] == "raw", masked=cases.masked),
        fit_geometry([case.label.shape for case in learnt], own),
        np.stack([_values(scenes, percentile) for percentile in VALUES]),
        cases.spacing[-dimension:],
    )
    lesion = sum(crops.has_lesion(item) for item in training)
    logger.info("fold %s: %d windows of lesions and %d of healthy places in %d training cases; %d held out",
                cases.fold.name, lesion, len(training) - lesion, len(learnt), len(validation))  # fmt: skip
    return crops


def _values(scenes: Sequence[Scene], percentile: float) -> np.ndarray:
    found = [np.percentile(s.intensities.apply(s.case.image)[:, s.case.inside], percentile, axis=1) for s in scenes]
    return np.min(found, axis=0) if percentile < 50 else np.max(found, axis=0)


def _items(
    learnt: Sequence[Case],
    cases: Cases,
    size: Sequence[int],
    healthy_share: float,
    lesions: Sequence[int],
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], list[Scene]]:
    bank, scenes = open_bank(learnt, cases, len(size), lesions)
    items = [item for scene in scenes for item in _lesion_items(scene, cases.description, size, lesions)]
    wanted = round(healthy_share / (1 - healthy_share) * len(items))
    return items + list(_healthy_items(bank, scenes, cases.description, size, wanted, rng)), scenes


def _lesion_items(
    scene: Scene, description: DatasetDescription, size: Sequence[int], lesions: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Windows centred on each lesion; a lesion that is larger than a window gets several, side by side."""
    planes: list[int | None] = [None] if len(size) == 3 else list(range(len(scene.labels)))
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


def _healthy_items(
    bank: Bank, scenes: Sequence[Scene], description: DatasetDescription, size: Sequence[int], wanted: int,
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    made = 0
    for _ in range(20 * wanted):
        if made == wanted:
            return
        drawn = bank.draw(rng, 0.0)
        if drawn is None:
            continue
        scene, plane = scenes[drawn.case], drawn.plane if len(size) == 2 else None
        shape = np.zeros(scene.label(plane).shape, bool)
        patch = render(bank, drawn, shape.shape)
        box = tuple(slice(s, s + n) for s, n in zip(patch.start.tolist(), patch.labels.shape, strict=True))
        shape[box] = patch.labels > 0
        if np.isin(scene.label(plane)[shape], bank.lesion_labels).any():
            continue  # it would cover a lesion
        item = _item(scene, description, plane, [round(c) for c in drawn.centre.tolist()], size, shape)
        if item is not None:
            made += 1
            yield item


def _item(
    scene: Scene, description: DatasetDescription, plane: int | None, centre: Sequence[int], size: Sequence[int],
    shape: np.ndarray,
) -> dict[str, Any] | None:  # fmt: skip
    """A window; None where there is hardly anything to paint over, or where nobody said what is in it."""
    window = Window(tuple(c - side // 2 for c, side in zip(centre, size, strict=True)), tuple(size))
    label = window.cut(scene.label(plane)[None])[0]
    shape = window.cut(shape[None])
    inner = tuple(slice(FRAME, side - FRAME) for side in size)
    if shape[0][inner].sum() < LEAST_VOXELS[len(size)]:
        return None
    if description.ignore_label is not None and (label == description.ignore_label).any():
        return None
    inside = window.cut(scene.case.inside[None] if plane is None else scene.case.inside[None, plane])
    image = scene.intensities.apply(window.cut(scene.image(plane))) * inside
    parts = [image, description.to_channels(label), shape, inside]
    return {"image": torch.from_numpy(np.concatenate(parts).astype(np.float32)), "case": scene.case.id}
