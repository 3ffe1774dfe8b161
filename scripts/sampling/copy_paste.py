"""A pool of tumours pasted into other patients, written, mixed and refused as those of generators are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.provenance import build_provenance, package_versions
from ..data.training_set import TrainingSet, item_name, load_own_items
from ..pool.writing import write_pool
from ..runtime.errors import InputError
from ..runtime.files import json_sha256
from .pasting import draw_margin, paste, signed_distance
from .sampler import Sampler

# Slices without a tumour are recipients, too; a tumour is pasted into whatever lies at its height.
BACKGROUND_SHARE = 0.5


class CopyPasteSampler(Sampler):
    """Draw pairs by pasting the tumour of one training patient into another (CarveMix, Zhang et al. 2021).

    Donors are drawn evenly from the items with foreground, recipients evenly from the other patients; of a
    recipient's slices the one at the donor's relative height is taken, and in it, where cases differ in size, the
    tumour's relative place. Candidate `i` follows from (seed, i) alone.

    Args:
        data: training cases of one fold; those of validation are never read.
        seed: of the choice of slices without foreground, for the provenance.
        min_foreground: see `Sampler`.

    Raises:
        InputError: there is one patient alone.
    """

    real_anatomy = True

    def __init__(self, data: TrainingSet, seed: int = 0, min_foreground: int = 8):
        self.data = data
        channels = data.num_image_channels
        self.donors = [i for i, item in enumerate(data.training) if item["image"][channels:].any()]
        self.patients: dict[str, list[int]] = {}
        for index, item in enumerate(data.training):
            self.patients.setdefault(item["case"], []).append(index)
        if len(self.patients) < 2:
            raise InputError(
                f"{len(self.patients)} training patient with slices or volumes to use",
                "two or more: a tumour is pasted into another patient",
                "choose a fold with more training cases",
            )
        shapes = {case: data.cases.load(case).label.shape for case in self.patients}
        self.depths = {case: shape[0] for case, shape in shapes.items()}
        self.boxes = {case: data.geometry.filled(shape) for case, shape in shapes.items()}
        sizes = {shape[1:] for shape in shapes.values()}
        self.spacing = data.grid_spacing
        bundle = {"name": "copy_paste", "version": package_versions().get("synthaug", "unknown")}
        self.provenance = build_provenance(data, bundle, seed, {}, {"background_share": BACKGROUND_SHARE})
        self.provenance["weights_sha256"] = json_sha256(
            [data.seen, data.geometry.as_record(), seed, *(["relative places"] if len(sizes) > 1 else [])]
        )
        self.description, self.scaling, self.geometry = data.cases.description, data.scaling, data.geometry
        self.dimension = len(data.geometry.spatial_size)
        self.min_foreground, self.samples_per_pass, self.threads = min_foreground, 1, 1
        self.settings = {"min_foreground": min_foreground}

    def draw(self, candidates: range, seed: int, condition: dict | None = None) -> list[dict | None]:
        """Make the given candidates, see `Sampler.draw`; records also name donor, recipient and margin (mm)."""
        drawn: list[dict | None] = []
        for candidate in candidates:
            joint, facts = self.paste(candidate, seed)
            image, label = self._to_space(joint)
            record = {"seed": candidate, "condition": None, "scores": {}, **facts}
            kept = self.accepts(label, condition)
            drawn.append({"image": image, "label": label, "record": record} if kept else None)
        return drawn

    def paste(self, candidate: int, seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """Candidate `(channels + labels, *spatial_size)` on the training grid, and how it was made."""
        rng = np.random.default_rng([seed, candidate])
        donor = self.data.training[self.donors[rng.integers(len(self.donors))]]
        others = sorted(set(self.patients) - {donor["case"]})
        patient = others[rng.integers(len(others))]
        height = self._height(donor)
        items = [self.data.training[i] for i in self.patients[patient]]
        recipient = min(items, key=lambda item: abs(self._height(item) - height))
        channels = self.data.num_image_channels
        foreground = (donor["image"][channels:] >= 0.5).any(dim=0).numpy()
        margin = draw_margin(signed_distance(foreground, self.spacing), rng)
        boxes = self.boxes[donor["case"]], self.boxes[patient]
        joint = paste(recipient["image"], donor["image"], channels, margin, self.spacing, boxes)
        return joint, {"donor": item_name(donor), "recipient": item_name(recipient), "margin": round(margin, 3)}

    def _height(self, item: dict[str, Any]) -> float:
        """Where a slice lies in its volume, 0 to 1; the same for all volumes."""
        return (item["slice"] + 0.5) / self.depths[item["case"]] if "slice" in item else 0.5


def write_copy_paste(
    dataset_dir: str | Path,
    pool_dir: str | Path,
    num_samples: int,
    fold: int | str = 0,
    seed: int = 0,
    plans: str = "nnUNetPlans",
    configuration: str = "2d",
    spatial_size: Sequence[int] | None = None,
) -> Path:
    """Write a pool of pasted tumours; the same command goes on where it stopped, or lets the pool grow.

    Args:
        dataset_dir: preprocessed or raw nnU-Net data set.
        pool_dir: the pool's folder.
        num_samples: its size.
        fold: whose training cases are used.
        seed: of the draws.
        plans, configuration: of a preprocessed data set.
        spatial_size: grid that cases are brought to, three numbers for volumes; None: see `own_size`.

    Raises:
        InputError: the data set or a setting cannot be used.
    """
    data = load_own_items(dataset_dir, fold, plans, configuration, spatial_size, BACKGROUND_SHARE, seed)
    return write_pool(CopyPasteSampler(data, seed), pool_dir, num_samples, seed)
