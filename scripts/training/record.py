"""With which settings a training runs: refused when it goes on with others, recorded when it is finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..data.provenance import build_provenance, write_provenance
from ..data.training_set import TrainingSet
from ..data.warping import WARPING
from ..runtime.errors import refuse_changes
from ..runtime.files import file_sha256, json_sha256, read_record, write_json
from ..runtime.running import one_spelling, settings_behind, settings_of_handlers
from ..runtime.settings import first_rank
from .checkpoints import CHECKPOINT, MODEL


class TrainingRecord:
    """Refuse to resume with other settings; write `provenance.json` when the training is finished.

    Args:
        data: what is learnt from.
        ckpt_dir: folder of the checkpoints.
        bundle: `{"name", "version"}`.
        seed: of the training.
        network: arguments of the network.
        settings: other settings that decide the result, by the names that users know; a resumed training must have
            the same. Give them as they are used (`"@train#optimizer#lr"`), so that nested overrides are recorded.
            Of several dicts, the later count: what is recorded of every training, and of this one.
        trainer: id of the trainer in the config that is run. All that it is made of is recorded as well, and what of
            its handlers decides the weights; it must be the same, too.
    """

    def __init__(
        self,
        data: TrainingSet,
        ckpt_dir: str | Path,
        bundle: dict,
        seed: int,
        network: dict,
        settings: dict | Sequence[dict],
        trainer: str = "train#trainer",
    ):
        self.data, self.ckpt_dir, self.bundle, self.seed = data, Path(ckpt_dir), bundle, seed
        self.network = network
        parts = [settings] if isinstance(settings, dict) else settings
        self.settings = {name: value for part in parts for name, value in part.items()}
        self.used = settings_behind(trainer)
        deciding = settings_of_handlers(f"{trainer.rpartition('#')[0]}#handlers")
        self.kept = {name: value for name, value in deciding.items() if name not in self.used}
        self.notes: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Act at the start and at the end; attach it after the handler that saves `model.pt`."""
        if first_rank():
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.COMPLETED, self._finish)
        # The other processes may need what the first one has just written: the next stage reads it.
        engine.add_event_handler(Events.COMPLETED, idist.barrier)

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
        remedy = "give another --bundle_root, or remove the folder to start anew"
        before, now = read_record(path, {"network": dict, "settings": dict}, remedy), self._fingerprint()
        if "used" not in before:  # of a version that knew no nested overrides, and options that are no more
            for part in ("network", "settings"):
                known = before[part].keys() & now[part].keys()
                before[part], now[part] = ({key: record[part][key] for key in known} for record in (before, now))
            before["used"] = now["used"]
        before.setdefault("kept", now["kept"])
        for part in ("used", "kept"):
            before[part] = {name: one_spelling(value) for name, value in before[part].items()}
        before, now = ({**record.pop("used"), **record.pop("kept"), **record} for record in (before, now))
        refuse_changes(
            before,
            now,
            f"{self.ckpt_dir} holds a training",
            "the same settings (max_epochs may grow), to go on with it",
            remedy,
        )

    def _fingerprint(self) -> dict:
        return json.loads(json.dumps({
            "seed": self.seed,
            "network": self.network,
            "settings": self.settings,
            "used": self.used,
            "kept": self.kept,
            "cases_sha256": json_sha256([{key: case[key] for key in ("id", "sha256")} for case in self.data.seen]),
            "num_items": len(self.data.training),
            "split_sha256": self.data.cases.fold.sha256,
            "space_sha256": self.data.cases.space["sha256"],
            **({"warping": WARPING} if self.settings.get("warped_copies") else {}),
        }))  # fmt: skip

    def _start(self, engine: Engine) -> None:
        write_json(self.ckpt_dir / "training.json", self._fingerprint())

    def _finish(self, engine: Engine) -> None:
        path = self.ckpt_dir / "provenance.json"
        before = read_record(path, {}, f"remove {path}") if path.is_file() else {}
        if before and before.get("weights_sha256") == file_sha256(self.ckpt_dir / MODEL):
            return  # nothing was trained since: keep the record of what made it
        ran = {"iterations": engine.state.iteration, "epochs": engine.state.epoch}
        training = {**self.settings, **self.notes, **ran, "used": {**self.used, **self.kept}}
        provenance = build_provenance(self.data, self.bundle, self.seed, self.network, training)
        write_provenance(path, provenance, self.ckpt_dir / MODEL)
