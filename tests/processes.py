"""Processes that tests start: most are forked from one that has imported torch and MONAI, which takes longer than they.

Each ends with the test that started it, also after Ctrl-C. None has a deadline: no law depends on a clock.
"""

import atexit
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = [
    "torch", "torch.utils.tensorboard", "torch._dynamo", "monai.bundle", "ignite.engine", "matplotlib.pyplot", "nibabel",
    "skimage.measure", "scipy.ndimage", "scipy.stats", "jsonschema", "tqdm", "fire", "yaml", "filelock",
]  # fmt: skip
_forkserver = multiprocessing.get_context("forkserver")


def python(*words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` leaves: its status, and what it said."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(*words, cwd=cwd, env=env, output=Path(folder))
        try:
            status = process.wait()
        except BaseException:
            process.stop()
            raise
        said = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess([sys.executable, *map(str, words)], status, *said)


def start(*words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, output: Path | None = None) -> Any:
    """Start `python WORDS`: has `pid`, `poll`, `wait`, `send_signal`, and `stop`, which ends all that it started.

    `-m MODULE` is forked, anything else a new interpreter (torchrun's own workers are such, too).
    """
    given = [str(word) for word in words]
    files = [str(output / name) if output else os.devnull for name in ("stdout", "stderr")]
    is_module = given[0] == "-m" and given[1] != "torch.distributed.run" and sys.platform == "linux"
    # Sums are rounded in another order with another number of threads: one, unless a test says otherwise.
    variables = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env)
    return (_Forked if is_module else _Started)(given, str(cwd), variables, files)


class _Started:
    def __init__(self, words: list[str], cwd: str, env: dict[str, str], files: Sequence[str]):
        with open(files[0], "w") as out, open(files[1], "w") as err:
            self._process = subprocess.Popen(
                [sys.executable, *words], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        self.pid, self.poll, self.wait = self._process.pid, self._process.poll, self._process.wait
        self.send_signal = self._process.send_signal

    def stop(self) -> None:
        self._process.terminate()  # on which torchrun ends its workers, which are sessions of their own
        self._process.wait()


class _Forked:
    def __init__(self, words: list[str], cwd: str, env: dict[str, str], files: Sequence[str]):
        _forkserver.set_forkserver_preload(PRELOADED)
        self._process = _forkserver.Process(target=_run_module, args=(words, cwd, env, files))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid or 0, number)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _run_module(words: list[str], cwd: str, env: dict[str, str], files: Sequence[str]) -> None:
    """Become `python -m MODULE ...`, as far as a program can tell."""
    import torch

    _end_with_parent()
    for number, file in zip((0, 1, 2), (os.devnull, *files), strict=True):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.chdir(cwd)
    ours = {"", str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    os.environ.clear()
    os.environ.update(env)
    given = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [cwd, *given, *(path for path in sys.path if path not in ours)]
    sys.argv = words[1:]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "scripts", "nnunet_plugin")]:
        del sys.modules[name]
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    status: Any = 0
    try:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
