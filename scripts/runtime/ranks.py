"""The processes of a `torchrun` that share one job, or the single process without it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# A rank may draw for hours while the others wait; one that died is noticed at once.
PATIENCE = timedelta(days=30)


class PeerError(InputError):
    """What failed on another rank, told on this one."""

    def __init__(self, message: str):
        ValueError.__init__(self, message)


class Ranks:
    """Talk between the ranks; alone, everything is trivial. Use it as a context.

    Attributes:
        rank, size: number of this process, and how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def __enter__(self) -> Ranks:
        if self.size > 1:
            import torch.distributed as dist

            dist.init_process_group("gloo", timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that does what is done once."""
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """What every rank gives, in the order of the ranks.

        Raises:
            PeerError: a rank is gone.
        """
        if self.size == 1:
            return [item]
        import torch.distributed as dist

        items = [None] * self.size
        try:
            dist.all_gather_object(items, item)
        except RuntimeError as error:
            raise PeerError(
                f"another of the {self.size} processes has ended; "
                "remedy: see what it said, or whether memory ran out; the same command goes on where it stopped"
            ) from error
        return items

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails on one rank inside the block fails on all, so that none waits for it.

        Raises:
            PeerError: it failed on another rank.
        """
        try:
            yield
        except Exception as error:
            with suppress(PeerError):
                self.gather(str(error) if isinstance(error, InputError) else traceback.format_exc())
            raise
        for failure in self.gather(None):
            if failure is not None:
                raise PeerError(failure)


def total_over_ranks(part: Tensor) -> Tensor:
    """Sum over all ranks of what each found in its part of a batch, for a loss that is no mean over the items.

    Its gradient is `size` times that of the own part: the mean of the gradients of all ranks, which they step along,
    is then that of the whole batch's loss.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return part
    total = part.detach().clone()
    dist.all_reduce(total)
    return total + dist.get_world_size() * (part - part.detach())
