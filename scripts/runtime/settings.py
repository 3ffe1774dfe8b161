"""What a bundle run does before any work: refuse unknown settings, and say errors plainly."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .packed import check_same_bundle

if TYPE_CHECKING:
    import torch

# What `python -m monai.bundle run` itself understands, and hands on to the workflow that it makes.
RUN_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_name", "workflow_type", "properties_path",
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
    files = sorted(Path(workflow.config_root_path).glob("*.json"))
    known = {key.split("#")[0].lstrip("+") for file in files for key in json.loads(file.read_text())}
    # what MONAI itself adds: the metadata, and the settings of tracking, one of which federated learning always gives
    known |= {"_meta_", *_tracking_settings("mlflow")}
    config = workflow.parser.get()
    for name in config:
        # what something refers to has an effect: tracking may bring settings of its own
        if name not in known and not re.search(rf"@{re.escape(name)}\b", str(config)):
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"unknown setting {name}",
                f"a setting of {Path(workflow.config_root_path)}",
                f"did you mean {near[0]}?" if near else "see the config file",
            )


def refuse_unknown_overrides(argv: Sequence[str] | None = None) -> None:
    """Refuse `--name value` on the command line of a bundle run when no config file defines `name`.

    MONAI adds unknown names to the configuration without a word, so that `--num_sample 500` would draw the default
    number. Does nothing when the configuration is not run from MONAI's command line.

    Raises:
        InputError: names the nearest known setting.
    """
    if argv is None:
        program, *argv = sys.argv
        if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py"):
            return
    from fire.parser import DefaultParseValue  # MONAI's command line is Fire's
    from monai.bundle import ConfigParser

    given: dict[str, Any] = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            given[name.replace("-", "_")] = DefaultParseValue(value if equals else following)
    for name, value in given.items():
        if value is None:
            raise InputError(f"--{name} None, which MONAI drops without a word", "'$None'", f"write --{name} '$None'")
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    if "config_file" not in given:
        return
    config = ConfigParser.load_config_files(given["config_file"])
    if "tracking" in given:
        config = {**_tracking_settings(given["tracking"]), **config}
    for name in given:
        if name not in RUN_ARGUMENTS:
            _check_name(name, config, given["config_file"])


def _tracking_settings(tracking: str | dict) -> dict[str, Any]:
    """What MONAI's `tracking` adds to the top of a configuration; the handlers among it go to the engines."""
    from monai.bundle import ConfigParser
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    if isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS:
        settings: Any = DEFAULT_EXP_MGMT_SETTINGS[tracking]
    else:
        settings = ConfigParser.load_config_files(tracking)
    return {key: value for key, value in settings["configs"].items() if key not in settings["handlers_id"]}


def _check_name(name: str, config: dict, files: Any) -> None:
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
