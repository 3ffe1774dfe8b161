"""In which order the training items come, and what a step draws: functions of (seed, epoch) alone."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, DistributedSampler
from torch.utils.data import Dataset

from ..runtime.errors import InputError
from ..runtime.ranks import Ranks
from .parallel import RankSampler, batch_share


def training_loader(
    dataset: Dataset, batch_size: int, seed: int = 0, order: Any = None, num_workers: int = 0
) -> DataLoader:
    """Batches in a new order every epoch; of several processes each takes its part of every batch.

    Args:
        dataset: the items.
        batch_size: items that all processes take together.
        seed: of the order, which is random unless it is given.
        order: sampler that all processes know, with `set_epoch`.
        num_workers: processes that load.

    Raises:
        InputError: the batch cannot be dealt out evenly, or the processes of a `torchrun` have not met.
    """
    ranks = Ranks().size
    if ranks != idist.get_world_size():
        raise InputError(
            f"a training that {ranks} processes each do for themselves",
            "one that they share",
            "add configs/multi_gpu_train.json to the config files",
        )
    sampler: Any = RankSampler(order)
    if order is None:
        sampler = DistributedSampler(dataset, num_replicas=ranks, rank=idist.get_rank(), shuffle=True, seed=seed)
    return DataLoader(dataset, batch_size=batch_share(batch_size), sampler=sampler, num_workers=num_workers)


class EpochSeeds:
    """Seed the order of the training items and the model's noise anew at every epoch, from (seed, epoch) alone.

    So a training that is stopped and resumed draws what an uninterrupted one draws; generator states need not be
    stored.

    Args:
        seed: of the training.
        generator: source of the noise.
        sampler: whose order it is; that of the trainer's loader unless given.
    """

    def __init__(self, seed: int, generator: torch.Generator, sampler: Any = None):
        self.seed, self.generator, self.sampler = seed, generator, sampler

    def attach(self, engine: Engine) -> None:
        """Act at the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed."""
        epoch = engine.state.epoch
        sampler: Any = self.sampler
        if sampler is None:
            sampler = engine.state.dataloader.sampler  # type: ignore[union-attr]
        sampler.set_epoch(epoch)
        self.generator.manual_seed((self.seed << 32) + epoch)
