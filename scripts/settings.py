"""What a bundle run does before any work: refuse unknown settings, and say errors plainly."""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from scripts.errors import InputError
from scripts.packed import check_same_bundle

if TYPE_CHECKING:
    import torch

# What `python -m monai.bundle run` itself understands.
RUN_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
}  # fmt: skip


def prepare_run(metadata: Mapping[str, Any] | None = None) -> None:
    """First step of every bundle's `run`: check the overrides, and show an `InputError` without a traceback.

    MONAI wraps whatever a configuration raises in a long chain; users should read the one line that is for them.

    Args:
        metadata: of the bundle that is run.
    """
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            previous(kind, error, traceback)
        else:
            if not first_rank():
                # What all ranks refuse, the first one says, and torchrun then ends the others, still silent.
                time.sleep(60)
            print(f"error: {cause}", file=sys.stderr)

    sys.excepthook = show
    refuse_unknown_overrides()
    if (workflow := _running_workflow()) is not None:
        refuse_unknown_keys(workflow)
    if metadata is not None:
        check_same_bundle(metadata)


def _running_workflow() -> Any:
    """The MONAI workflow that evaluates the expression we are called from; its config cannot name it."""
    from monai.bundle import ConfigWorkflow

    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if isinstance(frame.f_locals.get("self"), ConfigWorkflow):
            return frame.f_locals["self"]
    return None


def refuse_unknown_keys(workflow: Any) -> None:
    """Refuse settings given to `monai.bundle.create_workflow` that no config file of the bundle defines.

    Args:
        workflow: a MONAI `ConfigWorkflow`.

    Raises:
        InputError: names the nearest known setting.
    """
    from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

    files = sorted(Path(workflow.config_root_path).glob("*.json"))
    known = {key.split("#")[0].lstrip("+") for file in files for key in json.loads(file.read_text())}
    # what MONAI itself adds: the metadata, and the settings of its tracking and of its federated learning
    tracking: Any = DEFAULT_MLFLOW_SETTINGS["configs"]
    known |= {"_meta_", "run_name", *tracking}
    for name in workflow.parser.get():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"unknown setting {name}",
                f"a setting of {Path(workflow.config_root_path)}",
                f"did you mean {near[0]}?" if near else "see the config file",
            )


def refuse_unknown_overrides(argv: Sequence[str] | None = None) -> None:
    """Refuse `--name value` on the command line of a bundle run when no config file defines `name`.

    MONAI adds unknown names to the configuration without a word, so that `--num_sample 500` would draw the default
    number. Does nothing when the configuration is not run from the command line.

    Raises:
        InputError: names the nearest known setting.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    given = [word[2:].split("=")[0] for word in arguments if word.startswith("--")]
    if "config_file" not in given:
        return
    position = next(i for i, word in enumerate(arguments) if word.startswith("--config_file"))
    word = arguments[position]
    files = word.split("=", 1)[1] if "=" in word else arguments[position + 1]
    from monai.bundle import ConfigParser

    config: dict = {}
    for file in files.strip("[]").split(","):
        config |= ConfigParser.load_config_file(file.strip(" '\""))
    for word, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if word.startswith("--") and "None" in (value, *word.split("=")[1:]):
            raise InputError(f"{word} None, which MONAI drops without a word", "'$None'", f"write {word} '$None'")
    for name in given:
        if name not in RUN_ARGUMENTS:
            _check_name(name, config, files)


def _check_name(name: str, config: dict, files: str) -> None:
    """Follow `a#b#c` into the configuration; the last part may add to what a target takes only where it is known."""
    level: Any = config
    for depth, part in enumerate(name.replace("::", "#").lstrip("+").split("#")):
        if isinstance(level, str):  # a macro or an expression, which cannot be seen into
            return
        known = set(level) if isinstance(level, dict) else {str(i) for i in range(len(level or ()))}
        if isinstance(level, dict) and "_target_" in level:
            known |= {"_disabled_", "_requires_", "_desc_", "_mode_"}
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            raise InputError(
                f"unknown setting --{name}",
                f"a setting of {files}",
                f"did you mean --{'#'.join([*name.split('#')[:depth], near[0]])}?" if near else "see the config file",
            )
        level = (
            level[part] if isinstance(level, dict) and part in level else level[int(part)] if part.isdigit() else None
        )


def local_device() -> torch.device:
    """The GPU of this process (`torchrun` numbers the processes of a machine), or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def first_rank() -> bool:
    """Whether this process is the only or the first one of a `torchrun`: what is done once, it does."""
    return int(os.environ.get("RANK", 0)) == 0
