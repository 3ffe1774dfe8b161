"""The one runner: `synthaug experiment PROTOCOL`, and `run` and `demo`, which are protocols: plan, run, report."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.errors import InputError
from .cells import plan_cells
from .given_data import data_settings
from .protocol import check_networks, protocol_names, read_protocol
from .run_folder import RunFolder, absolute, check_folder, held
from .schedule import Cluster, Executor, Processes, Schedule, num_cores

EXECUTORS = ("processes", "slurm", "local")


class Prepared(NamedTuple):
    """An experiment whose settings were checked, and where its cells will run."""

    output_dir: Path
    settings: dict[str, Any]
    slots: Executor


def prepare(
    protocol: str | Path,
    output_dir: str | Path,
    preset: str | None = None,
    dataset_dir: str | Path | None = None,
    raw_dir: str | Path | None = None,
    processes: int | None = None,
    devices: Sequence[str] = (),
    executor: str = "processes",
    cluster: dict[str, Any] | None = None,
    over: Mapping[str, Any] | None = None,
) -> Prepared:
    """Check a protocol, its data and where it runs.

    Args:
        protocol: name of one that comes with the package, or a YAML file.
        output_dir: the folder.
        preset: of the protocol.
        dataset_dir: nnU-Net data set, raw or preprocessed; None: the protocol's phantom.
        raw_dir: raw data set of a preprocessed one, for test cases.
        processes: cells at a time; None: one for each device; without one, two where there are two cores.
        devices: GPUs, one for each of these in turn.
        executor: processes of this machine, or submitit's slurm or local.
        cluster: parameters of submitit.
        over: settings over those of the protocol.

    Raises:
        InputError: the protocol, the data or the folder cannot be used.
    """
    settings = read_protocol(protocol, preset, over)
    folder = absolute(output_dir)
    before = check_folder(folder, settings["name"])
    slots = _executor(folder, processes, devices, executor, cluster)
    settings |= data_settings(settings, dataset_dir, raw_dir, before and before["settings"])
    check_networks(settings)
    return Prepared(folder, settings, slots)


def run_experiment(prepared: Prepared, command: str = "") -> Path:
    """Do all cells that are not done, then write the report; returns its path.

    The same command goes on where it stopped, one with other settings repeats only what they change. `command` is how
    the user called it, for the report.

    Raises:
        InputError: another command works in the folder, or cells failed (their logs are named).
    """
    from ..report.experiment import write_experiment_report

    folder, settings, slots = prepared
    with held(folder):
        schedule = do_cells(folder, settings, slots, command)
        report = write_experiment_report(folder)
    check_done(schedule, report)
    return report


def do_cells(
    output_dir: str | Path, settings: dict[str, Any], slots: Executor, command: str, seconds: float | None = None
) -> Schedule:
    """Do all cells of prepared settings that are not done, in a folder that is held.

    With `seconds` nothing is begun that will not end in time, as far as finished cells tell, and what does not is
    stopped; see `Schedule`.

    Raises:
        InputError: it was interrupted.
    """
    facts = {"command": command, "started": time.strftime("%Y-%m-%d %H:%M")}
    run = RunFolder.start(output_dir, settings, facts)
    schedule = Schedule(run, slots, seconds)
    if seconds is not None:
        schedule.take_finished()
        if schedule.waiting and schedule.seconds_left()[0] > seconds:
            schedule.stopped = True
            return schedule
    try:
        schedule.run()
    except KeyboardInterrupt:
        raise InputError(
            f"interrupted after {len(schedule.finished)} of {len(run.cells)} cells",
            "all cells, in one go or in several",
            "the same command goes on where it stopped; synthaug report shows what there is",
        ) from None
    return schedule


def check_done(schedule: Schedule, report: Path) -> None:
    """Raise `InputError` that names the logs of cells that failed."""
    if schedule.failed:
        run = schedule.run_folder
        logs = ", ".join(f"{run.log(name)} ({first_error(run, name)})" for name in schedule.failed)
        raise InputError(
            f"{len(schedule.failed)} cells failed, {len(schedule.blocked())} more need them: {logs}",
            "cells that end well",
            f"read the logs, mend the cause and give the same command again; what there is: {report}",
        )


def first_error(run: RunFolder, name: str) -> str:
    """Why a cell failed, in a line."""
    from ..report.experiment_results import failure_of

    return failure_of(run.folder(name)).splitlines()[0]


def list_protocols() -> str:
    """What there is to run: every protocol with its presets, how many cells each has, and about how long it takes."""
    lines = ["What synthaug experiment can run:", ""]
    for name in protocol_names():
        if name in ("run", "demo", "tune"):  # commands of their own
            continue
        for number, preset in enumerate(_presets(name)):
            s = read_protocol(name, preset, check=False)
            if not number:
                lines.append(f"{name}: {s['title']}")
            cells = plan_cells({**s, "dataset_dir": None, "raw_dir": None})
            words = f"{len(cells):4d} cells" + (f", {s['takes']}" if s["takes"] else "")
            lines.append(f"    --preset {preset:<8}{words}{'; by default' if not number else ''}")
    lines += [
        "",
        "Times are estimates, from runs with some 30 patients.",
        "Type, for a phantom that is made for it, or for a data set of your own, raw or preprocessed:",
        "    synthaug experiment smoke",
        "    synthaug experiment number_of_synthetic --preset small --dataset_dir $nnUNet_raw/Dataset501_LGG",
        "",
        "The same command goes on where it stopped; synthaug report DIR shows what there is at any time. A protocol of",
        "your own is a copy of one of these, named by its path:",
        f"    {Path(__file__).parent / 'protocols'}",
    ]
    return "\n".join(lines)


def _presets(name: str) -> list[str]:
    import yaml

    from .protocol import PROTOCOLS

    return list(yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text())["presets"])


def _executor(
    folder: Path, processes: int | None, devices: Sequence[str], executor: str, cluster: dict[str, Any] | None
) -> Executor:
    if executor not in EXECUTORS:
        raise InputError(f"--executor {executor!r}", f"one of {', '.join(EXECUTORS)}", "choose one")
    if processes is None:
        processes = len(devices) or (_processes_here() if executor == "processes" else 1)
    if type(processes) is not int or processes < 1:
        raise InputError(f"--processes {processes!r}", "a whole number from 1", "mend it")
    if executor == "processes":
        if cluster:
            raise InputError("--cluster with processes of this machine", "--executor slurm", "add it, or leave it out")
        _check_gpus(devices)
        return Processes(processes, devices)
    if devices:
        raise InputError(f"--devices with --executor {executor}", "what --cluster asks for", "leave it out")
    try:
        return Cluster(processes, executor, folder / "submitit", cluster or {})
    except ModuleNotFoundError as error:
        raise InputError(
            f"--executor {executor} without submitit", "submitit", "pip install synthaug[slurm]"
        ) from error


def devices_of(devices: Any) -> list[str]:
    """GPUs as a command line names them: one, or several."""
    chosen = [] if devices is None else devices if isinstance(devices, (list, tuple)) else [devices]
    return [str(device) for device in chosen]


def _check_gpus(devices: Sequence[str]) -> None:
    """Refuse GPUs that are not there, or not among those that CUDA_VISIBLE_DEVICES leaves this command."""
    if not devices:
        return
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]
    known = [name.strip() for name in names]
    by_name = ("GPU-", "MIG-") if known else ()  # which CUDA knows, and torch does not list
    if missing := [device for device in devices if device not in known and not device.startswith(by_name)]:
        numbers = (
            f"numbers of GPUs, of {', '.join(known)}, or GPU-... and MIG-..."
            if known
            else "none: this machine has no GPU to use"
        )
        raise InputError(f"--devices {missing[0]}", numbers, "leave --devices out to take what is there")


def _processes_here() -> int:
    """Cells of small networks use two cores better than one of them does; a GPU is used by one cell."""
    from .record import choose_device

    return 1 if choose_device() == "cuda" else min(2, num_cores())
