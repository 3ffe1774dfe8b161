"""Running the commands of a cell: their environment, and their output to its log."""

from __future__ import annotations

import os
import re
import subprocess
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


def follow(process: subprocess.Popen, output: Any) -> list[str]:
    """Copy a command's output to its log, and return its last lines, or its first error."""
    line = b""
    tail: list[str] = []
    assert process.stdout is not None  # PIPE, for the type checker
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
        output.flush()
        if not block:
            break
    process.wait()
    return tail
