"""`synthaug experiment PROTOCOL`: plan the cells, run them, write the report."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from .protocol import NNUNET, read_protocol
from .run_folder import RunFolder
from .schedule import Cluster, Executor, Processes, Schedule

EXECUTORS = ("processes", "slurm", "local")


def run_experiment(
    protocol: str | Path,
    output_dir: str | Path,
    preset: str | None = None,
    dataset_dir: str | Path | None = None,
    raw_dir: str | Path | None = None,
    processes: int | None = None,
    devices: Sequence[str] = (),
    executor: str = "processes",
    cluster: dict[str, Any] | None = None,
    command: str = "",
) -> Path:
    """Do all cells of a protocol that are not done, then write the report; returns its path.

    Args:
        protocol: name of one that comes with the package, or a YAML file.
        output_dir: the folder; the same command goes on where it stopped.
        preset: of the protocol.
        dataset_dir: nnU-Net data set, raw or preprocessed; None: the protocol's phantom.
        raw_dir: raw data set of a preprocessed one, for test cases.
        processes: cells at a time; None: one, or one for each of the devices.
        devices: GPUs, one for each of these in turn.
        executor: processes of this machine, or submitit's slurm or local.
        cluster: parameters of submitit.
        command: how the user called it, for the report.

    Raises:
        InputError: the protocol or data cannot be used, or cells failed (their logs are named).
    """
    from ..report.experiment import write_experiment_report

    settings = read_protocol(protocol, preset)
    settings |= _data_settings(settings, dataset_dir, raw_dir)
    wanted = (len(devices) or 1) if processes is None else processes
    slots = _executor(Path(output_dir), wanted, devices, executor, cluster)
    facts = {"command": command, "started": time.strftime("%Y-%m-%d %H:%M")}
    run = RunFolder.start(output_dir, settings, facts)
    schedule = Schedule(run, slots)
    try:
        schedule.run()
    except KeyboardInterrupt:
        raise InputError(
            f"interrupted after {len(schedule.finished)} of {len(run.cells)} cells",
            "all cells, in one go or in several",
            "the same command goes on where it stopped; synthaug report shows what there is",
        ) from None
    report = write_experiment_report(run.path)
    if schedule.failed:
        logs = "\n    ".join(str(run.log(name)) for name in schedule.failed)
        raise InputError(
            f"{len(schedule.failed)} cells failed, {len(schedule.blocked())} more need them:\n    {logs}",
            "cells that end well",
            f"read the logs, mend the cause and give the same command again; what there is: {report}",
        )
    return report


def _data_settings(settings: dict[str, Any], dataset_dir: Any, raw_dir: Any) -> dict[str, Any]:
    """Where the data are, checked, and in which space they will be."""
    from ..data.description import read_description

    paths = {}
    for name, value in (("dataset_dir", dataset_dir), ("raw_dir", raw_dir)):
        paths[name] = None if value is None else str(Path(value).resolve())
        if value is not None:
            read_description(value)
    if dataset_dir is None:
        return {**paths, "space": settings["space"]}
    raw = (Path(dataset_dir) / "imagesTr").is_dir()
    name = Path(dataset_dir).resolve().name
    if settings["space"] == "nnunet" and not re.fullmatch(r"Dataset\d{3}_\w+", name):
        raise InputError(f"folder name {name}", "DatasetNNN_NAME, as nnU-Net wants it", "rename the folder")
    if not raw and any(entry.get("bundle") == NNUNET for entry in settings["segmenters"].values()):
        if not (Path(dataset_dir) / "gt_segmentations").is_dir():
            raise InputError(
                f"{dataset_dir} without gt_segmentations", "a folder of nnUNet_preprocessed", "preprocess it again"
            )
    test = "test" in settings["evaluate"]
    if test and not ((Path(dataset_dir) if raw else Path(raw_dir or "")) / "labelsTs").is_dir():
        raise InputError(
            "no labelsTs for evaluation on test cases", "a raw data set with imagesTs and labelsTs", "give --raw_dir"
        )
    return {**paths, "space": settings["space"] if raw else "nnunet"}


def _executor(
    folder: Path, processes: int, devices: Sequence[str], executor: str, cluster: dict[str, Any] | None
) -> Executor:
    if executor not in EXECUTORS:
        raise InputError(f"--executor {executor!r}", f"one of {', '.join(EXECUTORS)}", "choose one")
    if type(processes) is not int or processes < 1:
        raise InputError(f"--processes {processes!r}", "a whole number from 1", "mend it")
    if executor == "processes":
        if cluster:
            raise InputError("--cluster with processes of this machine", "--executor slurm", "add it, or leave it out")
        return Processes(processes, devices)
    if devices:
        raise InputError(f"--devices with --executor {executor}", "what --cluster asks for", "leave it out")
    try:
        return Cluster(processes, executor, folder / "submitit", cluster or {})
    except ModuleNotFoundError as error:
        raise InputError(
            f"--executor {executor} without submitit", "submitit", "pip install synthaug[slurm]"
        ) from error
