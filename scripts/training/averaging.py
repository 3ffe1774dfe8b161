"""Which weights a training ends with: their running average, as it was where held-out items liked it best."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..runtime.errors import InputError

logger = logging.getLogger(__name__)

KEEP = ("best", "last")
PATIENCE = 3  # validations in a row that must be worse before it is said


class WeightAverage(AveragedModel):
    """Exponential moving average of a module's weights, with a warm-up.

    After n steps the decay is min(`decay`, (1 + n) / (10 + n)), so that a short training forgets its start.
    """

    def __init__(self, model: torch.nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise InputError(f"ema_decay {decay}", "a number in [0, 1)", "set ema_decay; 0.999 is usual")

        def average(averaged: Any, current: Any, count: Tensor | int) -> None:
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

        super().__init__(model, multi_avg_fn=torch.no_grad()(average))


class BestWeights(nn.Module):
    """The averaged weights of the validation with the lowest held-out loss, as `model`: what `model.pt` will hold.

    Until a validation has judged them, where nothing is held out, and with `keep` "last", they are those of the last
    epoch. A resumed training needs its state. It warns once where the held-out loss has been worse than its best for
    `PATIENCE` validations while the training's own loss is below what it was there.

    Args:
        average: whose weights are kept.
        metric: of the validation, lower is better.
        keep: "best" or "last".
        trained: the term of a step that is compared with `metric` for the warning; None: nothing is compared.

    Raises:
        InputError: another word for `keep`.
    """

    loss: Tensor
    epoch: Tensor
    trained_loss: Tensor
    risen: Tensor

    def __init__(self, average: WeightAverage, metric: str, keep: str = "best", trained: str | None = "loss"):
        super().__init__()
        if keep not in KEEP:
            raise InputError(f"keep_weights {keep!r}", f"one of {list(KEEP)}", "set keep_weights")
        self.averages, self.metric, self.keep, self.trained = [average], metric, keep, trained  # a list: not its part
        self.model: nn.Module = copy.deepcopy(average.module)
        start = {"loss": math.inf, "epoch": 0, "trained_loss": math.inf, "risen": 0}
        for name, value in start.items():
            self.register_buffer(name, torch.tensor(float(value), dtype=torch.float64))
        self.terms: list[float] = []
        self.last_trained = math.nan

    @property
    def average(self) -> WeightAverage:
        """Whose weights are kept."""
        return self.averages[0]

    def attach(self, engine: Engine) -> None:
        """Follow a trainer; attach it before what needs `model`, and before the validation."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def attach_validator(self, engine: Engine) -> None:
        """Judge by an evaluator's metric, whenever it has run for the trainer."""
        engine.add_event_handler(Events.COMPLETED, lambda e: self.judge(e.state.epoch, e.state.metrics[self.metric]))

    def judge(self, epoch: int, found: float) -> None:
        """Take the weights over if this held-out loss is the lowest so far; NaN, of no items, says nothing."""
        if math.isnan(found):
            return
        if found < self.loss:
            if self.keep == "best":
                self._take(epoch)
            for name, value in (("loss", found), ("trained_loss", self.last_trained), ("risen", 0)):
                getattr(self, name).fill_(value)
            return
        overfits = self.last_trained < self.trained_loss
        self.risen.fill_(self.risen + 1 if overfits else 0)
        if overfits and self.risen == PATIENCE:
            logger.warning(
                "epoch %d: %s has been above its lowest, %.4g, for %d validations (now %.4g), while the training's own "
                "%s fell from %.4g to %.4g: the network learns its cases by heart. %s. Less training would do; more "
                "cases, or a smaller network, would do better.",
                epoch, self.metric, self.loss, PATIENCE, found, self.trained, self.trained_loss, self.last_trained,
                f"model.pt will hold the weights of epoch {int(self.epoch)}" if self.keep == "best" else
                "keep_weights is 'last', so that model.pt will hold the last ones all the same",
            )  # fmt: skip

    def as_record(self) -> dict[str, Any]:
        """What the provenance says of the choice: the epoch of the weights, and the lowest held-out loss."""
        judged = {} if torch.isinf(self.loss) else {self.metric: float(self.loss)}
        return {"keep": self.keep, "epoch": int(self.epoch), **judged}

    def _add(self, engine: Engine) -> None:
        if self.trained is not None:
            self.terms.append(engine.state.output[self.trained])  # type: ignore[index,call-overload]

    def _end_epoch(self, engine: Engine) -> None:
        if self.terms:
            self.last_trained, self.terms = sum(self.terms) / len(self.terms), []
        if self.keep == "last" or torch.isinf(self.loss):
            self._take(engine.state.epoch)

    def _take(self, epoch: int) -> None:
        self.model.load_state_dict(self.average.module.state_dict())
        self.epoch.fill_(epoch)
