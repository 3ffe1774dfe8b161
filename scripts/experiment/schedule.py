"""Which cell runs when: ready ones in free slots, until nothing is left that can be done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from .cells import Cell
from .parent import end_with
from .progress import Progress
from .run_folder import RunFolder
from .work import BUSY, DONE, FAILED, run_cell

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.3
BUSY_SECONDS = 20.0
TERMINATE_SECONDS = 5.0


class Job(Protocol):
    """A cell that was started."""

    def status(self) -> int | None:
        """`DONE`, `FAILED` or `BUSY` when it ended; None before."""

    def stop(self) -> None:
        """End it, with all that it started."""


class Executor(Protocol):
    """Where cells run."""

    slots: int

    def start(self, run: RunFolder, cell: Cell, slot: int) -> Job:
        """Start a cell."""


class ProcessJob:
    """A process of this machine, the first of a session of its own, so that all of it can be stopped."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def status(self) -> int | None:
        """See `Job`."""
        code = self.process.poll()
        return code if code in (None, DONE, BUSY) else FAILED

    def stop(self) -> None:
        """See `Job`."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(TERMINATE_SECONDS)


class Processes:
    """Slots of this machine; each has its share of the cores, or a GPU.

    Args:
        slots: cells at a time.
        devices: numbers of GPUs, one for each slot in turn; none: all that are visible to each.
    """

    def __init__(self, slots: int, devices: Sequence[str] = ()):
        self.slots, self.devices = slots, list(devices)

    def start(self, run: RunFolder, cell: Cell, slot: int) -> Job:
        """See `Executor`."""
        # Threads that spin while they wait stall all others on a busy machine.
        own = {"OMP_NUM_THREADS": str(max(1, num_cores() // self.slots)), "OMP_WAIT_POLICY": "PASSIVE"}
        variables = {**own, **os.environ}
        variables |= {"PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"}
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        command = [sys.executable, "-m", f"{__package__}.work", str(run.path), cell.id, str(os.getpid())]
        run.folder(cell.id).mkdir(parents=True, exist_ok=True)
        with open(run.log(cell.id), "a") as log:
            process = subprocess.Popen(
                command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        return ProcessJob(process)


class ClusterJob:
    """A job of submitit."""

    def __init__(self, job: Any):
        self.job = job

    def status(self) -> int | None:
        """See `Job`; what the cluster ended counts as failed."""
        if not self.job.done():
            return None
        return FAILED if self.job.exception() is not None else int(self.job.result())

    def stop(self) -> None:
        """See `Job`."""
        self.job.cancel(check=False)


class Cluster:
    """Jobs of a Slurm cluster, or processes of this machine started the same way, by submitit.

    Args:
        slots: jobs at a time.
        kind: slurm or local.
        folder: for submitit's own logs.
        parameters: of submitit's executor, such as slurm_partition, timeout_min, gpus_per_node.
    """

    def __init__(self, slots: int, kind: str, folder: Path, parameters: dict[str, Any]):
        import submitit

        self.slots = slots
        # A queue's jobs outlive the command that asked for them; processes of this machine do not.
        self.watched = os.getpid() if kind == "local" else None
        self._open = lambda: submitit.AutoExecutor(folder, cluster=kind)  # which makes the folder
        self.parameters = parameters
        self.executor: Any = None

    def start(self, run: RunFolder, cell: Cell, slot: int) -> Job:
        """See `Executor`."""
        self.executor = self.executor or self._open()
        self.executor.update_parameters(**self.parameters, name=f"synthaug-{cell.kind}")
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = python_path()  # which the job inherits
        try:
            return ClusterJob(self.executor.submit(run_logged, str(run.path), cell.id, self.watched))
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before


def run_logged(run_dir: str, cell_id: str, watched: int | None) -> int:
    """`run_cell` in this process, its output in the cell's log; ends with the process `watched`."""
    if watched is not None:
        end_with(watched)
    log = RunFolder(run_dir).log(cell_id)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", buffering=1) as output:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(output.fileno(), stream.fileno())
        return run_cell(run_dir, cell_id)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python_path() -> str:
    """`PYTHONPATH` with which a process finds this package, wherever it is started."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


class Schedule:
    """Runs all cells that can be run.

    A cell that another process holds, such as a job of a cluster that an earlier command left, is waited for.

    Args:
        run: the folder.
        executor: where cells run.
        seconds: of work after which it stops, with cells left; None: when all is done.

    Attributes:
        finished, failed: ids of cells; `waiting`: those that are left, in order.
        stopped: whether the time was over before all was done.
    """

    def __init__(self, run: RunFolder, executor: Executor, seconds: float | None = None):
        self.run_folder, self.executor, self.seconds_allowed = run, executor, seconds
        self.stopped = False
        self.waiting = list(run.cells)
        self.finished: set[str] = set()
        self.failed: list[str] = []
        self.running: dict[int, tuple[str, Job, float, Progress]] = {}
        self.busy_until: dict[str, float] = {}
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.start = self.shown = time.monotonic()
        self.line = ""

    def run(self) -> None:
        """Work until nothing is left that can be done; stops what it started when it is interrupted."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self.take_finished()
            print(f"{len(self.run_folder.cells)} cells, {len(self.finished)} of them finished before", flush=True)
            while not self._over() and self._step():
                time.sleep(POLL_SECONDS)
        finally:
            for name, job, *_ in self.running.values():
                job.stop()
                if self.run_folder.result(name):  # it ended before it could be stopped
                    self._take(name)
            signal.signal(signal.SIGTERM, before)
            if self.line and sys.stdout.isatty():
                print()

    def _over(self) -> bool:
        """Whether the time is; cells that run are stopped then, and go on from their checkpoints another time."""
        over = self.seconds_allowed is not None and time.monotonic() - self.start >= self.seconds_allowed
        self.stopped = over and bool(self.running or self.waiting)
        return over

    def blocked(self) -> list[str]:
        """Cells that cannot be done, because one that they need failed."""
        lost = set(self.failed)
        for name in self.run_folder.cells:
            if lost & set(self.run_folder.cells[name].needs.values()):
                lost.add(name)
        return [name for name in self.waiting if name in lost]

    def _step(self) -> bool:
        """Look after what runs and start what can; False when nothing is left."""
        for slot, (name, job, begun, _) in list(self.running.items()):
            status = job.status()
            if status is None:
                continue
            del self.running[slot]
            if status == DONE:
                self._take(name)
            elif status == BUSY:
                self.waiting.insert(0, name)
                self.busy_until[name] = time.monotonic() + BUSY_SECONDS
            else:
                self.failed.append(name)
                self._say(f"FAILED {name} after {time.monotonic() - begun:.0f} s: {self.run_folder.log(name)}")
        free = [slot for slot in range(self.executor.slots) if slot not in self.running]
        for name in self._ready()[: len(free)]:
            slot = free.pop(0)
            self.waiting.remove(name)
            cell = self.run_folder.cells[name]
            log = self.run_folder.log(name)
            progress = Progress(cell, log, log.stat().st_size if log.is_file() else 0)
            self.running[slot] = (name, self.executor.start(self.run_folder, cell, slot), time.monotonic(), progress)
        self._show()
        return bool(self.running) or len(self.waiting) > len(self.blocked())

    def _ready(self) -> list[str]:
        now, ready = time.monotonic(), []
        for name in list(self.waiting):
            if self.finished.issuperset(self.run_folder.cells[name].needs.values()):
                if name in self.busy_until and self.run_folder.result(name):  # done by another
                    self.waiting.remove(name)
                    self._take(name)
                elif self.busy_until.get(name, 0) <= now:
                    ready.append(name)
        return ready

    def take_finished(self) -> None:
        """Take what has a result, except where a cell to be done reads files of it that were not kept."""
        cells, do = self.run_folder.cells, {name for name in self.waiting if not self.run_folder.result(name)}
        for name in reversed(list(cells)):  # each before those that it needs
            if name in do:
                do |= {need for need in cells[name].needs.values() if not self.run_folder.has_files(need)}
        for name in list(self.waiting):
            if name not in do:
                self.waiting.remove(name)
                self._take(name)

    def _take(self, name: str) -> None:
        self.finished.add(name)
        result, cell = self.run_folder.result(name), self.run_folder.cells[name]
        assert result is not None  # it ended well
        self.seconds.setdefault((cell.kind, cell.alike), []).append(result["seconds"])
        useful = result["values"].get("usefulness")
        if useful and useful["useful"] is False:  # before hours of training with this pool
            self._say(f"\n*** {cell.alike}, fold {cell.settings['fold']}: {useful['words']} ***\n")

    def seconds_left(self) -> tuple[float, bool]:
        """Seconds until all is done, from finished cells of the same kind, and whether each kind was seen."""
        kinds: dict[str, list[float]] = {}
        for (kind, _), values in self.seconds.items():
            kinds.setdefault(kind, []).extend(values)
        now, left, known = time.monotonic(), 0.0, True
        lost = set(self.blocked())
        running = {name: (now - begun, progress.seconds_left(now)) for name, _, begun, progress in
                   self.running.values()}  # fmt: skip
        for name in [*self.waiting, *running]:
            cell = self.run_folder.cells[name]
            seen = self.seconds.get((cell.kind, cell.alike)) or kinds.get(cell.kind)
            elapsed, own = running.get(name, (0.0, None))
            if name in lost:
                continue
            known = known and (own is not None or bool(seen))
            left += own if own is not None else max(0.0, sum(seen) / len(seen) - elapsed) if seen else 0.0
        return left / self.executor.slots, known

    def _show(self) -> None:
        live, now = sys.stdout.isatty(), time.monotonic()
        due = now - self.shown > (1 if live else 30)
        if due:
            for _, _, _, progress in self.running.values():
                progress.look(now)
        names = ", ".join(name for name, *_ in self.running.values())
        line = f"[{len(self.finished)}/{len(self.run_folder.cells)}] {names or 'waiting for another process'}"
        if self.failed:
            line += f"; {len(self.failed)} failed"
        if not self.running and not self.waiting:
            return
        if line != self.line or due:
            left, known = self.seconds_left()
            time_left = f"{'about' if known else 'at least'} {_clock(left)} left" if left else "time left not known yet"
            done = [p.words for _, _, _, p in self.running.values() if p.words]
            at = f" ({', '.join(done)})" if done else ""
            words = f"{line}{at}; {_clock(now - self.start)} so far, {time_left}"
            self.line, self.shown = line, now
            print("\r\033[K" + words[:200] if live else words, end="" if live else "\n", flush=True)

    def _say(self, words: str) -> None:
        print(("\r\033[K" if sys.stdout.isatty() else "") + words, flush=True)


def _clock(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {int(seconds) % 60:02d} s"
