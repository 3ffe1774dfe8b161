"""Everything that a resumed training needs, and the finished network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from ..runtime.errors import InputError
from ..runtime.files import file_sha256, read_record, replacing
from ..runtime.settings import first_rank

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"  # everything that a resumed training needs
MODEL = "model.pt"  # the trained network's state dict


class Checkpoints:
    """Store everything that a resumed training needs, every few epochs, and the finished network at the end.

    A training that finds a checkpoint goes on from it. MONAI's CheckpointSaver writes in place, and saves the
    weights of a failed training too; here a file is replaced only by a whole one, after a whole epoch.

    Args:
        ckpt_dir: folder for `checkpoint.pt` and `model.pt`.
        save_dict: name -> object with `state_dict`, or None. The trainer is added.
        interval: epochs between checkpoints.
        model: what `model.pt` holds, an object with `state_dict`; `save_dict["network"]` unless given.
        resume: go on from a checkpoint that is there; else it is replaced.
    """

    def __init__(
        self, ckpt_dir: str | Path, save_dict: dict[str, Any], interval: int = 1, model: Any = None, resume: bool = True
    ):
        self.ckpt_dir, self.interval, self.resume = Path(ckpt_dir), interval, resume
        self.save_dict = {name: value for name, value in save_dict.items() if value is not None}
        self.model = save_dict["network"] if model is None else model
        self.resumed_at: int | None = None
        self.saving: Any = None

    def attach(self, engine: Engine) -> None:
        """Act at the start, every `interval` epochs and at the end; attach it before the handlers that write.

        All processes of a `torchrun` go on from the checkpoint, the first one writes it.
        """
        self.attach_start(engine)
        self.attach_end(engine)

    def attach_start(self, engine: Engine) -> None:
        """Go on from a checkpoint; handlers that need the resumed weights are attached after this."""
        engine.add_event_handler(Events.STARTED, self._resume)

    def attach_end(self, engine: Engine) -> None:
        """Save; handlers that change what is saved are attached before this."""
        if first_rank():
            engine.add_event_handler(Events.STARTED, self._save_from_now_on)
            engine.add_event_handler(Events.COMPLETED, self._finish)

    def _save_from_now_on(self, engine: Engine) -> None:
        """Save epochs; attached at the start, and so after all others, which have then done their part of an epoch.

        A training that is killed before the others have, such as the log of the losses, runs the epoch again.
        """
        if self.saving is None:
            event = Events.EPOCH_COMPLETED(every=self.interval)
            self.saving = engine.add_event_handler(event, self._save)

    def _resume(self, engine: Engine) -> None:
        path = self.ckpt_dir / CHECKPOINT
        # An engine that has run before is in a round of federated learning, and has just been given other weights.
        if engine.state.iteration > 0 or not self.resume or not path.is_file():
            return
        max_epochs = engine.state.max_epochs  # may have grown since
        try:
            # Each object brings its own to its device; an optimiser's counts stay here, where reading them is free.
            state = torch.load(path, map_location="cpu", weights_only=True)
            Checkpoint.load_objects({**self.save_dict, "trainer": engine}, state)
        except Exception as error:  # what loading raises on a foreign file is anyone's guess
            raise InputError(
                f"{path} cannot be resumed ({type(error).__name__}: {str(error)[:200]})",
                "the checkpoint of a training with the same settings",
                "give another --bundle_root, or remove the folder to start anew",
            ) from error
        if engine.state.epoch > (max_epochs or 0):
            raise InputError(
                f"max_epochs {max_epochs}, after {engine.state.epoch} epochs of training",
                f"at least {engine.state.epoch}",
                "give a larger --max_epochs, or another --bundle_root",
            )
        engine.state.max_epochs = max_epochs
        self.resumed_at = engine.state.iteration
        logger.info("going on after epoch %d of %s", engine.state.epoch, path)

    def _save(self, engine: Engine) -> None:
        objects = {**self.save_dict, "trainer": engine}
        self._write(CHECKPOINT, {name: value.state_dict() for name, value in objects.items()})

    def _finish(self, engine: Engine) -> None:
        if engine.state.iteration == self.resumed_at and self._is_finished(engine.state.iteration):
            return  # nothing was trained: what is there stays as it is
        self._save(engine)
        # on the CPU, so that it loads where there is no GPU
        self._write(MODEL, {name: value.cpu() for name, value in self.model.state_dict().items()})

    def _is_finished(self, iterations: int) -> bool:
        """Whether the network that is there is the one of all these iterations, and recorded.

        A training that was longer than the one before may have ended between its last checkpoint and that.
        """
        record, model = self.ckpt_dir / "provenance.json", self.ckpt_dir / MODEL
        if not record.is_file() or not model.is_file():
            return False
        found = read_record(record, {"training": dict, "weights_sha256": str}, f"remove {record}")
        return found["training"].get("iterations") == iterations and found["weights_sha256"] == file_sha256(model)

    def _write(self, name: str, state: Any) -> None:
        with replacing(self.ckpt_dir / name) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)  # given a path, it would write its name, and so the process, into the file
