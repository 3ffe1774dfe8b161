"""Training by several processes (`torchrun`): each takes its part of every batch, and all make the same step.

The networks are not trained through `forward`, so that `DistributedDataParallel` has nothing to hook into (and it
knows no second derivatives); gradients are averaged here, after `backward` and before they are clipped. As every
process starts from the same seed or checkpoint and takes the same averaged step, their weights stay equal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Sampler

from ..runtime.errors import InputError
from ..runtime.ranks import PATIENCE


def join_ranks() -> None:
    """Meet the other processes of a `torchrun`; alone, nothing happens."""
    # not by ignite, which takes one backend alone: gradients lie on the GPU, what is gathered elsewhere on the CPU
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        idist.sync()


def leave_ranks() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
        idist.sync()


def batch_share(batch_size: int) -> int:
    """Items that each process takes of a batch.

    Raises:
        InputError: they cannot be dealt out evenly.
    """
    ranks = idist.get_world_size()
    if batch_size % ranks:
        raise InputError(
            f"batch_size {batch_size} for {ranks} processes",
            "a multiple of the number of processes: it counts the items of all of them",
            f"give {-(-batch_size // ranks) * ranks}, or start fewer processes",
        )
    return batch_size // ranks


class RankSampler(Sampler[int]):
    """What this process takes of an order that all know, dealt out one by one, as `DistributedSampler` does."""

    def __init__(self, order: Any):
        self.order = order

    def __len__(self) -> int:
        return len(self.order) // idist.get_world_size()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.order), idist.get_rank(), None, idist.get_world_size())


def average_gradients(network: nn.Module) -> None:
    """Put the mean over all processes into the gradients of a network."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if idist.get_world_size() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message instead of hundreds
    flat = torch.as_tensor(idist.all_reduce(flat)) / idist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def mean_terms(named: dict[str, Tensor]) -> dict[str, float]:
    """The named scalars of a step as floats, each the mean over all processes."""
    values = torch.stack([value.detach().float() for value in named.values()])
    values = torch.as_tensor(idist.all_reduce(values)) / idist.get_world_size()
    return dict(zip(named, values.tolist(), strict=True))
