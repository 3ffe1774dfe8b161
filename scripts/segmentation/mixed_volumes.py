"""Volumes of a fold and samples of a pool as the training data set of a config that knows neither: the model zoo's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import CacheDataset
from monai.transforms import Compose, Randomizable
from torch.utils.data import Dataset

from .datalist import FoldAndPool


class MixedVolumes(Randomizable, Dataset):
    """Every real training case of a fold, and places for samples, so many that they make `share` of an epoch.

    The share is exact. A place has samples of its own, of which each epoch draws one, so that none comes twice in an
    epoch while the pool lasts; with no more samples than places all of them come in every epoch. Draws follow MONAI's
    seed, in each worker of its loader.

    Args:
        data: folder of a raw data set.
        pool_dir: a finished pool of raw volumes for it.
        transform: of `{"image": paths, "label": path, "synthetic": bool}`, such as `@train#preprocessing`.
        fold: as in the data set.
        share: synthetic part of an epoch, from 0 and below 1.
        cache_num: so many items are kept in memory as they are before the first random transform, real ones first.

    Attributes:
        validation: the fold's validation cases, all real.

    Example:
        --train#dataset "{'_target_': 'synthaug.segmentation.mixed_volumes.MixedVolumes', 'data': RAW_DATASET,
        'pool_dir': POOL, 'transform': '@train#preprocessing'}" --validate#dataset#data '$@train#dataset.validation'

    Raises:
        InputError: pool, data set and fold do not fit together, or the generator saw a validation case.
    """

    def __init__(
        self,
        data: str | Path,
        pool_dir: str | Path,
        transform: Callable,
        fold: int | str = 0,
        share: float = 0.5,
        cache_num: int = 0,
    ):
        both = FoldAndPool.open(pool_dir, data, fold, share)
        self.num_real, self.places, self.validation = len(both.train), both.places, both.val
        self.transform = transform if isinstance(transform, Compose) else Compose(transform)
        self.items = CacheDataset([*both.train, *both.samples], self.transform, cache_num=cache_num, progress=False)

    def __len__(self) -> int:
        return self.num_real + self.places

    def __getitem__(self, index: int) -> Any:
        place = range(len(self))[index] - self.num_real
        if place < 0:
            return self.items[place + self.num_real]
        samples = range(len(self.items) - self.num_real)
        own = samples[place :: self.places] or [place % len(samples)]
        return self.items[self.num_real + own[self.R.randint(len(own))]]

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> MixedVolumes:
        """Seed the draws and the random transforms: MONAI's loader looks no further than this method."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self
