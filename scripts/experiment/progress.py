"""How far a running cell is, read from what it prints, and how long it will still take, its warm-up left out."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from .cells import Cell
from .protocol import NNUNET, NNUNET_SETTINGS

TAIL_BYTES = 16_384
# What a rate is told from: less than this share of the work, or of a second's, says nothing.
LEAST_SHARE, LEAST_SECONDS = 0.02, 2.0
# These show one bar after another, of stages that take unlike times: what a bar says is no share of the whole.
STAGES = ("audit", "metrics")


def read_fraction(cell: Cell, text: str) -> float | None:
    """How much of a cell is done, 0 to 1, by the last line of its output that says so; None where none does."""
    total = None
    if cell.kind == "train" and cell.settings.get("bundle") == NNUNET:
        pattern = r"Epoch (\d+)"  # the one that begins
        total = {**NNUNET_SETTINGS, **cell.settings["settings"]}["num_epochs"] * cell.settings.get("epochs_factor", 1)
    else:
        pattern = {"generator": r"epoch (\d+)/(\d+):", "train": r"epoch (\d+)/(\d+):", "pool": r"(\d+)/(\d+) \["}.get(
            cell.kind, "(?!)"
        )
    found = re.findall(pattern, text)
    if not found:
        return None
    return min(1.0, int(found[-1]) / total if total else int(found[-1][0]) / max(1, int(found[-1][1])))


def read_stage(text: str) -> tuple[str, float] | None:
    """The title of the last bar in a cell's output, and how much of it is done, 0 to 1; None where there is none."""
    found = re.findall(r"([a-z][^\r\n|]*): +\d+%\|[^\r\n]*? (\d+)/(\d+) \[", text)
    return (found[-1][0], int(found[-1][1]) / max(1, int(found[-1][2]))) if found else None


@dataclass
class Progress:
    """The progress of one running cell.

    Attributes:
        cell: what runs.
        log: where it prints; `offset`: where it began to, since earlier attempts stand before.
        fraction: how much is done; None before it says so.
        words: the same for a reader, with the stage of a cell that has several; empty before.
    """

    cell: Cell
    log: Path
    offset: int
    fraction: float | None = None
    words: str = ""
    _first: tuple[float, float] | None = field(default=None, repr=False)
    _last: tuple[float, float] | None = field(default=None, repr=False)

    def look(self, now: float | None = None) -> None:
        """Read the end of the log."""
        now = time.monotonic() if now is None else now
        try:
            with open(self.log, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(self.offset, size - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:
            return
        if self.cell.kind in STAGES:
            if stage := read_stage(text):
                self.words = f"{stage[0]} {100 * stage[1]:.0f} %"
            return
        fraction = read_fraction(self.cell, text)
        if fraction is None:
            return
        self.words = f"{100 * fraction:.0f} %"
        if self._first is None or fraction < self._first[1]:  # the first figure, or another stage: what came before
            self._first = (now, fraction)  # is warm-up, or went at another pace
        if self.fraction != fraction:
            self.fraction, self._last = fraction, (now, fraction)

    def seconds_left(self, now: float | None = None) -> float | None:
        """Until the cell ends, by its pace since it first said how far it is; None where that is not known."""
        if self._first is None or self._last is None:
            return None
        now = time.monotonic() if now is None else now
        (begun, before), (then, done) = self._first, self._last
        if done - before < LEAST_SHARE or then - begun < LEAST_SECONDS:
            return None
        return max(0.0, (then - begun) / (done - before) * (1 - done) - (now - then))
