"""`synthaug run` in its own words: its options checked, and brought into the protocol `run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.raw_files import is_raw_dataset, lists_its_files
from ..packaging.bundle_files import bundle_names
from ..runtime.errors import InputError
from .accepted import check_overlays, check_settings, near, plain
from .experiment import prepare, run_experiment
from .protocol import DECIDED, SEGMENTATION, read_protocol

CONFIGURATIONS = ("2d", "3d_fullres")
REAL, MIXED, TRANSPLANTED, SEGMENTER = "real only", "real + synthetic", "real + transplants", "nnU-Net"


def run_dataset(
    dataset_dir: str | Path, output_dir: str | Path, options: Mapping[str, Any], command: str = "", **how: Any
) -> Path:
    """Train a generator on a data set, judge its pool, train nnU-Net without and with it, test both; the report's path.

    Args:
        dataset_dir: raw nnU-Net data set with imagesTs and labelsTs.
        output_dir: the run's folder.
        options: see `settings_of`.
        command: how the user called it.
        how: processes, devices, executor and cluster, as of `prepare`.

    Raises:
        InputError: an option or the data cannot be used, or a cell failed.
    """
    over = settings_of(options)
    folder = Path(dataset_dir)
    listed = folder.is_dir() and is_raw_dataset(folder) and lists_its_files(folder)
    for name in ("imagesTs", "labelsTs") if listed else ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        if folder.is_dir() and not (folder / name).is_dir():
            raise InputError(
                f"no {name} in {dataset_dir}",
                "imagesTr, labelsTr, and imagesTs with labelsTs to measure on",
                "add the folder; keep some annotated patients apart as test cases",
            )
    return run_experiment(prepare("run", output_dir, dataset_dir=dataset_dir, over=over, **how), command)


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What lies over the protocol `run`.

    Args:
        options: bundle, overlays, generator (settings of its training), configuration, num_samples, share,
            transplants, folds, seeds, num_epochs, num_iterations_per_epoch, full_plans, seed and audit, as the command
            line has them.

    Raises:
        InputError: names the option as it was written.
    """
    o = {name: plain(value) for name, value in options.items()}
    for name in ("folds", "seeds"):
        o[name] = o[name] if isinstance(o[name], list) else [o[name]]
    overlays = o["overlays"] if isinstance(o["overlays"], list) else [o["overlays"]]
    if o["bundle"] not in bundle_names() or o["bundle"] == SEGMENTATION:
        known = [name for name in bundle_names() if name != SEGMENTATION]
        raise InputError(f"--bundle {o['bundle']!r}", f"one of {known}", near(str(o["bundle"]), known))
    checks = {
        "configuration": (o["configuration"] in CONFIGURATIONS, f"one of {', '.join(CONFIGURATIONS)}"),
        "share": (_number(o["share"]) and 0 < o["share"] <= 1, "a number above 0, up to 1"),
        "num_samples": (_whole(o["num_samples"], 1), "a whole number from 1"),
        "num_epochs": (_whole(o["num_epochs"], 1), "a whole number from 1"),
        "num_iterations_per_epoch": (_whole(o["num_iterations_per_epoch"], 1), "a whole number from 1"),
        "seed": (_whole(o["seed"], 0), "a whole number from 0"),
        "seeds": (_different(o["seeds"]), "different whole numbers from 0, such as '[0,1]'"),
        "folds": (
            _different([0 if fold == "all" else fold for fold in o["folds"]]),
            "0 to 4, different ones, such as '[0,1]', or all",
        ),
        "full_plans": (isinstance(o["full_plans"], bool), "True or False"),
        "audit": (isinstance(o["audit"], bool), "True or False"),
        "transplants": (isinstance(o["transplants"], bool), "True or False"),
        "generator": (isinstance(o["generator"], dict), """settings by name, such as '{"max_epochs": 100}'"""),
    }  # fmt: skip
    for name, (good, allowed) in checks.items():
        if not good:
            raise InputError(f"--{name} {options[name]!r}", allowed, f"mend --{name}")
    check_overlays("--overlays", o["bundle"], overlays)
    check_settings("--generator", o["bundle"], "train.json", overlays, o["generator"], DECIDED)
    lengths = {name: o[name] for name in ("num_epochs", "num_iterations_per_epoch", "full_plans")}
    return {
        "configuration": o["configuration"],
        "num_synthetic": [o["num_samples"]],
        "folds": o["folds"],
        "seeds": o["seeds"],
        "generator_seed": o["seed"],
        "generators": {o["bundle"]: {"bundle": o["bundle"], "overlays": overlays, "settings": o["generator"]}},
        "arms": {
            REAL: {},
            **({TRANSPLANTED: {"transplant": {}}} if o["transplants"] else {}),
            MIXED: {"pool": o["bundle"], "share": o["share"]},
        },
        "segmenters": {SEGMENTER: {"settings": lengths}},
        "audit": {} if o["audit"] else False,
    }


def run_demo(output_dir: str | Path, seed: int, processes: int | None, command: str) -> Path:
    """The whole chain on a phantom; returns the report's path."""
    if not _whole(seed, 0):
        raise InputError(f"--seed {seed!r}", "a whole number from 0", "mend --seed")
    data = read_protocol("demo")["dataset"]
    over = {"dataset": {**data, "seed": seed}, "generator_seed": seed, "seeds": [seed]}
    return run_experiment(prepare("demo", output_dir, over=over, processes=processes), command)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _different(values: Sequence[Any]) -> bool:
    return bool(values) and all(_whole(value, 0) for value in values) and len(set(values)) == len(values)
