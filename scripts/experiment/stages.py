"""Running the commands of a chain: their environment, their output to a log, and how far they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


class Environment:
    """Environment variables for the time of a block."""

    def __init__(self, **values: str):
        self.values = values

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.values}
        os.environ.update(self.values)

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def follow(process: subprocess.Popen, output: Any, fraction: Callable[[str], float | None] | None) -> list[str]:
    """Copy a command's output to its log, show how far it is, and return its last lines, or its first error."""
    start, shown, line = time.monotonic(), 0.0, b""
    tail: list[str] = []
    assert process.stdout is not None  # PIPE, for the type checker
    live = sys.stdout.isatty()
    while True:
        block = process.stdout.read1(4096)  # type: ignore[attr-defined]
        *lines, line = re.split(rb"[\r\n]", line + (block or b"\n"))
        for raw in lines:
            text = raw.decode(errors="replace").rstrip()
            if not text:
                continue
            output.write(text + "\n")
            if not (tail and tail[0].startswith("error:")):
                tail = [text] if text.startswith("error:") else [*tail[-7:], text]
            elif len(tail) < 4:
                tail.append(text)
            share = fraction(text) if fraction else None
            now = time.monotonic()
            if share and (now - shown > (1 if live else 15)):
                shown = now
                left = (now - start) * (1 - share) / share
                words = f"    {100 * share:3.0f} %, {now - start:.0f} s so far, about {left:.0f} s left"
                print(words + " " * 10, end="\r" if live else "\n", flush=True)
        output.flush()
        if not block:
            break
    process.wait()
    return tail


def pattern_fraction(pattern: str, total: int | None = None) -> Callable[[str], float | None]:
    """How much is done, read from lines such as `epoch 3/60`; `total` when the line holds no second number."""

    def fraction(text: str) -> float | None:
        found = re.search(pattern, text)
        return int(found[1]) / (total or int(found[2])) if found else None

    return fraction


def count_fraction(pattern: str, total: int) -> Callable[[str], float | None]:
    """How much is done, from the number of lines that match."""
    seen = 0

    def fraction(text: str) -> float | None:
        nonlocal seen
        seen += bool(re.search(pattern, text))
        return min(1.0, seen / total) if seen else None

    return fraction
