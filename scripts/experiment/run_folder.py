"""The folder of an experiment: `run.json`, and a folder for each cell whose `result.json` is written last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError, refuse_changes
from ..runtime.files import json_sha256, write_json
from .cells import Cell, plan_cells

FORMAT, FORMAT_VERSION = "synthaug-experiment", 1


class RunFolder:
    """An experiment's folder, opened."""

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        file = self.path / "run.json"
        if not file.is_file():
            raise InputError(f"no run.json in {self.path}", "the folder of an experiment", "run synthaug experiment")
        self.settings = json.loads(file.read_text())["settings"]
        self.cells = {cell.id: cell for cell in plan_cells(self.settings)}

    @classmethod
    def start(cls, path: str | Path, settings: dict[str, Any], facts: dict[str, Any]) -> RunFolder:
        """Open a folder for an experiment, a new one or one of the same settings.

        Raises:
            InputError: it holds an experiment with other settings, or something else.
        """
        folder = Path(path).resolve()
        file = folder / "run.json"
        if file.is_file():
            before = json.loads(file.read_text())["settings"]
            refuse_changes(
                before,
                settings,
                f"{folder} holds an experiment",
                "the same protocol, preset and data set, to go on with it",
                "give another --output_dir, or remove the folder",
            )
            return cls(folder)
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"{folder} is not empty and holds no experiment", "a new or empty folder", "give another --output_dir"
            )
        cells = [
            {"id": cell.id, "kind": cell.kind, "settings": cell.settings, "needs": cell.needs}
            for cell in plan_cells(settings)
        ]
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **facts, "settings": settings, "cells": cells}
        write_json(file, content)
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
        found = json.loads(file.read_text())
        if found["settings_sha256"] != settings_sha256(self.cells[cell]):
            raise InputError(
                f"{file} is of other settings", "results of this experiment", "remove the folder of the cell"
            )
        return found

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


def settings_sha256(cell: Cell) -> str:
    """Names what decides a cell's result."""
    return json_sha256([cell.settings, cell.needs])
