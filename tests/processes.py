"""Processes that tests start: forked from one that has imported torch and MONAI, which takes longer than most of them.

Each ends with the test that started it, also after Ctrl-C. None has a deadline: no law depends on a clock.
"""

import atexit
import ctypes
import math
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = [
    "torch", "torch.utils.tensorboard", "torch._dynamo", "torch.distributed.run", "monai.bundle", "ignite.engine",
    "matplotlib.pyplot", "nibabel", "skimage.measure", "scipy.ndimage", "scipy.stats", "jsonschema", "tqdm", "fire",
    "yaml", "filelock",
]  # fmt: skip
CAN_FORK = sys.platform == "linux"
_forkserver = multiprocessing.get_context("forkserver" if CAN_FORK else "spawn")
_forkserver.set_forkserver_preload(PRELOADED)  # of the only one that there is, whoever starts it


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file of more bytes, as `ulimit -f` does."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def python(
    *words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` leaves, its status and what it said; `ranks`: under torchrun's agent, so many times."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(*words, cwd=cwd, env=env, ranks=ranks, output=Path(folder))
        try:
            status = process.wait()
        except BaseException:
            process.stop()
            raise
        said = [Path(folder, name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess([sys.executable, *map(str, words)], status, *said)


def start(
    *words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, ranks: int = 1, output: Path | None = None
) -> Any:
    """Start `python WORDS`: has `pid`, `poll`, `wait`, `send_signal`, `stop`; its output goes to a folder, or nowhere.

    `-m MODULE` and `-c PROGRAM` are forked, all others are new interpreters.
    """
    given = [str(word) for word in words]
    files = [str(output / name) if output else os.devnull for name in ("stdout", "stderr")]
    if output:
        for file in files:
            Path(file).touch()
    # Sums are rounded in another order with another number of threads: one, unless a test says otherwise.
    variables = {**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env)
    if CAN_FORK and given[0] in ("-m", "-c") and given[1] != "torch.distributed.run":
        return _Forked(given, str(cwd), variables, files, ranks)
    if ranks > 1:
        given = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *given]
    return _Started(given, str(cwd), variables, files)


def wait_until(condition: Callable[[], bool], process: Any, seconds: float = math.inf) -> None:
    """Wait for what a process is to do, as long as it lives, and so long at most."""
    end = time.monotonic() + seconds
    while not condition():
        status = process.poll()
        assert status is None or condition(), f"ended with status {status} before"
        assert time.monotonic() < end, f"not done after {seconds:g} s"
        time.sleep(0.02)


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
    def __init__(self, words: list[str], cwd: str, env: dict[str, str], files: Sequence[str], ranks: int):
        self._process = _forkserver.Process(target=_become, args=(words, cwd, env, files, ranks))
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
        self._process.terminate()
        self._process.join()


def _end_with_parent() -> None:
    if CAN_FORK:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _become(words: list[str], cwd: str, env: dict[str, str], files: Sequence[str], ranks: int) -> None:
    """Become `python WORDS`, as far as a program can tell."""
    import torch
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where pytest runs in the background
    for number, file in zip((0, 1, 2), (os.devnull, *files), strict=True):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    ours = {"", str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
    os.environ.clear()
    os.environ.update(env)
    given = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [cwd, *given, *(path for path in sys.path if path not in ours)]
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "scripts", "nnunet_plugin")]:
        del sys.modules[name]
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if ranks == 1:
        _end(_run(words))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=ranks, run_id=str(os.getpid()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork", monitor_interval=0.1,
    )  # fmt: skip
    try:
        elastic_launch(config, _run_rank)(words)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        _end(1)
    _end(0)


def _run_rank(words: list[str]) -> None:
    if status := _run(words):
        _end(status)


def _run(words: list[str]) -> int:
    """Run the program; its exit status."""
    sys.argv = words[1:]
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *words[2:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(words[1], main.__dict__)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(status: int) -> None:
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
