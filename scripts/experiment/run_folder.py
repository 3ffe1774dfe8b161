"""The folder of an experiment: `run.json`, and a folder for each cell whose `result.json` is written last.

`run.json` and the `result.json` of the cells are small and hold no path outside of the folder but where the data lay:
kept alone, they are a run that can be reported, and gone on with in another folder of the same data. What an earlier
setting made is set aside in `earlier` and taken back when it is wanted again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..runtime.errors import InputError
from ..runtime.files import json_sha256, read_record, write_json
from .cells import Cell, cell_hashes, plan_cells

FORMAT, FORMAT_VERSION = "synthaug-experiment", 2
RESULT: dict[str, type | tuple[type, ...]] = {"settings_sha256": str, "values": dict}
LOCK = ".lock"
EARLIER = "earlier"


class RunFolder:
    """An experiment's folder, opened.

    Attributes:
        settings: of the protocol.
        cells: id -> cell, each after those that it needs.
        sha256: id -> what decides the cell's result.
    """

    def __init__(self, path: str | Path):
        self.path = absolute(path)
        content = read_run(self.path)
        self.settings = content["settings"]
        cells = plan_cells(self.settings)
        self.cells = {cell.id: cell for cell in cells}
        self.sha256 = cell_hashes(cells)

    @classmethod
    def start(cls, path: str | Path, settings: dict[str, Any], facts: dict[str, Any]) -> RunFolder:
        """Open a folder for an experiment, a new one or one that goes on, be it with other settings.

        Cells whose settings changed, and those that need them, are set aside; all others stay, and with the same
        settings the time that it was first started.

        Raises:
            InputError: it holds another protocol's experiment, or something else.
        """
        folder = absolute(path)
        before = check_folder(folder, settings["name"])
        cells = plan_cells(settings)
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **facts, "settings": settings}
        if before and json_sha256(before["settings"]) == json_sha256(settings):
            content["started"] = before["started"]
        content["cells"] = [
            {"id": cell.id, "kind": cell.kind, "settings": cell.settings, "needs": cell.needs} for cell in cells
        ]
        folder.mkdir(parents=True, exist_ok=True)
        moved = _set_aside(folder, cell_hashes(cells))
        write_json(folder / "run.json", content)
        for words, names in moved.items():
            if names:
                print(f"{words}: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}", flush=True)
        return cls(folder)

    def folder(self, cell: str) -> Path:
        """Where a cell works."""
        return self.path / "cells" / cell

    def log(self, cell: str) -> Path:
        """What a cell printed."""
        return self.folder(cell) / "log.txt"

    def result(self, cell: str) -> dict[str, Any] | None:
        """What a finished cell found; None before.

        Raises:
            InputError: the result is of other settings.
        """
        file = self.folder(cell) / "result.json"
        if not file.is_file():
            return None
        found = read_record(file, RESULT, "remove the folder of the cell")
        if found["settings_sha256"] != self.sha256[cell]:
            raise InputError(
                f"{file} is of other settings", "results of this experiment", "remove the folder of the cell"
            )
        return found

    def has_files(self, cell: str) -> bool:
        """Whether a finished cell still has what others read of it: a run whose results alone were kept has not."""
        found = self.result(cell)
        return found is not None and all((self.path / file).exists() for file in found.get("files", ()))

    def needed(self, cell: Cell, kind: str) -> dict[str, Any]:
        """The values of a cell that `cell` needs."""
        result = self.result(cell.needs[kind])
        assert result is not None  # a cell starts when what it needs is finished
        return result["values"]

    def within(self, path: str | Path) -> str:
        """A path as results hold it: relative to the folder where it lies in it, so that the folder may move."""
        path = Path(path)
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) else str(path)

    def resolve(self, path: str) -> Path:
        """The path that `within` wrote."""
        return self.path / path


def absolute(path: str | Path) -> Path:
    """A path from the root, its links kept: a linked data set has the name of its link."""
    return Path(os.path.abspath(path))


def read_run(folder: Path) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
        InputError: there is none, or one of another version.
    """
    file = folder / "run.json"
    remedy = "give another --output_dir"
    content = read_record(file, {}, remedy) if file.is_file() else {}
    if content.get("format") != FORMAT:
        raise InputError(
            f"{folder} without the run.json of an experiment", "the --output_dir of one",
            "run synthaug experiment, run or demo",
        )  # fmt: skip
    if content.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{file} of format version {content.get('format_version')}",
            f"{FORMAT_VERSION}",
            "give another --output_dir, or go on with the version that began it",
        )
    return read_record(file, {"settings.name": str, "cells": list}, remedy)


def check_folder(folder: Path, name: str) -> dict[str, Any] | None:
    """The content of `run.json` in a folder of this protocol's experiment; None in a new or empty one.

    Raises:
        InputError: it holds something else.
    """
    if (folder / "run.json").is_file():
        content = read_run(folder)
        before = content["settings"]["name"]
        if before != name:
            raise InputError(
                f"{folder} holds an experiment of the protocol {before!r}", f"one of {name!r}, or an empty folder",
                "give another --output_dir",
            )  # fmt: skip
        return content
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no experiment", "a new or empty folder", "give another --output_dir"
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", "a folder", "give another --output_dir")
    return None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder alone.

    Raises:
        InputError: another command works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"another command is at work in {folder}", "one command a folder",
            "wait for it, or give another --output_dir",
        ) from None  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def _set_aside(folder: Path, wanted: dict[str, str]) -> dict[str, list[str]]:
    """Move cells of other settings away, and take back what was made with the present ones."""
    away, back = [], []
    for name, sha256 in wanted.items():
        place = folder / "cells" / name
        before = _sha256_of(place)
        if before is not None and before != sha256:
            target = folder / EARLIER / f"{name}-{before[:12]}"
            _move(place, target)
            away.append(name)
        kept = folder / EARLIER / f"{name}-{sha256[:12]}"
        if before != sha256 and kept.is_dir():
            _move(kept, place)
            back.append(name)
    return {f"made with other settings, and kept in {folder / EARLIER}": away, "made before, and taken back": back}


def _move(source: Path, target: Path) -> None:
    """Rename a cell's folder; what lies at the target, a log of nothing begun or the same again, goes."""
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)


def _sha256_of(place: Path) -> str | None:
    """What a cell's folder was made with, as far as it got; None where nothing was begun."""
    for name in ("result.json", "settings.json"):
        if (place / name).is_file():
            return read_record(place / name, {}, f"remove {place}").get("settings_sha256")
    return None
