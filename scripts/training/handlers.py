"""What happens around the steps: seeds, logs, pictures, and the record of a finished training."""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from ..data.provenance import build_provenance, write_provenance
from ..data.training_set import TrainingSet
from ..runtime.errors import InputError, refuse_changes
from ..runtime.files import file_sha256, json_sha256, write_json
from ..runtime.settings import first_rank
from .parallel import wait_for_ranks
from .tracking import log_file

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"  # everything that a resumed training needs
MODEL = "model.pt"  # the trained network's state dict


class EpochSeeds:
    """Seed the order of the training items and the model's noise anew at every epoch, from (seed, epoch) alone.

    So a training that is stopped and resumed draws what an uninterrupted one draws; generator states need not be
    stored.
    """

    def __init__(self, seed: int, generator: torch.Generator, sampler: Any):
        self.seed, self.generator, self.sampler = seed, generator, sampler

    def attach(self, engine: Engine) -> None:
        """Act at the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed."""
        epoch = engine.state.epoch
        self.sampler.set_epoch(epoch)
        self.generator.manual_seed((self.seed << 32) + epoch)


class LossLog:
    """Mean of every named term per epoch, to `losses.csv` and TensorBoard, with a line in the log.

    Columns: epoch, iteration, seconds, then the terms. A resumed training cuts the rows that it runs again.
    """

    def __init__(self, log_dir: str | Path):
        self.path = Path(log_dir) / "losses.csv"
        self.log_dir = Path(log_dir)
        self.sums: dict[str, list[float]] = {}

    def attach(self, engine: Engine) -> None:
        """Act at the start, at each iteration and epoch, and at the end; on the first process."""
        if not first_rank():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.writer.close())

    def _start(self, engine: Engine) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.log_dir.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        if engine.state.epoch > 0 and self.path.is_file():
            with open(self.path, newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= engine.state.epoch]
        self.writer = SummaryWriter(str(self.log_dir / "tensorboard"), purge_step=engine.state.iteration + 1)
        self.since = time.monotonic()

    def _add(self, engine: Engine) -> None:
        for name, value in engine.state.output.items():  # type: ignore[union-attr]
            self.sums.setdefault(name, []).append(value)
        # MONAI's handlers, such as that of `--tracking mlflow`, read a list, as of an engine that decollates
        engine.state.output = [engine.state.output]  # type: ignore[assignment]

    def _write(self, engine: Engine) -> None:
        means = {name: sum(values) / len(values) for name, values in self.sums.items()}
        self.sums = {}
        seconds, self.since = time.monotonic() - self.since, time.monotonic()
        epoch, iteration = engine.state.epoch, engine.state.iteration
        self.rows.append({"epoch": epoch, "iteration": iteration, "seconds": round(seconds, 2)} | means)
        for name, value in means.items():
            self.writer.add_scalar(f"train/{name}", value, iteration)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)
        logger.info(
            "epoch %d/%d: %s",
            epoch,
            engine.state.max_epochs,
            ", ".join(f"{k} {v:.4g}" for k, v in means.items()),
        )


