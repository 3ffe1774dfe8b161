"""A cell ends with the command that started it, however that ends, and its time counts over all attempts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..runtime.files import write_json

LOOK_SECONDS = 1.0
BEAT_SECONDS = 5.0
ATTEMPT = "attempt.json"


def end_with_parent(parent: int) -> None:
    """End this process and all that it started, its session, when the process `parent` that started it is gone."""
    _end_unless(lambda: os.getppid() == parent)


def end_with(process: int) -> None:
    """The same, where `process` of this machine started it by others."""
    with suppress(PermissionError):  # it is the first of a session already
        os.setsid()
    _end_unless(lambda: _exists(process))


def _end_unless(wanted: Callable[[], bool]) -> None:
    def watch() -> None:
        while wanted():
            time.sleep(LOOK_SECONDS)
        end_session()

    threading.Thread(target=watch, daemon=True).start()


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end_session(patience: float = 5.0) -> None:
    """Ask all processes of this session to end, this one included; kill those that have not after `patience` s."""
    group = os.getpgid(0)
    subprocess.Popen(
        ["sh", "-c", f"sleep {patience}; kill -9 -{group} 2>/dev/null"], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.killpg(group, signal.SIGTERM)


@contextmanager
def timed(folder: Path) -> Iterator[dict[str, float]]:
    """Time a cell's work, with what earlier attempts took that were interrupted at any point.

    Yields {"earlier": seconds of those}. The file that remembers is touched while the work goes on, and stays when it
    fails.
    """
    file = folder / ATTEMPT
    earlier = 0.0
    if file.is_file():
        before = json.loads(file.read_text())
        earlier = before["earlier"] + max(0.0, file.stat().st_mtime - before["started"])
    write_json(file, {"earlier": earlier, "started": time.time()})
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield {"earlier": earlier}
    finally:
        stop.set()
        thread.join()
        os.utime(file)
    file.unlink()
