"""How good a pool is in a few numbers, against cases that its generator never saw: what a training is followed by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.distributions import frechet_distance, kernel_distance
from ..metrics.extractors import pooled_features
from ..metrics.item_sets import mask_channels, open_pool, read_cases, read_samples
from ..metrics.prdc import prdc
from ..networks.features import FeatureExtractor, SegmentationFeatures, VGG16Features, train_segmentation_features
from ..runtime.errors import InputError
from ..runtime.settings import local_device
from .audit import EXTRACTOR_SEED
from .items import load_audit_data
from .memorisation import find_copies
from .thresholds import LEVELS

NEIGHBOURS = 5
BATCH = 32


class PoolQuality:
    """Measures pools of one data set and fold, one after another, by the same extractors.

    Figures of a pool: `fid`, `kid`, `precision` and `recall` (k = 5) of its slices against the held-out cases' slices
    with foreground, in the features of the project's own extractor or of VGG16; `copies`, the share of samples that
    the audit would drop as copies of a training case. `real` holds the first four of the training cases against the
    held-out ones: what a perfect generator would reach with as many items.

    Args:
        dataset_dir: the data set that the generators were trained on, as then.
        weights_vgg: a VGG16 file, or None for the own extractor.
        seed: of the own extractor, which is trained once, on the training cases of the first pool.
        steps: of its training.
    """

    def __init__(self, dataset_dir: str | Path, weights_vgg: str | Path | None = None, seed: int = 0, steps: int = 200):
        self.dataset_dir, self.seed, self.steps = dataset_dir, seed, steps
        self.judge: FeatureExtractor | None = None if weights_vgg is None else VGG16Features(weights_vgg)
        self.own: SegmentationFeatures | None = None
        self.held_out = np.empty((0, 0))
        self.real: dict[str, float] = {}

    def __call__(self, pool_dir: str | Path) -> dict[str, float | int]:
        """Measure a pool.

        Raises:
            InputError: the pool, or the data set, cannot be used; nothing is held out.
        """
        pool = open_pool(pool_dir, self.dataset_dir)
        if not pool.held_out:
            raise InputError(
                f"fold {pool.cases.fold.name}, which holds out no case", "a fold with validation cases", "give --fold"
            )
        if self.own is None:
            self._prepare(pool)
        assert self.own is not None and self.judge is not None
        samples = read_samples(pool, _silent)
        found = self._against(pooled_features(self.judge, samples.images.split(BATCH)))
        audit = load_audit_data(pool_dir, self.dataset_dir, _silent)
        copies = find_copies(audit, self.own, LEVELS, _silent).closeness < 1
        return {"samples": len(samples.ids), **found, "copies": float(copies.mean())}

    def _prepare(self, pool: Any) -> None:
        training, held_out = (
            read_cases(pool, name, ids, _silent)
            for name, ids in (("training", pool.training), ("held-out", pool.held_out))
        )
        masks = mask_channels(training, pool.description)
        seed = EXTRACTOR_SEED + self.seed  # not that of the generator's own loss
        self.own = train_segmentation_features(
            training.images, masks, steps=self.steps, seed=seed, device=local_device()
        ).cpu()
        self.judge = self.judge or self.own
        self.held_out = pooled_features(self.judge, held_out.images.split(BATCH))
        self.real = self._against(pooled_features(self.judge, training.images.split(BATCH)))

    def _against(self, features: np.ndarray) -> dict[str, float]:
        ones = np.ones((1, len(features))), np.ones((1, len(self.held_out)))
        figures = {
            "fid": frechet_distance(features, self.held_out, *ones),
            "kid": kernel_distance(features, self.held_out, *ones),
            **prdc(features, self.held_out, *ones, neighbours=NEIGHBOURS),
        }
        return {name: float(figures[name][0]) for name in ("fid", "kid", "precision", "recall")}


def _silent(items: Sequence, title: str) -> Sequence:
    return items
