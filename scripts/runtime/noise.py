"""Random draws for a batch that several processes may share."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


class SharedNoise(torch.Generator):
    """Generator of one of the processes of a `torchrun`, seeded alike in all: together they draw what one draws.

    Attributes:
        share: number of this process, and how many there are.
    """

    def __init__(self) -> None:
        self.share = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def draw_rows(draw: Callable[[int], torch.Tensor], count: int, generator: torch.Generator | None) -> torch.Tensor:
    """`draw(n)` of n = `count` rows; with `SharedNoise`, draw for the batch of all processes and keep one's own.

    The rows are dealt out one by one, as `DistributedSampler` deals out the items.
    """
    rank, ranks = getattr(generator, "share", (0, 1))
    return draw(count * ranks)[rank::ranks]
