"""One rule for the options of every command: each takes what its annotation says, on the command line and in Python."""

import functools
import inspect
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError

_TEXT = (str, Path)
_WORDS = {
    bool: "True or False", int: "a whole number from 0", float: "a number from 0", str: "a text", Path: "a path",
    list: "a list", dict: "settings by name",
}  # fmt: skip


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which raises `InputError` for a bool, number, text, path, list or dict that is none.

    The text "false" is no bool, True is no number, "abc" no list; no command takes a negative or an infinite number.
    What is in a dict, or in a list whose annotation does not say it, the function checks itself.
    """
    hints = _hints(function)
    kinds = {name: _kinds(kind) for name, kind in hints.items()}
    items = {name: _kinds_of_items(kind) for name, kind in hints.items()}
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in kinds and not _fits(value, kinds[name]):
                raise _wrong(name, value, kinds[name])
            if isinstance(value, (list, tuple)):
                for item in value:
                    if name in items and not _fits(item, items[name]):
                        raise _wrong_item(name, value, items[name])
        return function(*args, **kwargs)

    return call


def parsers(function: Callable[..., Any]) -> Mapping[str, Callable[[str], Any]]:
    """Return how Fire should read each option of a command: a path such as 2024 or 1e5 stays the text that it is."""
    found: dict[str, Callable[[str], Any]] = {}
    for name, kind in _hints(function).items():
        kinds = _kinds(kind)
        if kinds and kinds & {*_TEXT} and not kinds & {int, float, bool, list, dict}:
            found[name] = _text
        elif kinds and int in kinds and kinds & {*_TEXT}:
            found[name] = _number_or_text
        elif kinds and bool in kinds:
            found[name] = _bool
        elif kinds and kinds & {list, dict}:
            found[name] = _structure
    return found


def _text(word: str) -> str | None:
    if word == "None":
        return None
    return os.path.expanduser(word)  # the shell leaves --output=~/pool as it is


def _number_or_text(word: str) -> Any:
    """The number of a data set or fold, or its name: 1e5 is a name."""
    return int(word) if word.removeprefix("-").isdecimal() else word


def _bool(word: str) -> Any:
    return {"true": True, "false": False, "none": None}.get(word.lower(), word)


def _structure(word: str) -> Any:
    """JSON, or what Fire reads, Python among it: both `true` and `True` are a bool."""
    from fire.parser import DefaultParseValue

    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return DefaultParseValue(word)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.name in hints and p.kind is not p.VAR_POSITIONAL}


def _kinds(annotation: Any) -> set[type] | None:
    """The types that an annotation allows; None where it says nothing of use."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        parts = [_kinds(part) for part in typing.get_args(annotation)]
        return None if None in parts else set().union(*(part for part in parts if part is not None))
    kind = typing.get_origin(annotation) or annotation
    return {kind} if kind in (bool, int, float, str, Path, list, dict, type(None)) else None


def _kinds_of_items(annotation: Any) -> set[type] | None:
    """The types that an annotation allows in a list; None where it does not say."""
    parts = [part for part in (annotation, *typing.get_args(annotation)) if typing.get_origin(part) is list]
    return _kinds(typing.get_args(parts[0])[0]) if parts else None


def _fits(value: Any, kinds: set[type] | None) -> bool:
    if kinds is None:
        return True
    if value is None:
        return type(None) in kinds
    if isinstance(value, (list, tuple)):
        return list in kinds
    if isinstance(value, Mapping):
        return dict in kinds
    if isinstance(value, bool):
        return bool in kinds
    if int in kinds and _is_whole(value):
        return value >= 0
    if float in kinds and isinstance(value, (int, float)):
        return math.isfinite(value) and value >= 0
    return bool(kinds & {*_TEXT}) and isinstance(value, (str, os.PathLike)) and value != ""


def _is_whole(value: Any) -> bool:
    try:
        return not isinstance(value, float) and value.__index__() == value  # numpy's whole numbers are whole, too
    except (AttributeError, TypeError):
        return False


def _wrong(name: str, value: Any, kinds: set[type] | None) -> InputError:
    allowed = " or ".join(words for kind, words in _WORDS.items() if kind in (kinds or ()))
    remedy = f"correct --{name}"
    if kinds and bool in kinds:
        remedy = f"write --{name} alone, or --{name}=False"
    elif kinds and list in kinds:
        remedy = f"write --{name} '{json.dumps([value], default=str)}'"
    elif kinds and dict in kinds:
        remedy = f"write --{name} '{{\"NAME\": VALUE}}'"
    return InputError(f"--{name} {value!r}", allowed, remedy)


def _wrong_item(name: str, value: Any, kinds: set[type] | None) -> InputError:
    words = " or ".join(words for kind, words in _WORDS.items() if kind in (kinds or ()))
    return InputError(f"--{name} {value!r}", f"a list, each of it {words}", f"correct --{name}")
