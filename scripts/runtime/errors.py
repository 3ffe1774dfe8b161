"""The one error that users are meant to read, the plugin's; what says how settings differ, and which was meant."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from nnunet_plugin.errors import InputError

__all__ = ["InputError", "nearest", "refuse_changes"]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was meant, most likely: by its letters, a word of it, or its initials (`lr`); or None."""
    names = [str(other) for other in known]
    near = difflib.get_close_matches(str(name), names, n=1)
    words = [other for other in names if str(name) in other.split("_")]
    initials = [other for other in names if "".join(word[:1] for word in other.split("_")) == str(name)]
    return next(iter([*near, *words, *initials]), None)


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], what: str, allowed: str, remedy: str) -> None:
    """Raise `InputError` that names every setting in which a run that is to go on differs from its start."""
    different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if different:
        changes = ", ".join(f"{key} {before.get(key)} (now {now.get(key)})" for key in different)
        raise InputError(f"{what} with other settings: {changes}", allowed, remedy)
