"""Training items made on the fly: lesions of one training patient in the anatomy of another."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet_plugin.transplant.bank import PLACING, Transplant
from nnunet_plugin.transplant.making import LEAST_VARIATION, lesion_labels, make_bank, variation
from nnunet_plugin.transplant.paste import blend, relabel
from nnunet_plugin.transplant.render import render
from nnunet_plugin.transplant.store import files_without_names

from ..data.cases import Case
from ..data.geometry import SliceGeometry
from ..data.scaling import MASK_MARGIN
from ..data.training_set import CACHE_GB, TrainingSet, check_cache, grid_items
from ..runtime.errors import InputError
from ..runtime.tensor_store import TensorStore

OUTSIDE = -1  # label of the plugin for what is no body
DRAWS = 50  # of a transplant, before it is said that the images have no room for any
STREAM = 1_957  # keeps the draws apart from those of the pool and of the real items


@dataclass(frozen=True)
class TransplantSettings:
    """The `transplant` block.

    Attributes:
        share: part of each epoch's items, 0 to 1.
        decoys: part of the transplants that is healthy tissue without a label, so that the paste teaches nothing.
        until: part of the training after which all items are real, or of the pool.
    """

    share: float = 0.3
    decoys: float = 0.25
    until: float = 0.8

    @classmethod
    def parse(cls, block: Mapping[str, Any] | None) -> TransplantSettings | None:
        """The settings of a block as it stands in a configuration; None without one.

        Raises:
            InputError: an unknown key, or a value outside of [0, 1].
        """
        if block is None:
            return None
        known = [field.name for field in fields(cls)]
        if not isinstance(block, Mapping):
            raise InputError(f"transplant {block!r}", f"{{{', '.join(known)}}} or null", "set transplant")
        for key, value in block.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
                raise InputError(f"unknown setting {key} of transplant", ", ".join(known), f"did you mean {near}?")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise InputError(f"transplant: {key} {value!r}", "a number from 0 to 1", f"correct {key}")
        return cls(**block)

    def finish_epochs(self, num_epochs: int) -> int:
        """Epochs at the end without transplants."""
        return num_epochs - round(self.until * num_epochs)


class Transplants:
    """Draws a transplant from (seed, epoch, place in the epoch) alone, on the grid of the real items.

    Donors and recipients are the training cases of the training set, all slices of them; validation cases are never
    read.

    Args:
        data: the real items.
        settings: of the draws.
        seed: of the draws.
        cache_gb: memory that the slices or volumes may take, and that what lesions are placed by may; others are read
            from files.
        cache_dir: where these are made; None: where the system keeps temporary files.

    Raises:
        InputError: fewer than two training cases, labels that are no lesions, or lesions that fit nowhere.
    """

    def __init__(
        self,
        data: TrainingSet,
        settings: TransplantSettings,
        seed: int,
        cache_gb: float = CACHE_GB,
        cache_dir: str | Path | None = None,
    ):
        self.settings, self.seed, self.description = settings, seed, data.cases.description
        self.dimension = len(data.geometry.spatial_size)
        self.names: list[str] = []
        self.planes: list[range] = []  # numbers in the store, of each case
        self.store = TensorStore(room := check_cache(cache_gb), cache_dir)
        spacings, volumes = [], []
        for case in data.cases.training():
            image, label = _case_on_grid(case, data)
            spacings.append(_spacing(case, data))
            values, counts = np.unique(label, return_counts=True)
            volumes.append(dict(zip(values.tolist(), (counts * np.prod(spacings[-1])).tolist(), strict=True)))
            joint = torch.from_numpy(np.concatenate([image, label[None].astype(np.float32)]))
            numbers = [self.store.append(plane) for plane in joint.unbind(1)]
            self.names.append(case.id)
            self.planes.append(range(numbers[0], numbers[-1] + 1))
        if len(self.names) < 2:
            raise InputError(
                f"transplants between {len(self.names)} training case", "2 or more", "use more cases, or none of them"
            )
        cases = ((*self._volume(case), spacing) for case, spacing in enumerate(spacings))
        files = files_without_names(cache_dir)
        self.bank = make_bank(cases, self.dimension, self._lesions(volumes), seed=seed, open_file=files, room=room)
        self.make(0, 0)  # what cannot be done is said before the training

    @property
    def record(self) -> dict[str, Any]:
        """What the provenance says of them."""
        return {**asdict(self.settings), "cases": self.names, "lesions": len(self.bank.lesions), "placing": PLACING}

    def _lesions(self, volumes: list[dict[int, float]]) -> list[int]:
        """The integers of label maps that are lesions, by their volumes in each case.

        Raises:
            InputError: there are none.
        """
        known = sorted({value for of in volumes for value in of} - {OUTSIDE, 0})
        by_label = {value: [of.get(value, 0.0) for of in volumes] for value in known}
        if not (found := lesion_labels(by_label)):
            raise InputError(
                "labels whose volume is alike in all cases, as that of an organ (coefficient of variation "
                + ", ".join(f"label {value}: {variation(sizes):.2f}" for value, sizes in by_label.items()) + ")",
                f"a label that varies as lesions do, by {LEAST_VARIATION} or more",
                "train without transplant: an organ has one place",
            )  # fmt: skip
        return found

    def make(self, epoch: int, place: int) -> dict[str, Any]:
        """Item `{"image": (channels + labels, *spatial_size) in [0, 1], "case": the recipient, ...}`."""
        rng = np.random.default_rng([STREAM, self.seed, epoch, place])
        drawn = next((found for _ in range(DRAWS) if (found := self.bank.draw(rng, self.settings.decoys))), None)
        if drawn is None:
            raise InputError(
                "lesions that fit nowhere in the other patients",
                "images with room for them",
                "train without transplant",
            )
        image, label = self._paste(drawn)
        if self.dimension == 3:
            image, label = np.moveaxis(image, 1, -1), np.moveaxis(label, 0, -1)
        masks = self.description.to_channels(np.maximum(label, 0)).astype(np.float32)
        item = torch.from_numpy(np.concatenate([np.clip(image, 0, 1).astype(np.float32), masks]))
        return {"image": item, "case": self.names[drawn.case], "item": -1, "copy": 0, "synthetic": True}

    def _paste(self, drawn: Transplant) -> tuple[np.ndarray, np.ndarray]:
        """Image `(channel, [depth,] height, width)` and label map of a drawn transplant."""
        flat = self.dimension == 2
        image, label = self._volume(drawn.case, drawn.plane if flat else None)
        source = self._volume(drawn.source, drawn.source_plane if flat else None)[0] if drawn.is_decoy else None
        patch = render(self.bank, drawn, label.shape, source)
        start = np.zeros(label.ndim, int)
        return blend(image, patch, start), relabel(label, patch, start)

    def _volume(self, case: int, plane: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Image `(channel, [depth,] height, width)` and label map of a case, or of a plane of it."""
        numbers = self.planes[case]
        if plane is not None:
            joint = self.store[numbers[plane]].numpy()
        else:
            joint = np.stack([self.store[number].numpy() for number in numbers], axis=1)
        return joint[:-1], joint[-1].astype(np.int16)


