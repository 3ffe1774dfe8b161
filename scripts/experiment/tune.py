"""`synthaug tune`: what to mix into nnU-Net's training of one fold, decided on that fold's training patients alone."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_plugin.errors import InputError
from nnunet_plugin.import_pool import add_pool
from nnunet_plugin.preprocessed import (
    PreprocessedDataset,
    case_identifiers,
    find_dataset,
    fold_split,
    read_plans,
    resolve_configuration,
)
from nnunet_plugin.transplant.command import add_transplants
from nnunet_plugin.transplant.folds import choose_labels, label_volumes

from ..pool.from_real import COPY_PASTE
from ..runtime.files import write_json
from .dataset import SPLITS
from .experiment import check_done, devices_of, do_cells, first_error, prepare
from .parent import ATTEMPT
from .run_folder import RunFolder, absolute, held
from .schedule import Executor, Schedule

FORMAT, FORMAT_VERSION = "synthaug-tune", 1
REAL, TRANSPLANTS, POOL = "real only", "transplants", "pool"  # arms of the protocol, and its generator
NNUNET = 1000  # epochs of nnU-Net's own training
FEWEST_CASES = 6  # so that an inner fold trains on four patients and validates two
LEVEL = 0.05  # that p has to be below, by Holm over the arms


def tune(
    dataset: int | str,
    configuration: str = "2d",
    fold: int | str = 0,
    output_dir: str | None = None,
    hours: float = 1.5,
    bundle: str = "ldm",
    overlays: list[str] | None = None,
    generator: dict | None = None,
    num_samples: int | None = None,
    plans: str = "nnUNetPlans",
    name: str | None = None,
    num_epochs: int = 1000,
    preset: str = "cpu",
    seed: int = 0,
    processes: int | None = None,
    devices: Any = None,
    executor: str = "processes",
    cluster: dict | None = None,
) -> Path:
    """Find out what helps on the training patients of one fold, looking at no others, and write its configuration.

    In three inner folds a small U-Net with nnU-Net's augmentation is trained on real cases only, with transplants, then
    with pools of a generator at shares of 25 and 50 %, constant and falling. Of the arms that did better than real only
    (by interval and p, Holm over the arms) that with the highest lower bound is chosen, else real only. The fold's
    validation patients stay out of it. The same command goes on where it stopped; with more hours it tries more. Prints
    the path of a page that says why.

    Args:
        dataset: Number or name of a preprocessed data set, such as 501.
        configuration: Of the plans: 2d.
        fold: The fold to be trained, a number or "all".
        output_dir: The working folder; by default synthaug_tune_DATASET_fold_FOLD.
        hours: How long it may work, transplants first; what does not fit is left out and named. A chosen pool is then
            made anew by a generator that learns from all training cases, which these hours do not count.
        bundle: The generator of the pools, such as ldm, or copy_paste for pasted lesions without one.
        overlays: Further config files of the bundle, such as '["paper.json"]'.
        generator: Settings of the bundle's train.json, such as '{"max_epochs": 100}'.
        num_samples: Samples of a pool; by default as the preset has it.
        plans: The plans that hold the configuration.
        name: Name of the configuration that is written; by default 2d_tuned.
        num_epochs: Epochs of the nnU-Net training to come, over which a falling share falls; other numbers than
            nnU-Net's own are written into the configuration.
        preset: cpu, gpu, or smoke (a test of the machine).
        seed: The seed of everything.
        processes: How many cells run at a time; they share the cores. By default one for each device, two without.
        devices: GPUs, such as 0,1: one for each process in turn.
        executor: processes (of this machine), or by submitit slurm or local.
        cluster: Parameters of submitit, such as '{"slurm_partition": "gpu", "timeout_min": 600}'.

    Example:
        synthaug tune 501 2d 0 --hours 1.5
    """
    from ..report.experiment import write_experiment_report
    from ..report.tuned import write_tune_page

    print(f"synthaug tune: checking {dataset} and the settings", flush=True)
    command = shlex.join(["synthaug", *sys.argv[1:]])
    _check(configuration, hours, num_samples, num_epochs, seed)
    data = find_dataset(dataset)
    train, refused = _training_cases(data, plans, configuration, fold)
    left_out = {TRANSPLANTS: refused} if refused else {}
    over = {
        "plans": plans,
        "inner": {"fold": fold},
        "seeds": [seed],
        "generator_seed": seed,
        **({} if num_samples is None else {"num_synthetic": [num_samples]}),
        "generators": {POOL: _generator(bundle, overlays, generator, preset)},
    }
    output = absolute(output_dir or f"synthaug_tune_{data.name}_fold_{fold}")
    chosen_devices = devices_of(devices)
    _, settings, slots = prepare(
        "tune", output, preset, data.folder, None, processes, chosen_devices, executor, cluster, over
    )
    if refused:
        print(f"transplants are left out: {refused}", flush=True)
    with held(output):
        arms = [arm for arm in settings["arms"] if arm not in left_out]
        done, more = _compare(output, settings, arms, slots, 3600 * hours, command, len(train))
        left_out |= more
        compared = _comparisons(output, settings, done, command)
        used = seconds_spent(output) / slots.slots / 3600
        report = write_experiment_report(output)
        chosen = decide(compared)
        tuned = name or f"{configuration}_tuned"
        place = {"dataset": data.name, "configuration": configuration, "fold": fold, "plans": plans}
        written = _write(chosen, settings, place, tuned, num_epochs, output, slots, command)
        rows = {arm: compared.get(arm) or {"why": left_out.get(arm)} for arm in settings["arms"] if arm != REAL}
        record = {
            "format": FORMAT, "format_version": FORMAT_VERSION, **place, "chosen": chosen, "name": tuned,
            "training_cases": train, "bundle": settings["generators"][POOL]["bundle"], "hours": hours,
            "hours_used": round(used, 3), "arms": rows, **written, "report": str(report.relative_to(output)),
            "command": command,
        }  # fmt: skip
        write_json(output / "tune.json", record)
        return write_tune_page(output, record)


def decide(compared: Mapping[str, Mapping[str, Any]]) -> str:
    """The arm that did better with the highest lower bound of its paired gain, or real only where none did.

    "Better" is what the report calls so: a lower bound above 0 and p below 0.05 by Holm over the arms. The bound alone
    would choose an arm that helps nothing in about 16 % of cases with 16 patients and five arms, in 24 % with six.

    Args:
        compared: of each arm, "interval" of its paired gain over real only, or None, and "conclusion".
    """
    better = {arm: c["interval"][0] for arm, c in compared.items() if c["conclusion"] == "higher"}
    return max(better, key=lambda arm: better[arm], default=REAL)


def most_arms(patients: int) -> int:
    """With how many arms beside real only one that gains in every patient is still chosen.

    Wilcoxon's smallest two-sided p of n patients is 2 / 2^n, and Holm multiplies the smallest by the number of arms: an
    arm more, and no gain is ever large enough.
    """
    return math.floor(LEVEL * 2.0 ** min(patients - 1, 20))  # there are not as many arms


def seconds_spent(output: Path) -> float:
    """What all cells of a run's folder took so far, interrupted attempts with them."""
    total = 0.0
    for folder in (output / "cells").glob("*/*"):
        if (folder / "result.json").is_file():
            total += json.loads((folder / "result.json").read_text())["seconds"]
        elif (folder / ATTEMPT).is_file():
            begun = json.loads((folder / ATTEMPT).read_text())
            total += begun["earlier"] + max(0.0, (folder / ATTEMPT).stat().st_mtime - begun["started"])
    return total