class LatentDensity:
    """Where samples are drawn from: the prior, or a Gaussian fitted to the posterior of the training items.

    Attach it before the handlers that draw or save.

    Args:
        data: what is learnt from.
        network: module with `fit_latent_density`.
        density: "prior" (the papers) or "aggregate" (see `HVAE.fit_latent_density`).
        interval: epochs between fits; the last is at the end.
    """

    def __init__(self, data: TrainingSet, network: Any, density: str, interval: int):
        if density not in ("prior", "aggregate"):
            raise InputError(f"latent_density {density!r}", "'prior' or 'aggregate'", "set latent_density")
        self.data, self.network, self.density, self.interval = data, network, density, interval

    def attach(self, engine: Engine) -> None:
        """Act every `interval` epochs and at the end."""
        if self.density == "aggregate":
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval) | Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Fit."""
        self.network.eval()
        self.network.fit_latent_density(self.data.training_tensor())


class SampleGrid:
    """A picture of real slices, their reconstructions, and samples, every few epochs and at the end.

    Written to `samples.png`, TensorBoard and, with tracking, MLflow: people would rather look than read. Volumes
    are shown by one slice each: the one with the largest mask, or the middle one.

    Args:
        data: what is learnt from.
        network: module; its `reconstruct` and `predict`, (batch, channels + labels, ...) -> the same, and its
            `latent_shape` with `forward`, make the rows; a row whose method it has not is left out.
        log_dir: where the picture goes.
        interval: epochs between pictures.
        seed: of the samples' noise.
        sample: makes the samples from noise `(batch, *latent_shape)`; the network itself unless given.
    """

    def __init__(
        self,
        data: TrainingSet,
        network: Any,
        log_dir: str | Path,
        interval: int,
        seed: int = 0,
        sample: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.data, self.network, self.interval, self.seed = data, network, interval, seed
        self.sample = network if sample is None else sample
        self.path = Path(log_dir) / "samples.png"

    def attach(self, engine: Engine) -> None:
        """Act every `interval` epochs and at the end; on the first process."""
        if first_rank():
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval) | Events.COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        """Draw the picture; the noise is the same at every epoch, so that progress can be seen."""
        from torch.utils.tensorboard import SummaryWriter

        from ..report.figures import save_png
        from ..report.sheets import draw_sheet
        from ..sampling.sampler import latent_noise

        description, channels = self.data.cases.description, self.data.num_image_channels
        items = [item["image"] for item in self.data.training if item["image"][channels:].any()]
        # Volumes are many slices each: fewer of them, one at a time.
        count, at_once = (8, 8) if items[0].ndim == 3 else (4, 1)
        real = torch.stack(items[:: max(1, len(items) // count)][:count])
        device = next(self.network.parameters()).device

        def in_passes(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
            return torch.cat([function(part.to(device)).float().cpu() for part in x.split(at_once)])

        self.network.eval()
        shown = [("real (training)", self._planes(real, real))]
        for method, name in (("reconstruct", "reconstruction"), ("predict", "prediction")):
            if hasattr(self.network, method):
                shown.append((name, self._planes(in_passes(getattr(self.network, method), real), real)))
        if hasattr(self.network, "latent_shape"):
            noise = torch.stack([latent_noise(self.network.latent_shape, self.seed, i) for i in range(count)])
            sampled = in_passes(self.sample, noise)
            shown.append(("sample", self._planes(sampled, sampled)))
        rows = [
            (name, x[:, :channels], np.stack([description.to_label_map(masks) for masks in x[:, channels:]]))
            for name, x in shown
        ]
        figure = draw_sheet(
            rows,
            description.painted,
            channel_names=list(description.channel_names.values()),
            title=f"epoch {engine.state.epoch}",
        )
        save_png(figure, self.path)
        with SummaryWriter(str(self.path.parent / "tensorboard")) as writer:
            writer.add_figure("samples", figure, engine.state.iteration)
        log_file(engine, self.path)

    def _planes(self, x: torch.Tensor, by: torch.Tensor) -> np.ndarray:
        """Slices as they are; of volumes `(batch, channel, height, width, depth)` the one with most mask in `by`."""
        if x.ndim == 4:
            return x.numpy()
        areas = (by[:, self.data.num_image_channels :] >= 0.5).any(1).sum((1, 2))
        areas[:, areas.shape[1] // 2] += (areas.sum(1) == 0).to(areas)
        return torch.stack([volume[..., index] for volume, index in zip(x, areas.argmax(1), strict=True)]).numpy()


class Checkpoints:
    """Store everything that a resumed training needs, every few epochs, and the finished network at the end.

    A training that finds a checkpoint goes on from it. MONAI's CheckpointSaver writes in place, and saves the
    weights of a failed training too; here a file is replaced only by a whole one, after a whole epoch.

    Args:
        ckpt_dir: folder for `checkpoint.pt` and `model.pt`.
        save_dict: name -> object with `state_dict`, or None. The trainer is added.
        interval: epochs between checkpoints.
        device: where the training runs.
        model: what `model.pt` holds, an object with `state_dict`; `save_dict["network"]` unless given.
        resume: go on from a checkpoint that is there; else it is replaced.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        save_dict: dict[str, Any],
        interval: int = 1,
        device: torch.device | str = "cpu",
        model: Any = None,
        resume: bool = True,
    ):
        self.ckpt_dir, self.interval, self.device, self.resume = Path(ckpt_dir), interval, device, resume
        self.save_dict = {name: value for name, value in save_dict.items() if value is not None}
        self.model = save_dict["network"] if model is None else model
        self.resumed_at: int | None = None
        self.saving: Any = None

    def attach(self, engine: Engine) -> None:
        """Act at the start, every `interval` epochs and at the end; attach it before the handlers that write.

        All processes of a `torchrun` go on from the checkpoint, the first one writes it.
        """
        engine.add_event_handler(Events.STARTED, self._resume)
        if not first_rank():
            return
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
            state = torch.load(path, map_location=self.device, weights_only=True)
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
        if engine.state.iteration == self.resumed_at and (self.ckpt_dir / "provenance.json").is_file():
            return  # nothing was trained: what is there stays as it is
        self._save(engine)
        self._write(MODEL, self.model.state_dict())

    def _write(self, name: str, state: Any) -> None:
        self.ckpt_dir.mkdir(parents=True, exist_ok=True)
        temporary = self.ckpt_dir / f".{name}.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.ckpt_dir / name)


