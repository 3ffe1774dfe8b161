"""Files of a training in MLflow, where `--tracking mlflow` has attached MONAI's handler to the trainer."""

from __future__ import annotations

from pathlib import Path

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler


def log_file(engine: Engine, path: str | Path) -> None:
    """Add a file to the runs that follow this engine; does nothing without tracking."""
    # ignite tells only whether a known handler is attached, not which are
    for function, *_ in getattr(engine, "_event_handlers", {}).get(Events.STARTED, ()):
        handler = getattr(function, "__self__", None)
        if isinstance(handler, MLFlowHandler) and handler.cur_run:
            handler.client.log_artifact(handler.cur_run.info.run_id, str(path))
