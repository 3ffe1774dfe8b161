"""Writing files whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_plugin.preprocessed import read_json, wrong_field

from .errors import InputError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to; renamed to it in the end: readers see all of the file or none."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}, which is a folder", "the name of a file", "add a name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_record(path: str | Path, required: Mapping[str, type | tuple[type, ...]], remedy: str) -> dict[str, Any]:
    """A JSON object of a file that somebody may have damaged.

    Args:
        path: of the file.
        required: kinds of its fields, such as `{"space.kind": str}`.
        remedy: what to do about another one.

    Raises:
        InputError: no JSON object, or a field is missing or of another kind.
    """
    content = read_json(Path(path), remedy)
    if wrong := wrong_field(content, required):
        raise InputError(f"{path}: {str(wrong)[:200]}", "the file as it was written", remedy)
    return content


def refuse_foreign(path: str | Path, mark: str) -> None:
    """Refuse to write over what is no file that holds `mark`, as all files of a kind that this program writes do.

    Raises:
        InputError: something else has that name.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and mark.encode() not in path.read_bytes()):
        raise InputError(f"{path}, which this command did not write", "a name that is free", "give another name")


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON whole or not at all."""
    return write_text(path, json.dumps(content, indent=1) + "\n")


def json_sha256(content: Any) -> str:
    """Hash of a JSON value that does not depend on the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
