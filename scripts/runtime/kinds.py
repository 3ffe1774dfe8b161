"""What may stand where a bundle has a value of its own: the kinds of settings, and how a wrong one is told."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import InputError

# Kinds of values, and how a user would call them; a bool is no number, although Python says so.
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: "a list"}
# Settings that are 1 at least; other whole numbers may be 0.
COUNTS = re.compile(r"(?<!warmup_)(?<!finish_)(epochs|batch_size|iterations_per_epoch|num_samples)$")
WORDS = {"fold": "all", "spatial_size": "auto"}  # settings that are numbers, or one word
EXAMPLES = {"fold": 0, "spatial_size": [64, 64]}  # of what else they may be
# Settings that a bundle may leave open or compute, and what may stand there.
OPEN = {
    "autocast": "auto", "gradient_clip": 1.0, "size_multiple": 8, "share_end": 0.5, "background_share": 0.5,
    "num_real_cases": 10, "num_synthetic": 100, "steps": [[0, 0.5]], "lesion_labels": ["tumour"], "transplant": {},
    "feature_weights": "vgg.pth", "pool_dir": "pool", "normalisation": "z_score",
}  # fmt: skip
MARKS = ("$", "@", "%")  # how a text begins that MONAI evaluates, refers by, or copies by
LOADER = "CheckpointLoader"  # MONAI's, by its short or its full name


def is_expression(value: Any) -> bool:
    """Whether MONAI evaluates, resolves or copies a text."""
    return isinstance(value, str) and value.startswith(MARKS)


def same_kind(name: str, value: Any, default: Any) -> bool:
    """Whether a value can stand where a bundle has `default`; what the bundle computes, anything can."""
    default, name = _example(name, default), name.split("#")[-1]
    if default is None or is_expression(value) or is_expression(default) or (name in WORDS and value == WORDS[name]):
        return True
    if value is None:
        return isinstance(default, (float, str)) or name in OPEN
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return isinstance(value, (list, tuple)) and _needed(default) <= _kept(value)
    if isinstance(default, dict) and isinstance(value, Mapping):
        return "_target_" in value or "_target_" not in default
    if isinstance(default, (dict, list)) and isinstance(value, list) and value and isinstance(value[0], dict):
        return True  # what is given as components
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if type(default) is int:
        return type(value) is int and value >= least(name)
    if isinstance(default, list):
        if not isinstance(value, (list, tuple)):
            return False
        # one of its kinds, as in [[0, 0.5]], an epoch and a share
        return not default or (
            len(value) > 0 and all(any(same_kind(name, item, own) for own in default) for item in value)
        )
    if isinstance(default, dict):
        return False
    if isinstance(default, str):
        return isinstance(value, (str, os.PathLike))
    return type(value) is type(default)


def _example(name: str, default: Any) -> Any:
    """What may stand in a setting that a bundle leaves open, or to one word."""
    last = name.split("#")[-1]
    if default is None or is_expression(default):
        return OPEN.get(last, default)
    return EXAMPLES[last] if last in WORDS and default == WORDS[last] else default


def _needed(components: Sequence[Any]) -> set[str]:
    """What of a bundle's components has to stay: what loads weights, trains, and keeps what is trained."""
    wanted = [part for part in components if isinstance(part, Mapping) and not part.get("_disabled_")]
    targets = {str(part.get("_target_", "")) for part in wanted}
    own = ("scripts.", f"{__package__.partition('.')[0]}.")  # as a clone's or a packed bundle says, or an installed one
    return {_class(target) for target in targets if target.startswith(own) or _class(target) == LOADER}


def _kept(components: Sequence[Any]) -> set[str]:
    """The classes of components; only a loader may be disabled, as where an exported network brings its weights."""
    parts = [part for part in components if isinstance(part, Mapping)]
    found = {_class(str(part.get("_target_", ""))) for part in parts if not _disabled(part)}
    return found | ({LOADER} & {_class(str(part.get("_target_", ""))) for part in parts})


def _disabled(part: Mapping[str, Any]) -> bool:
    """As MONAI reads it; of an expression nothing is known yet."""
    said = part.get("_disabled_", False)
    return said.strip().lower() == "true" if isinstance(said, str) else bool(said)


def _class(target: str) -> str:
    return target.rpartition(".")[2]


def least(name: str) -> int:
    """The least value of a setting that is a whole number."""
    return 1 if COUNTS.search(name) else 0


def other_kind(what: str, name: str, value: Any, default: Any, dashes: str = "--") -> InputError:
    """The error about a value that cannot stand where a bundle has `default`."""
    default = _example(name, default)
    if isinstance(default, dict) or (isinstance(default, list) and default and isinstance(default[0], dict)):
        parts = list(default) if isinstance(default, dict) else sorted(_needed(default))
        more = f"write {dashes}{name}#{parts[0]} and the like" if isinstance(default, dict) else f"+{name} adds to them"
        return InputError(f"{what} {value!r}"[:200], f"one that holds {', '.join(map(str, parts))}", more)
    if isinstance(default, str):
        own = f"./{value}" if name.endswith(("_dir", "_root")) else f"\"'{value}'\""
    else:
        own = f"'{default}'" if isinstance(default, list) else str(default)
    words = f"a whole number from {least(name)}" if type(value) is type(default) is int else None
    words = (words or KINDS.get(type(default), "settings by name")) + (f", or {WORDS[name]}" if name in WORDS else "")
    return InputError(f"{what} {value!r}", f"{words}, such as {default}", f"write {dashes}{name} {own}")
