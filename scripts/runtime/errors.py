"""The one error that users are meant to read, the plugin's; and what says how settings differ."""

from collections.abc import Mapping
from typing import Any

from nnunet_plugin.errors import InputError

__all__ = ["InputError", "refuse_changes"]


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], what: str, allowed: str, remedy: str) -> None:
    """Raise `InputError` that names every setting in which a run that is to go on differs from its start."""
    different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if different:
        changes = ", ".join(f"{key} {before.get(key)} (now {now.get(key)})" for key in different)
        raise InputError(f"{what} with other settings: {changes}", allowed, remedy)
