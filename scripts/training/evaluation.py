"""Evaluation of a finished generator on the cases that were held out from its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..data.provenance import read_provenance
from ..data.training_set import TrainingSet
from ..runtime.errors import InputError
from ..runtime.files import write_json
from ..runtime.settings import first_rank
from .handlers import MODEL


def check_held_out(data: TrainingSet, ckpt_dir: str | Path) -> None:
    """Refuse an evaluation that would not be one.

    Raises:
        InputError: nothing was trained, there are no held-out cases, or the generator has seen some of them.
    """
    provenance = read_provenance(Path(ckpt_dir) / "provenance.json", Path(ckpt_dir) / MODEL)
    if not data.validation:
        raise InputError(f"fold {data.cases.fold.name} of {data.cases.description.name}, which holds out no case "
                         "with foreground", "a fold with validation cases", "give another --fold")  # fmt: skip
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
