"""All that happens around the steps of a training, in the order that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import ValidationHandler

from .averaging import BestWeights
from .checkpoints import Checkpoints
from .loading import EpochSeeds
from .logs import LossLog, Progress
from .pictures import SampleGrid
from .record import TrainingRecord


class TrainingHandlers:
    """Checkpoints, seeds, losses, validation, pictures, record and progress: one handler for MONAI's trainer.

    Args:
        record: of the training: its data, its seed, and the folder that holds all that is written.
        states: what a resumed training needs, name -> object with `state_dict`, or None; with `"network"`.
        noise: source of the model's noise.
        best: which weights the training ends with; judged by `validator`, and part of the states.
        model: what `model.pt` holds and pictures show; those of `best`, or the network, unless given.
        shown: what pictures show, if it is something else.
        sample: see `SampleGrid`.
        picture: draws the pictures instead of `SampleGrid`.
        validator: evaluator of held-out items; nothing is validated where there are none.
        save_interval, val_interval, grid_interval: epochs between checkpoints, validations and pictures.
        more: handlers of a model family: they see the resumed weights, and what they change is saved.
        notes: facts for the record that are known only now.
        resume: go on from a checkpoint that is there.
    """

    def __init__(
        self,
        record: TrainingRecord,
        states: dict[str, Any],
        noise: torch.Generator,
        best: BestWeights | None = None,
        model: Any = None,
        shown: Any = None,
        sample: Any = None,
        picture: Any = None,
        validator: Evaluator | None = None,
        save_interval: int = 1,
        val_interval: int = 1,
        grid_interval: int = 1,
        more: Sequence[Any] = (),
        notes: dict[str, Any] | None = None,
        resume: bool = True,
    ):
        if best is not None:
            states = {**states, "average": best.average, "best": best}
            model = best.model if model is None else model
        folder, model = record.ckpt_dir, states["network"] if model is None else model
        self.record, self.best = record, best
        self.checkpoints = Checkpoints(folder, states, save_interval, model, resume)
        # Judged first: what a family adds may work on the weights that are kept.
        self.first: list[Any] = [] if best is None else [best]
        if validator is not None and len(validator.data_loader) > 0:  # type: ignore[arg-type]
            self.first.append(ValidationHandler(val_interval, validator))
            if best is not None:
                best.attach_validator(validator)
        self.more = [handler for handler in more if handler is not None]
        self.rest: list[Any] = [EpochSeeds(record.seed, noise), LossLog(folder, validator)]
        if picture is None:
            shown = model if shown is None else shown
            picture = SampleGrid(record.data, shown, folder, grid_interval, sample=sample)
        self.rest.append(picture)
        self.rest += [record.noting(**(notes or {})), Progress()]

    def attach(self, engine: Engine) -> None:
        """Attach all."""
        self.checkpoints.attach_start(engine)
        for handler in [*self.first, *self.more]:
            handler.attach(engine)
        self.checkpoints.attach_end(engine)
        if self.best is not None:
            best = self.best
            engine.add_event_handler(Events.COMPLETED, lambda _: self.record.noting(kept=best.as_record()))
        for handler in self.rest:
            handler.attach(engine)
