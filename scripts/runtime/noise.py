"""Random draws for a batch that several processes may share."""

from __future__ import annotations

from collections.abc import Callable

import ignite.distributed as idist
import torch


class SharedNoise(torch.Generator):
    """Generator that is seeded alike in all processes of a `torchrun`: together they draw what one draws alone."""


def draw_rows(draw: Callable[[int], torch.Tensor], count: int, generator: torch.Generator | None) -> torch.Tensor:
    """`draw(n)` of n = `count` rows; with `SharedNoise`, draw for the batch of all processes and keep one's own.

    The rows are dealt out one by one, as `DistributedSampler` deals out the items.
    """
    shared = isinstance(generator, SharedNoise)
    rank, ranks = (idist.get_rank(), idist.get_world_size()) if shared else (0, 1)
    return draw(count * ranks)[rank::ranks]
