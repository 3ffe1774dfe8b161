"""The order of an epoch: real items, samples of a pool and transplants, each at its exact share."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from nnunet_plugin.mixing import REAL, draw, epoch_plan, few_samples_words, share_at
from nnunet_plugin.settings import SynthAugSettings
from torch.utils.data import Sampler

from ..data.training_set import Items
from ..runtime.errors import InputError
from .transplants import STREAM, TransplantSettings

logger = logging.getLogger(__name__)

TRANSPLANT = -1  # number of an item that is made when it is asked for
BUDGETS = ("steps", "epochs", "real_exposures")


class Draw(NamedTuple):
    """What stands at one place of an epoch: an item's number or `TRANSPLANT`, epoch from 1, place from 0."""

    number: int
    epoch: int
    place: int


@dataclass(frozen=True)
class Budget:
    """How long an arm is trained.

    Attributes:
        kind: "steps": as many iterations an epoch as are given, whatever the items are; "epochs": an epoch is one
            pass over the items, so that more items are more steps; "real_exposures": the real items are seen as
            often as `iterations` would show them alone, and the synthetic ones come on top.
        iterations: of an epoch, for steps and real exposures.
    """

    kind: str
    iterations: int

    def iterations_of(self, num_items: int, batch_size: int, real_share: float) -> int:
        """Iterations of an epoch.

        Args:
            num_items: real items and samples of a pool.
            batch_size: items of an iteration.
            real_share: mean over the epochs.

        Raises:
            InputError: an unknown word, no iterations, or no real items to count.
        """
        if self.kind not in BUDGETS:
            raise InputError(f"budget {self.kind!r}", f"one of {', '.join(BUDGETS)}", "set budget")
        if batch_size < 1 or self.iterations < 1:
            raise InputError(f"batch_size {batch_size}, iterations {self.iterations}", "at least 1", "mend the setting")
        if self.kind == "epochs":
            return math.ceil(num_items / batch_size)
        if self.kind == "steps":
            return self.iterations
        if real_share <= 0:
            raise InputError("budget real_exposures without real items", "a share below 1", "set share, or the budget")
        return round(self.iterations / real_share)


