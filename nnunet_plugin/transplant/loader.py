"""nnU-Net's loader, which takes patches of a transplant around its lesion, and of everything else as ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock


class Locations(dict):
    """Where the classes are in a case, as nnU-Net has it, and the `window` in which patches of it have to lie."""

    def __init__(self, locations: dict, window: Sequence[slice]):
        super().__init__(locations)
        self.window = tuple(window)


class TransplantLoader(nnUNetDataLoader):
    """Stock but for cases with a window: what the network gets of them lies in it, as far as it is large enough.

    The margin that nnU-Net loads around a patch, for rotation and scaling, is that of the whole image, so that a
    transplant is padded where any patch of this place would be, and nowhere else.
    """

    def get_bbox(
        self, data_shape: Sequence[int], force_fg: bool, class_locations: dict | None, *args: Any, **kwargs: Any
    ) -> tuple[list[int], list[int]]:
        """Return the lower and upper bounds of a patch, each axis; see nnU-Net's."""
        if not isinstance(class_locations, Locations):
            return super().get_bbox(data_shape, force_fg, class_locations, *args, **kwargs)
        lows, highs = np.array([self._bounds(*axis) for axis in zip(
            range(len(data_shape)), data_shape, class_locations.window, strict=True
        )]).T  # fmt: skip
        starts = np.random.randint(lows, highs + 1)  # noqa: NPY002 (as nnU-Net draws)
        centres = class_locations.values() if force_fg else [class_locations.get(self.annotated_classes_key, ())]
        if (force_fg or self.has_ignore) and any(len(where) for where in centres):
            chosen = np.array(super().get_bbox(data_shape, force_fg, class_locations, *args, **kwargs)[0])
            starts = np.where((lows <= chosen) & (chosen <= highs), chosen, starts)  # a voxel may be far away
        return starts.tolist(), (starts + self.patch_size).tolist()

    def _bounds(self, axis: int, size: int, window: slice) -> tuple[int, int]:
        """Return the first and last start along an axis with the network's part in the window, as far as stock goes."""
        patch, final = int(self.patch_size[axis]), int(self.final_patch_size[axis])
        pad = max(int(self.need_to_pad[axis]), patch - size)
        low, high = -pad // 2, size + pad // 2 + pad % 2 - patch
        first = window.start - (patch - final) // 2
        last = max(first, window.stop - final - (patch - final) // 2)
        return int(np.clip(first, low, high)), int(np.clip(last, low, high))


@contextmanager
def loading_transplants() -> Iterator[None]:
    """Let nnU-Net's trainer make loaders that know windows."""
    former = stock.nnUNetDataLoader
    stock.nnUNetDataLoader = TransplantLoader
    try:
        yield
    finally:
        stock.nnUNetDataLoader = former
