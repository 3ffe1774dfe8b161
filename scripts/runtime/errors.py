"""The one error that users are meant to read."""

from collections.abc import Mapping
from typing import Any


class InputError(ValueError):
    """Input that cannot be used: what was got, what is allowed, and how to mend it.

    Raised before any long work starts, so that nothing is half-written. The command line prints it without
    a traceback and exits with status 1.
    """

    def __init__(self, got: str, allowed: str, remedy: str):
        super().__init__(f"{got}\n  allowed: {allowed}\n  remedy:  {remedy}")


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], what: str, allowed: str, remedy: str) -> None:
    """Raise `InputError` that names every setting in which a run that is to go on differs from its start."""
    different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if different:
        changes = ", ".join(f"{key} {before.get(key)} (now {now.get(key)})" for key in different)
        raise InputError(f"{what} with other settings: {changes}", allowed, remedy)