class MixedOrder(Sampler[Draw]):
    """The order of an epoch: which places are synthetic, and what stands in each, from (seed, epoch) alone.

    At the places of real items stands what would stand there without a pool and without transplants, so that a share
    of 0 is training on real items to the bit, and arms of different shares see the same real items at the same steps.

    Args:
        items: of `mixed_items`.
        batch_size, iterations: of an epoch.
        num_epochs: of the training, over which a schedule runs.
        share: part of each epoch that is samples of the pool, 0 to 1; None: the part that they have of all items, as
            when a pool is simply added to the real ones.
        schedule, share_end, steps, warmup_epochs, finish_epochs: see `nnunet_plugin.settings.SynthAugSettings`.
        seed: of the draws.
        foreground_oversampling: part of each batch whose real items are drawn from those with foreground.
        transplant: their share and until when, or None.
        budget: see `Budget`.

    Raises:
        InputError: a setting cannot be used.
    """

    def __init__(
        self,
        items: Items | list[dict[str, Any]],
        batch_size: int,
        iterations: int,
        num_epochs: int,
        share: float | None = 0.5,
        schedule: str = "constant",
        share_end: float | None = None,
        steps: list | None = None,
        warmup_epochs: int = 0,
        finish_epochs: int = 0,
        seed: int = 0,
        foreground_oversampling: float = 0.0,
        transplant: TransplantSettings | None = None,
        budget: str = "steps",
    ):
        records = items.records if isinstance(items, Items) else items  # no image is read for the order
        self.num_synthetic = sum(record["synthetic"] for record in records)
        self.num_real = len(items) - self.num_synthetic
        self.batch_size, self.num_epochs, self.seed = batch_size, num_epochs, seed
        share = self.num_synthetic / len(items) if share is None else share
        pairs = None if steps is None else tuple((pair[0], pair[1]) for pair in steps)
        mixed = SynthAugSettings("pool", share, schedule, share_end, pairs, warmup_epochs, finish_epochs, seed)
        mixed.check_length(num_epochs)
        self.settings = mixed if self.num_synthetic else SynthAugSettings("none", share=0.0)
        if (words := few_samples_words(self.settings, self.num_synthetic)) is not None:
            logger.warning(words)
        self.transplant = transplant
        if not 0 <= foreground_oversampling <= 1:
            raise InputError(
                f"foreground_oversampling {foreground_oversampling}", "0 to 1", "set foreground_oversampling"
            )
        self.foreground_oversampling = foreground_oversampling
        marked = [record.get("foreground") for record in records[: self.num_real]]
        self.foreground = np.flatnonzero(np.array(marked, bool))
        real = [1 - sum(self._shares(epoch)) for epoch in range(num_epochs)]
        if min(real) < -1e-9:
            raise InputError(
                f"{100 * (1 - min(real)):.0f} % of the items of an epoch from pool and transplants",
                "at most 100 %",
                "lower share, or that of transplant",
            )
        self.budget = budget
        self.iterations = Budget(budget, iterations).iterations_of(len(items), batch_size, float(np.mean(real)))
        self.epoch = 1

    @property
    def record(self) -> dict[str, Any]:
        """What the draws depend on besides the items and the transplants."""
        names = ("share", "schedule", "share_end", "steps", "warmup_epochs", "finish_epochs")
        return {
            **{name: getattr(self.settings, name) for name in names},
            "foreground_oversampling": self.foreground_oversampling,
            "budget": self.budget,
        }

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes, counted from 1."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batch_size * self.iterations

    def __iter__(self) -> Iterator[Draw]:
        plan = epoch_plan(
            self.settings, self.epoch - 1, self.num_epochs, max(1, self.num_synthetic), self.iterations, self.batch_size
        )
        numbers = np.where(plan == REAL, self._real(), self.num_real + plan)
        numbers[self._transplanted(plan == REAL)] = TRANSPLANT
        return (Draw(number, self.epoch, place) for place, number in enumerate(numbers.ravel().tolist()))

    def _shares(self, epoch: int) -> tuple[float, float]:
        """Of pool and transplants in an epoch, counted from 0."""
        wanted = 0.0
        if self.transplant and epoch < self.num_epochs - self.transplant.finish_epochs(self.num_epochs):
            wanted = self.transplant.share
        return share_at(self.settings, epoch, self.num_epochs), wanted

    def _real(self) -> np.ndarray:
        """Real items for all places `(iterations, batch_size)`; the first of each batch show foreground."""
        first = round(self.foreground_oversampling * self.batch_size) if len(self.foreground) else 0
        rest = draw(self.num_real, self.iterations * (self.batch_size - first), self.seed, self.epoch - 1)
        found = draw(max(1, len(self.foreground)), self.iterations * first, self.seed, self.epoch - 1)
        shown = self.foreground[found] if first else found
        return np.hstack([shown.reshape(self.iterations, -1), rest.reshape(self.iterations, -1)])

    def _transplanted(self, real: np.ndarray) -> np.ndarray:
        """Which of the real places `(iterations, batch_size)` show transplants: so many, spread over the batches."""
        count = math.floor(self._shares(self.epoch - 1)[1] * real.size + 0.5)
        generator = np.random.default_rng([STREAM, self.seed, self.epoch])
        # Each batch's real places in random order; the firsts of all batches are taken, then the seconds, ...
        order = np.where(real, generator.random(real.shape), 2).argsort(axis=1).argsort(axis=1)
        rank = np.where(real, order + generator.random((len(real), 1)), np.inf).ravel()
        chosen = np.zeros(real.size, bool)
        chosen[np.argsort(rank)[: min(count, int(real.sum()))]] = True
        return chosen.reshape(real.shape)
