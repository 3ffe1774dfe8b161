"""The MONAI workflow that is running: its configuration as it was given, with all overrides, and what of it is used."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Where a training runs and is kept, and how long it is: no settings that decide what comes out of it.
PLACES = {
    "bundle_root", "ckpt_dir", "autoencoder_dir", "dataset_dir", "phantom_dir", "pool_dir", "device", "cache_gb",
    "cache_dir",
}  # fmt: skip
ASIDE = PLACES | {"max_epochs", "train_handlers", "val_handlers", "_meta_", "bundle"}
# What of a trainer's handlers decides the weights that it ends with; others save, log and draw.
DECIDING = ("best", "validator", "val_interval", "lr_scheduler")


def running_workflow() -> Any:
    """The workflow that evaluates the expression we are called from, which its config cannot name; or None."""
    from monai.bundle import ConfigWorkflow

    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if isinstance(frame.f_locals.get("self"), ConfigWorkflow):
            return frame.f_locals["self"]
    return None


def checkpoint_being_loaded() -> Path | None:
    """The weights for which `monai.bundle.load` makes the network that we are called from; or None."""
    from monai.bundle.scripts import load

    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is load.__code__ and "full_path" in frame.f_locals:
            return Path(frame.f_locals["full_path"])
    return None


def settings_behind(name: str) -> dict[str, Any]:
    """Every value and expression of the running configuration that reaches the object `name`, by its id.

    References are followed, so that it makes no difference which of the settings on the way was overridden. Without
    a workflow, nothing.
    """
    workflow = running_workflow()
    if workflow is None or name not in workflow.parser:
        return {}
    return json.loads(json.dumps(dict(sorted(_values(workflow.parser, name, set()))), default=str))


def settings_of_handlers(name: str) -> dict[str, Any]:
    """As `settings_behind`, of what decides the weights in a list of handlers."""
    workflow = running_workflow()
    found: dict[str, Any] = {}
    if workflow is not None and name in workflow.parser and isinstance(workflow.parser[name], list):
        for index, handler in enumerate(workflow.parser[name]):
            for key in DECIDING:
                if isinstance(handler, dict) and key in handler:
                    place = f"{name}#{index}#{key}"
                    values = dict(_values(workflow.parser, place, set()))
                    # the place of a handler among others, which may come and go, is no setting
                    found |= {key if known == place else known: value for known, value in values.items()}
    return json.loads(json.dumps(dict(sorted(found.items())), default=str))


def _values(parser: Any, name: str, seen: set[str]) -> Iterator[tuple[str, Any]]:
    value = parser[name]
    while isinstance(value, str) and value.startswith("@"):
        target = value[1:].replace("::", "#")
        if target.split("#")[-1] in ASIDE or target.split("#")[0] in ASIDE or target not in parser:
            return
        if isinstance(parser[target], (dict, list)):
            if target not in seen:
                seen.add(target)
                yield from _values(parser, target, seen)
            return
        value = parser[target]
    if isinstance(value, dict):
        for key in value:
            if key not in ASIDE:
                yield from _values(parser, f"{name}#{key}", seen)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index in range(len(value)):
            yield from _values(parser, f"{name}#{index}", seen)
    else:
        yield name, one_spelling(value)
        if isinstance(value, str) and value.startswith("$"):
            yield from _behind_expression(parser, value, seen)


def one_spelling(value: Any) -> Any:
    """An expression with `::` between names, as MONAI spells it; what a macro brings keeps its `#`."""
    from monai.bundle.reference_resolver import ReferenceResolver

    is_expression = isinstance(value, str) and value.startswith("$")
    return ReferenceResolver.normalize_id(value) if is_expression else value


def _behind_expression(parser: Any, expression: str, seen: set[str]) -> Iterator[tuple[str, Any]]:
    from monai.bundle.reference_resolver import ReferenceResolver

    for reference in sorted(ReferenceResolver.match_refs_pattern(expression)):
        target = reference.replace("::", "#")
        # an attribute of an object, such as `@data.training`, is behind the object
        while target not in parser and "." in target:
            target = target.rpartition(".")[0]
        if target in parser and target not in seen and not {*target.split("#")} & ASIDE:
            seen.add(target)
            yield from _values(parser, target, seen)
