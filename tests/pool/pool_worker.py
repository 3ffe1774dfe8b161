"""Processes for the tests of `write_pool` that must die: run as `python -m tests.pool.pool_worker TASK GENERATOR ...`.

Every step that touches the disk, and every pass of the network, is counted; a process kills itself with SIGKILL, or
raises, before the given step.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from scripts.pool import writing as pool
from scripts.pool.writing import write_pool
from scripts.runtime.errors import InputError
from scripts.runtime.settings import prepare_run

from .toy_generator import contents, open_generator

torch.set_num_threads(1)  # so that it can be forked
SIZE = {"num_samples": 5, "seed": 3}
steps = 0


def count_steps(sampler, last: int | None, how: str = "kill") -> None:
    """Stop before step `last`, counted from 0."""

    def counting(function):
        def counted(*args, **kwargs):
            global steps
            steps += 1
            if steps - 1 == last and how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if steps - 1 == last:
                raise InputError("a broken disk", "a whole one", "mend it") if how == "input" else OSError("no space")
            return function(*args, **kwargs)

        return counted

    sampler._generate = counting(sampler._generate)
    pool.write_json, pool.write_text, Path.write_bytes = map(
        counting, (pool.write_json, pool.write_text, Path.write_bytes)
    )
    os.fsync, os.replace = counting(os.fsync), counting(os.replace)
    Path.rename, Path.unlink, Path.mkdir = map(counting, (Path.rename, Path.unlink, Path.mkdir))


def in_child(run) -> int:
    """Exit status of `run` in a forked child; minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_everywhere(generator: Path, out: Path, grow_from: int) -> None:
    """Kill a run at each of its steps, finish it with another batch size, and compare with an undisturbed run."""
    settings = {"min_foreground": 40, "samples_per_pass": 2}
    straight = contents(write_pool(open_generator(generator, **settings), out / "straight", **SIZE, progress=False))

    def start(folder: Path) -> None:
        if grow_from:
            write_pool(open_generator(generator, **settings), folder, grow_from, SIZE["seed"], progress=False)

    def die(folder: Path, last: int) -> None:
        sampler = open_generator(generator, **settings)
        count_steps(sampler, last)
        write_pool(sampler, folder, **SIZE, batch_size=3, progress=False)

    for last in range(1000):
        folder = out / f"killed_{last}"
        start(folder)
        status = in_child(lambda folder=folder, last=last: die(folder, last))
        if status == -signal.SIGKILL:
            in_child(lambda folder=folder, last=last: die(folder, last // 2))  # and again, where it goes on
        write_pool(open_generator(generator, **settings), folder, **SIZE, batch_size=1, progress=False)
        assert contents(folder) == straight, last
        assert not folder.with_name(folder.name + ".partial").exists() and not list(out.glob("*.lock")), last
        if status == 0:
            print(f"killed at {last} steps")
            return
        assert status == -signal.SIGKILL, status


def sample(generator: Path, out: Path, samples_per_pass: str, batch_size: str, failing_rank="-1", last="0", how="kill"):
    """One pool as a bundle's run makes it; one rank may fail at a step."""
    prepare_run()
    sampler = open_generator(generator, min_foreground=40, samples_per_pass=int(samples_per_pass))
    if os.environ.get("RANK", "0") == failing_rank:
        count_steps(sampler, int(last), how)
    write_pool(sampler, out, **SIZE, batch_size=int(batch_size))


if __name__ == "__main__":
    task, generator, out, *rest = sys.argv[1:]
    if task == "kill_everywhere":
        kill_everywhere(Path(generator), Path(out), int(rest[0]))
    else:
        sample(Path(generator), Path(out), *rest)