def open_transplants(
    data: TrainingSet,
    block: Mapping[str, Any] | None,
    seed: int,
    cache_gb: float = CACHE_GB,
    cache_dir: str | Path | None = None,
) -> Transplants | None:
    """The transplants that a configuration asks for; None without a block, or with a share of 0.

    Raises:
        InputError: see `TransplantSettings.parse` and `Transplants`.
    """
    settings = TransplantSettings.parse(block)
    return None if settings is None or settings.share == 0 else Transplants(data, settings, seed, cache_gb, cache_dir)


def _case_on_grid(case: Case, data: TrainingSet) -> tuple[np.ndarray, np.ndarray]:
    """Image `(channel, depth, height, width)` and label map `(depth, height, width)` of a whole case on the grid.

    What holds the ignore label, or lies outside of a masked space, is no body: it takes no lesion.
    """
    channels, description = data.num_image_channels, data.cases.description
    grid, left_out = grid_items(case, data.cases, data.scaling, data.geometry)
    if isinstance(data.geometry, SliceGeometry):
        grid = grid.transpose(0, 1)  # (channel, slice, height, width)
    else:
        grid, left_out = grid[0].movedim(-1, 1), np.repeat(left_out, data.geometry.spatial_size[2])
    image = grid[:channels].numpy()
    label = description.to_label_map(grid[channels:].numpy()).astype(np.int16)
    label[left_out] = OUTSIDE
    if data.scaling.masked:
        label[(image < MASK_MARGIN / 2).all(axis=0)] = OUTSIDE
    return image, label


def _spacing(case: Case, data: TrainingSet) -> tuple[float, ...]:
    """Millimetres per voxel of a case on the grid, along depth, height, width."""
    depth = data.cases.spacing[0]
    if not isinstance(data.geometry, SliceGeometry):  # every case is stretched or shrunk to one depth
        depth *= case.label.shape[0] / data.geometry.spatial_size[2]
    return depth, *data.grid_spacing[:2]
