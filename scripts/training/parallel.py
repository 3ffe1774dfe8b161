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

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Sampler

from ..runtime.errors import InputError
from ..runtime.ranks import PATIENCE


def join_ranks() -> None:
    """Meet the other processes of a `torchrun`; alone, nothing happens."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)


def leave_ranks() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def this_rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait_for_ranks(*_: object) -> None:
    """Go on when all processes have come here."""
    if num_ranks() > 1:
        dist.barrier()


def batch_share(batch_size: int) -> int:
    """Items that each process takes of a batch.

    Raises:
        InputError: they cannot be dealt out evenly.
    """
    if batch_size % num_ranks():
        raise InputError(
            f"batch_size {batch_size} for {num_ranks()} processes",
            "a multiple of the number of processes: it counts the items of all of them",
            f"give {-(-batch_size // num_ranks()) * num_ranks()}, or start fewer processes",
        )
    return batch_size // num_ranks()


class RankSampler(Sampler[int]):
    """What this process takes of an order that all know, dealt out one by one, as `DistributedSampler` does."""

    def __init__(self, order: Any):
        self.order = order

    def __len__(self) -> int:
        return len(self.order) // num_ranks()

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self.order), this_rank(), None, num_ranks())


def average_gradients(network: nn.Module) -> None:
    """Put the mean over all processes into the gradients of a network."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if num_ranks() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message instead of hundreds
    dist.all_reduce(flat)
    flat /= num_ranks()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def mean_terms(named: dict[str, Tensor]) -> dict[str, float]:
    """The named scalars of a step as floats, each the mean over all processes."""
    values = torch.stack([value.detach().float() for value in named.values()])
    if num_ranks() > 1:
        dist.all_reduce(values)
        values /= num_ranks()
    return dict(zip(named, values.tolist(), strict=True))
