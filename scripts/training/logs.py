"""Numbers that can be followed: the losses in files, in TensorBoard and in the log, and a bar."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..runtime.files import replacing
from ..runtime.settings import first_rank

logger = logging.getLogger(__name__)


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
        with replacing(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        logger.info(
            "epoch %d/%d: %s", epoch, engine.state.max_epochs, ", ".join(f"{k} {v:.4g}" for k, v in means.items())
        )


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