class Progress:
    """One bar over all epochs, with the time left and the current loss."""

    def attach(self, engine: Engine) -> None:
        """Show the bar; on the first process."""
        from ignite.handlers import ProgressBar

        if not first_rank():
            return
        bar = ProgressBar(persist=True, desc="training", bar_format=None)
        bar.attach(engine, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED,
                   output_transform=lambda output: {"loss": output[0]["loss"]})  # fmt: skip


class TrainingRecord:
    """Refuse to resume with other settings; write `provenance.json` when the training is finished.

    Args:
        data: what is learnt from.
        ckpt_dir: folder of the checkpoints.
        bundle: `{"name", "version"}`.
        seed: of the training.
        network: arguments of the network.
        settings: other settings that decide the result; a resumed training must have the same.
    """

    def __init__(
        self,
        data: TrainingSet,
        ckpt_dir: str | Path,
        bundle: dict,
        seed: int,
        network: dict,
        settings: dict,
    ):
        self.data, self.ckpt_dir, self.bundle, self.seed = data, Path(ckpt_dir), bundle, seed
        self.network, self.settings = network, settings
        self.notes: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Act at the start and at the end; attach it after the handler that saves `model.pt`."""
        if first_rank():
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.COMPLETED, self._finish)
        # The other processes may need what the first one has just written: the next stage reads it.
        engine.add_event_handler(Events.COMPLETED, wait_for_ranks)

    def noting(self, **notes: Any) -> TrainingRecord:
        """Add facts that are known only after the checks, such as the name of the feature extractor."""
        self.notes |= notes
        return self

    def check_resume(self) -> None:
        """Compare with the settings of the checkpoint that would be resumed.

        Raises:
            InputError: they differ.
        """
        path = self.ckpt_dir / "training.json"
        if not path.is_file() or not (self.ckpt_dir / CHECKPOINT).is_file():
            return
        refuse_changes(
            json.loads(path.read_text()),
            self._fingerprint(),
            f"{self.ckpt_dir} holds a training",
            "the same settings (max_epochs may grow), to go on with it",
            "give another --bundle_root, or remove the folder to start anew",
        )

    def _fingerprint(self) -> dict:
        return json.loads(json.dumps({
            "seed": self.seed,
            "network": self.network,
            "settings": self.settings,
            "cases_sha256": json_sha256([{key: case[key] for key in ("id", "sha256")} for case in self.data.seen]),
            "num_items": len(self.data.training),
            "split_sha256": self.data.cases.fold.sha256,
            "space_sha256": self.data.cases.space["sha256"],
        }))  # fmt: skip

    def _start(self, engine: Engine) -> None:
        write_json(self.ckpt_dir / "training.json", self._fingerprint())

    def _finish(self, engine: Engine) -> None:
        path = self.ckpt_dir / "provenance.json"
        if path.is_file() and json.loads(path.read_text())["weights_sha256"] == file_sha256(self.ckpt_dir / MODEL):
            return  # nothing was trained since: keep the record of what made it
        training = {**self.settings, **self.notes, "iterations": engine.state.iteration, "epochs": engine.state.epoch}
        provenance = build_provenance(self.data, self.bundle, self.seed, self.network, training)
        write_provenance(path, provenance, self.ckpt_dir / MODEL)
