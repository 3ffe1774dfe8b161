"""Work a queue of jobs off for a number of minutes; what was stopped goes on the next time.

    python benchmarks/gpu/work_off.py 30 --data prepared --out gpu_results --at_once 8

A job that ended well leaves `done.json` in its folder, one that failed `failure.json`; it is tried again by the next
call, once. When the time is up, the running jobs are asked to end; trainings go on from their last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock

from gpu_jobs import ROOT, Job, queue

LEAST_SECONDS, PATIENCE, POLL = 5.0, 30.0, 0.2
TRIES = 2


def work_off(jobs: list[Job], data: Path, out: Path, seconds: float, at_once: int = 1) -> dict[str, str]:
    """Do the jobs in their order, so many at once, until the time is up; returns what became of each.

    Times of `step.py` want a GPU of their own. An interrupt ends what runs, as the end of the time does.
    """
    end, states, lock, stop = time.monotonic() + seconds, {}, Lock(), Event()

    def work(job: Job) -> None:
        state = _state(job, data, out) or _do(job, out / job.name, end, stop)
        with lock:
            states[job.name] = state
            print(f"{time.strftime('%H:%M:%S')} {job.name}: {state}", flush=True)
            _write(out / "queue.json", states)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            list(pool.map(work, jobs))
        finally:
            stop.set()
    return states


def _state(job: Job, data: Path, out: Path) -> str | None:
    """Why nothing is to be done; None where there is."""
    if (out / job.name / "done.json").is_file():
        return "done"
    if job.data is not None and not (data / job.data).is_dir():
        return f"no {data / job.data}"
    failure = out / job.name / "failure.json"
    return "failed" if failure.is_file() and json.loads(failure.read_text())["tries"] >= TRIES else None


def _do(job: Job, folder: Path, end: float, stop: Event) -> str:
    if stop.is_set() or end - time.monotonic() < LEAST_SECONDS:
        return "waits"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *(word.replace("{out}", str(folder.absolute())) for word in job.words)]
    bundle = ROOT / "bundles" / "segmentation" if "monai.bundle" in command else ROOT
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    start = time.time()
    with open(folder / "log.txt", "ab") as log:
        process = subprocess.Popen(
            command, cwd=bundle, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            while (status := process.poll()) is None:
                if time.monotonic() > end or stop.wait(POLL):
                    return "stopped; goes on next time"
        finally:
            _end(process)
    record = {"command": command, "seconds": time.time() - start}
    if status == 0:
        _write(folder / "done.json", record)
        return "done"
    failure = folder / "failure.json"
    tries = json.loads(failure.read_text())["tries"] if failure.is_file() else 0
    tail = (folder / "log.txt").read_text(errors="replace").splitlines()[-5:]
    _write(failure, {**record, "status": status, "tries": tries + 1, "tail": tail})
    return f"failed: {tail[-1] if tail else status}"


def _end(process: subprocess.Popen) -> None:
    """End a job and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(PATIENCE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _write(path: Path, content: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Work the queue of GPU jobs off for a number of minutes.")
    parser.add_argument("minutes", type=float)
    parser.add_argument("--data", type=Path, default=Path("prepared"), help="what synthaug prepare wrote")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--at_once", type=int, default=1, help="how many jobs share the GPU")
    parser.add_argument("--tiny", action="store_true", help="small settings, to see that the queue works")
    given = parser.parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    states = work_off(queue(given.data.absolute(), given.tiny), given.data, out, 60 * given.minutes, given.at_once)
    return int(any(state.startswith("failed") for state in states.values()))


if __name__ == "__main__":
    sys.exit(main())
