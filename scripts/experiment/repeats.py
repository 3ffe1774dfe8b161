"""Pools of real slices again, as they are or turned: what more of the same brings without synthesis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.provenance import build_provenance, package_versions
from ..data.training_set import TrainingSet, item_name, load_own_items
from ..pool.from_real import CLASSICAL, DUPLICATES
from ..pool.writing import write_pool
from ..runtime.files import json_sha256
from ..sampling.sampler import Sampler
from ..segmentation.augmentation import ClassicalAugmentation


class RepeatSampler(Sampler):
    """Gives training items with foreground again, each as often as every other, in an order that `seed` gives.

    They go the way of any sample, to the pool's files and back to a segmenter's grid. Candidate `i` follows from
    (seed, i) alone; a turned one is another copy of its item in every round.

    Args:
        data: training cases of one fold.
        turned: classical copies (rotation, flip and crop, see `ClassicalAugmentation`) instead of the items.
        seed: of order and copies.
    """

    real_anatomy = True

    def __init__(self, data: TrainingSet, turned: bool, seed: int = 0):
        channels = data.num_image_channels
        self.data, self.items = data, [item for item in data.training if item["image"][channels:].any()]
        self.turn = ClassicalAugmentation(channels, data.geometry.spatial_size, seed) if turned else None
        bundle = {"name": CLASSICAL if turned else DUPLICATES, "version": package_versions().get("synthaug", "unknown")}
        self.provenance = build_provenance(data, bundle, seed, {}, {"background_share": 0.0})
        self.provenance["weights_sha256"] = json_sha256([bundle["name"], data.seen, data.geometry.as_record(), seed])
        self.description, self.scaling, self.geometry = data.cases.description, data.scaling, data.geometry
        self.dimension = len(data.geometry.spatial_size)
        self.min_foreground, self.samples_per_pass, self.threads = 0, 1, 1
        self.settings = {"min_foreground": 0}

    def draw(self, candidates: range, seed: int, condition: dict | None = None) -> list[dict | None]:
        """Make the given candidates, see `Sampler.draw`; records also name the item that is repeated."""
        drawn: list[dict | None] = []
        for candidate in candidates:
            repeat, place = divmod(candidate, len(self.items))
            number = int(np.random.default_rng([seed, repeat]).permutation(len(self.items))[place])
            item = self.items[number]
            joint = item["image"]
            if self.turn is not None:
                parts = self.turn({"image": joint, "item": number, "copy": repeat + 1})
                joint = torch.cat([parts["image"], parts["label"]])
            image, label = self._to_space(joint)
            record: dict[str, Any] = {"seed": candidate, "condition": None, "scores": {}, "repeats": item_name(item)}
            drawn.append({"image": image, "label": label, "record": record})
        return drawn


def write_repeats(
    kind: str,
    dataset_dir: str | Path,
    pool_dir: str | Path,
    num_samples: int,
    fold: int | str = 0,
    seed: int = 0,
    plans: str = "nnUNetPlans",
    configuration: str = "2d",
    spatial_size: Sequence[int] | None = None,
) -> Path:
    """Write a pool of `duplicates` or `classical` copies, see `scripts.sampling.copy_paste.write_copy_paste`."""
    data = load_own_items(dataset_dir, fold, plans, configuration, spatial_size, 0.0, seed)
    return write_pool(RepeatSampler(data, kind == CLASSICAL, seed), pool_dir, num_samples, seed)
