"""Cases of a list of files: how MONAI Label, and programs like it, give a bundle images of their own to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, MetaTensor
from monai.utils import CommonKeys as Keys

from ..data.cases import Case, Cases, RawCases, open_cases
from ..data.folds import listed_fold
from ..runtime.errors import InputError
from .model_space import ModelSpace
from .order import TRANSPLANT, Draw
from .transplants import Transplants
from .whole_cases import case_of

Listed = list[Mapping[str, Any]]


def open_source(source: str | Path | Listed | None, ckpt_dir: str | Path, **folder: Any) -> Cases:
    """Open the cases of a list of files, or of a data set folder.

    Args:
        source: a list of `{"image": path (or one a channel), "label": path}`, or `dataset_dir` of `open_cases`.
        ckpt_dir: models folder of the network that learns from a list; its record says what channels and labels are.
        folder: of `open_cases`.
    """
    return ListedCases(source, ckpt_dir) if isinstance(source, list) else open_cases(source, **folder)


class DatasetOf(Dataset):
    """The items that were made of the cases of a source, and transplants between them.

    Args:
        data: the source; programs that bring images of their own replace this argument, and the items are of those.
        items: of `mixed_items`.
        transform: of an item, which also holds `"epoch"` and `"place"`, that random draws may depend on.
        transplants: makes the items that have no number.
    """

    def __init__(
        self,
        data: str | Path | Listed | None,
        items: Sequence[Any],
        transform: Callable | None = None,
        transplants: Transplants | None = None,
    ):
        super().__init__(items, transform)
        self.source, self.transplants = data, transplants

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, Draw):
            return super().__getitem__(index)
        if index.number == TRANSPLANT:
            assert self.transplants is not None  # MixedOrder plans none without them
            item = {**self.transplants.make(index.epoch, index.place), "transplanted": True}
        else:
            item = {**self.data[index.number], "transplanted": False}
        done = self.transform({**item, "epoch": index.epoch, "place": index.place})
        return {name: done[name] for name in (Keys.IMAGE, Keys.LABEL, "synthetic", "transplanted")}


class ListedCases(RawCases):
    """Images and labels of a list, prepared as those that the network at hand has learnt from.

    They are preprocessed with the nnU-Net plans of that network, or else stay in the scanner's units on the raw
    axes, where the first image says what spacing and slice axis all must have. All of them are for training.

    Args:
        items: `{"image": path (or one a channel), "label": path}`; a case is named after its (first) image.
        ckpt_dir: holds `provenance.json` of the network.

    Raises:
        InputError: no items, two of one name, no network, or a file that cannot be used.
    """

    def __init__(self, items: Listed, ckpt_dir: str | Path):
        self.model = ModelSpace.open(Path(ckpt_dir) / "provenance.json")
        self.description = replace(self.model.description, name="listed")
        items = sorted(items, key=lambda item: case_of(item["image"]))
        names = [case_of(item["image"]) for item in items]
        if not names or len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(
                f"{len(names)} images with a label" + (f", several named {', '.join(twice)}" if twice else ""),
                "one or more, each with a name of its own",
                "annotate images, or rename them",
            )
        self.files = dict(zip(names, items, strict=True))
        self.fold = listed_fold(names)
        self.plans = self.model.plans
        if self.plans is None:
            self.axes = self.model.axes
            self.space = self._space_of(names[0])
        else:
            self.space, self.is_3d = self.model.space, self.model.is_3d

    def _image_paths(self, case_id: str) -> list[Path]:
        image = self.files[case_id]["image"]
        return [Path(path) for path in (image if isinstance(image, (list, tuple)) else [image])]

    def _label_path(self, case_id: str) -> Path:
        return Path(self.files[case_id]["label"])

    def _read(self, case_id: str) -> Case:
        if self.plans is None:
            return super()._read(case_id)
        image, label, affine = self._load_pair(case_id)
        return self.model.to_case(case_id, MetaTensor(image, affine=torch.as_tensor(affine)), label.astype(np.float32))
