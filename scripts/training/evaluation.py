"""Figures of held-out items: while a network trains, and of a finished generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.handlers import StatsHandler, TensorBoardStatsHandler
from torch import Tensor

from ..data.provenance import read_provenance
from ..data.scaling import Scaling
from ..data.training_set import TrainingSet
from ..networks.whole import read_weights
from ..runtime.errors import InputError
from ..runtime.files import write_json
from ..runtime.settings import first_rank
from .checkpoints import MODEL
from .steps import images


class ItemEvaluation(ABC):
    """Evaluate held-out items one by one, for MONAI's `SupervisedEvaluator`: no figure depends on the batch size.

    Args:
        seed: of the noise, which is the same for an item at every validation.
    """

    def __init__(self, seed: int = 0):
        self.seed, self.seen = seed, 0

    def start(self, network: Any, device: torch.device) -> None:  # noqa: B027  most need nothing
        """Prepare what all items share; before the first of a run."""

    @abstractmethod
    def item(self, network: Any, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """Scalars of one item, by name; `x` (1, channels + labels, ...), and its own source of noise."""

    @torch.no_grad()
    def __call__(self, engine: Any, batch: dict) -> dict[str, list[float]]:
        """Figures of every item of `batch["image"]` (batch, channels + labels, ...), by name."""
        network, device = engine.network, engine.state.device
        network.eval()
        if engine.state.iteration == 1:
            self.seen = 0
            self.start(network, device)
        found: dict[str, list[float]] = {}
        for x in images(batch, device):
            noise = torch.Generator().manual_seed((self.seed << 32) + self.seen)
            self.seen += 1
            for name, value in self.item(network, x[None], noise).items():
                found.setdefault(name, []).append(float(value))
        return found


class ItemMean(Metric):
    """Mean over all items of a figure that an `ItemEvaluation` gives; every process of a `torchrun` sees all items."""

    def __init__(self, name: str):
        super().__init__(output_transform=lambda output: output[name])

    def reset(self) -> None:
        """Begin anew."""
        self.values: list[float] = []

    def update(self, output: list[float]) -> None:
        """Add the items of a batch."""
        self.values += output

    def compute(self) -> float:
        """The mean; NaN without items."""
        return sum(self.values) / len(self.values) if self.values else float("nan")


def item_means(**figures: str) -> dict[str, Metric]:
    """Metrics of an evaluator by name, each with the figure that it is the mean of; the first is the key metric."""
    return {name: ItemMean(figure) for name, figure in figures.items()}


class ValidationLog:
    """Metrics of an evaluator in the log and, with a folder, in TensorBoard; on the first process.

    Args:
        log_dir: holds the folder `tensorboard`, or None.
    """

    def __init__(self, log_dir: str | Path | None = None):
        self.log_dir = log_dir

    def attach(self, engine: Engine) -> None:
        """Act after every run."""
        if first_rank():
            StatsHandler(iteration_log=False).attach(engine)
            if self.log_dir is not None:
                folder = str(Path(self.log_dir) / "tensorboard")
                TensorBoardStatsHandler(log_dir=folder, iteration_log=False).attach(engine)


def check_held_out(data: TrainingSet, ckpt_dir: str | Path) -> None:
    """Refuse an evaluation that would not be one.

    Raises:
        InputError: nothing was trained, the weights are broken, there are no held-out cases, or the generator has seen
            some of them.
    """
    provenance = read_provenance(Path(ckpt_dir) / "provenance.json", Path(ckpt_dir) / MODEL)
    read_weights(Path(ckpt_dir) / MODEL)
    if not data.validation:
        raise InputError(f"fold {data.cases.fold.name} of {data.cases.description.name}, which holds out no case "
                         "with foreground", "a fold with validation cases", "give another --fold")  # fmt: skip
    if (data.scaling.knee is None) != (Scaling.from_record(provenance["scaling"]).knee is None):
        raise InputError(
            "intensities that are scaled in another way than those of the training",
            "the same scale",
            "give the --intensities of the training (before there were any: linear)",
        )
    seen = sorted({case["id"] for case in provenance["cases"]} & {item["case"] for item in data.validation})
    if seen:
        raise InputError(
            f"held-out cases that the generator was trained on: {', '.join(seen[:5])}",
            f"those of fold {provenance['fold']} of {provenance['dataset']}",
            "give the --dataset_dir and --fold of the training",
        )


class EvaluationReport:
    """Write the metrics of an evaluator, with what they were measured on, to `evaluation.json`.

    Args:
        data: its validation items are what the evaluator runs over.
        ckpt_dir: holds the record of the generator, if it was trained here (in federated learning it was not).
        output_dir: where the file goes.
    """

    def __init__(self, data: TrainingSet, ckpt_dir: str | Path, output_dir: str | Path):
        self.data, self.ckpt_dir, self.output_dir = data, Path(ckpt_dir), Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Act at the end; on the first process."""
        if first_rank():
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write."""
        path = self.ckpt_dir / "provenance.json"
        trained = read_provenance(path) if path.is_file() else {}
        content: dict[str, Any] = {
            "metrics": {name: float(value) for name, value in engine.state.metrics.items()},
            "items": len(self.data.validation),
            "cases": sorted({item["case"] for item in self.data.validation}),
            "dataset": self.data.cases.description.name,
            "fold": self.data.cases.fold.name,
            **{key: trained.get(key) for key in ("bundle", "weights_sha256", "seed")},
        }
        write_json(self.output_dir / "evaluation.json", content)