def _check(configuration: str, hours: float, num_samples: int | None, num_epochs: int, seed: int) -> None:
    if configuration != "2d":
        raise InputError(
            f"configuration {configuration}", "2d", "tune 2d; in 3d_fullres compare arms with synthaug experiment"
        )
    checks = {
        "hours": (hours > 0, hours, "a number above 0"),
        "num_samples": (num_samples is None or num_samples > 0, num_samples, "a whole number from 1"),
        "num_epochs": (num_epochs > 0, num_epochs, "a whole number from 1"),
        "seed": (seed >= 0, seed, "a whole number from 0"),
    }
    for option, (good, value, allowed) in checks.items():
        if not good:
            raise InputError(f"--{option} {value!r}", allowed, f"mend --{option}")


def _generator(
    bundle: str, overlays: list[str] | None, settings: Mapping[str, Any] | None, preset: str
) -> dict[str, Any]:
    if preset == "smoke" or bundle == COPY_PASTE:
        return {"bundle": COPY_PASTE}
    return {"bundle": bundle, "overlays": list(overlays or ()), "settings": dict(settings or {})}


def _training_cases(
    data: PreprocessedDataset, plans: str, configuration: str, fold: int | str
) -> tuple[list[str], str | None]:
    """The fold's training cases, and why their lesions cannot be transplanted, if so.

    Raises:
        InputError: no such plans, configuration or fold, or too few cases.
    """
    content = read_plans(data, plans)
    resolved = resolve_configuration(content, configuration)
    found, _, splits, is_new = fold_split(data, case_identifiers(data, resolved), fold)
    train = sorted(map(str, found))
    if len(train) < FEWEST_CASES:
        raise InputError(
            f"{len(train)} training cases in fold {fold}", f"{FEWEST_CASES} or more for three inner folds",
            "annotate more cases, or decide without: real only",
        )  # fmt: skip
    if is_new and splits is not None:  # as nnU-Net would write it: the data set must not change under a run
        write_json(data.folder / SPLITS, splits)
    volumes = label_volumes(data, content, resolved, train)
    try:
        choose_labels({label: [volumes[case][label] for case in train] for label in volumes[train[0]]}, None)
    except InputError as error:
        return train, error.got
    return train, None


def _compare(
    output: Path, settings: dict[str, Any], arms: list[str], slots: Executor, seconds: float, command: str,
    patients: int,
) -> tuple[list[str], dict[str, str]]:  # fmt: skip
    """Do one arm after the other while there is time, as many as so many patients can tell from real only.

    Returns those that are done, and why the others are not.
    """
    done: list[str] = []
    left_out: dict[str, str] = {}
    most = most_arms(patients)
    few = (
        f"of {patients} training patients p by Holm stays above {LEVEL:g} with more than {most} of these arms: compare "
        "them with synthaug experiment, or annotate more patients"
    )
    start, before = time.monotonic(), seconds_spent(output) / slots.slots
    for arm in arms:
        if arm in left_out:
            continue
        if len(done) > most:  # real only is one of them
            left_out[arm] = few
            continue
        left = seconds - before - (time.monotonic() - start)
        schedule = do_cells(output, _with_arms(settings, [*done, arm]), slots, command, max(left, 0.0))
        if schedule.stopped:
            rest = [one for one in arms if one not in done and one not in left_out]
            why = f"it does not fit into {seconds / 3600:g} hours: {max(left, 0) / 60:.0f} minutes of them were left"
            return done, left_out | dict.fromkeys(rest, why)
        if not schedule.failed:
            done.append(arm)
        elif arm == REAL:
            check_done(schedule, output)
        else:
            left_out |= dict.fromkeys(_lost(schedule, settings, arm), _error(schedule))
    return done, left_out


def _lost(schedule: Schedule, settings: dict[str, Any], arm: str) -> list[str]:
    """The arms that a failure takes with it: with a generator or pool all that use it."""
    if all(name.startswith(("train/", "evaluate/")) for name in schedule.failed):
        return [arm]
    return [name for name, one in settings["arms"].items() if one.get("pool") == settings["arms"][arm].get("pool")]


def _error(schedule: Schedule) -> str:
    name = schedule.failed[0]
    return f"{name} failed: {first_error(schedule.run_folder, name)}"


def _with_arms(settings: dict[str, Any], arms: list[str]) -> dict[str, Any]:
    return {**settings, "arms": {arm: settings["arms"][arm] for arm in arms}}


def _comparisons(output: Path, settings: dict[str, Any], done: list[str], command: str) -> dict[str, dict[str, Any]]:
    """Each finished arm against real only over the inner validation patients, see `compare_rows`; run.json has them."""
    from ..report.experiment_results import comparisons, read_results

    RunFolder.start(
        output, _with_arms(settings, done or [REAL]), {"command": command, "started": time.strftime("%Y-%m-%d %H:%M")}
    )
    found = comparisons(read_results(output), "validation") if done else {}
    names = ("difference", "interval", "level", "p", "p_holm", "family", "n", "better", "worse", "conclusion")
    return {row.arm: {key: c.get(key) for key in names} for row, c in found.items()}


def _write(
    chosen: str,
    settings: dict[str, Any],
    place: Mapping[str, Any],
    name: str,
    num_epochs: int,
    output: Path,
    slots: Executor,
    command: str,
) -> dict[str, Any]:
    """Write the configuration of the chosen arm; returns how to train it, and what was written."""
    arm = settings["arms"].get(chosen, {})
    at: dict[str, Any] = {key: place[key] for key in ("dataset", "configuration", "fold", "plans")}
    at |= {"name": name, "overwrite": True, "training": None if num_epochs == NNUNET else {"num_epochs": num_epochs}}
    if "pool" in arm:
        pool = _pool_of_fold(settings, place["fold"], output / "pool", slots, command)
        length = settings["segmenters"]["U-Net"]["settings"]["max_epochs"]
        mixing = {key: arm[key] for key in ("share", "schedule", "share_end") if key in arm}
        finish = round(arm.get("finish_epochs", 0) / length * num_epochs)
        written = add_pool(pool, **at, **mixing, finish_epochs=finish, pool_name=name)
    elif "transplant" in arm:
        mixing = {key: arm["transplant"][key] for key in ("share", "decoys")}
        finish = num_epochs - round(arm["transplant"]["until"] * num_epochs)
        written = add_transplants(**at, **mixing, finish_epochs=finish)
    else:
        stock = f"nnUNetv2_train {place['dataset']} {place['configuration']} {place['fold']} -p {place['plans']}"
        return {"written": None, "settings": None, "train_command": stock}
    how = {**mixing, "finish_epochs": finish}
    return {"written": str(written["plans_file"]), "settings": how, "train_command": written["train_command"]}


def _pool_of_fold(settings: dict[str, Any], fold: int | str, folder: Path, slots: Executor, command: str) -> Path:
    """A pool of a generator that learns from all training cases of the fold: those compared saw two thirds of them."""
    alone = {**settings, "inner": None, "folds": [fold], "segmenters": {}, "arms": {}, "reference": None}
    schedule = do_cells(folder, alone, slots, command)
    check_done(schedule, folder)
    cell = next(name for name in schedule.run_folder.cells if name.startswith("pool/"))
    return schedule.run_folder.folder(cell) / "pool"
