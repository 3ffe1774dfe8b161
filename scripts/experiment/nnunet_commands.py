"""nnU-Net's commands, by its entry points, so that they run in this Python; and what they are given on a CPU."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from .stages import Environment

CPU_PLANS = "nnUNetPlansCPU"
TRAINER = "nnUNetTrainerSynthAug"


def nnunet_environment(folder: Path, full_plans: bool, **variables: str) -> Environment:
    """The variables that nnU-Net wants, its three folders being those of `folder`.

    Args:
        folder: holds `nnUNet_raw`, `nnUNet_preprocessed` and `nnUNet_results`.
        full_plans: nnU-Net's own plans rather than those for a CPU.
        variables: further ones.
    """
    from nnunet_plugin import ext_path

    if not full_plans:
        variables["nnUNet_def_n_proc"] = "2"  # each of these processes takes a gigabyte and seconds to start
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return Environment(
        **folders, nnUNet_extTrainer=str(ext_path()), nnUNet_compile="f", PYTHONUNBUFFERED="1", **variables
    )


def dataset_number(name: str) -> str:
    """NNN of DatasetNNN_NAME, by which nnU-Net's commands call a data set.

    Raises:
        InputError: nnU-Net would not accept the name.
    """
    found = re.fullmatch(r"Dataset(\d{3,})(_.+)?", name)
    if not found:
        raise InputError(f"folder name {name}", "DatasetNNN_NAME, as nnU-Net wants it", "rename or link the folder")
    return str(int(found[1]))


def preprocess_command(number: str, configuration: str) -> list[str]:
    """Plan and preprocess a data set."""
    workers = str(max(1, min(4, (os.cpu_count() or 2) // 2)))
    entry = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry"
    return [
        sys.executable, "-c", f"from {entry} as run; run()", "-d", number, "-c", configuration,
        "-np", workers, "-npfp", workers, "--verify_dataset_integrity",
    ]  # fmt: skip


def training_settings(num_epochs: int, iterations: int, seed: int, full_plans: bool) -> dict[str, Any]:
    """The `training` block of a mixed configuration."""
    training: dict[str, Any] = {
        "num_epochs": num_epochs,
        "num_iterations_per_epoch": iterations,
        "num_val_iterations_per_epoch": 5,
        "seed": seed,
    }
    # Stock SGD learns nothing in a training as short as one on a CPU, and float32 takes twice as long on many.
    return training if full_plans else training | {"optimizer": "AdamW", "initial_lr": 2e-3, "autocast": "auto"}


def train_command(number: str, configuration: str, fold: int | str, plans: str, device: str, folder: Path) -> list[str]:
    """Train a configuration, or go on with the training whose results are in `folder`, or with its validation."""
    # nnU-Net removes the latest when it writes the final one, before it predicts the validation cases.
    started = any((folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "final"))
    resume = ["--c"] if started else []
    return [
        sys.executable, "-c", "from nnunetv2.run.run_training import run_training_entry as run; run()", number,
        configuration, str(fold), "-p", plans, "-tr", TRAINER, "-device", device, *resume,
    ]  # fmt: skip


def predict_command(
    number: str, configuration: str, fold: int | str, plans: str, device: str, images: Path, output: Path
) -> list[str]:
    """Predict the images of a folder, without mirroring."""
    return [
        sys.executable, "-c", "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as run; run()",
        "-i", str(images), "-o", str(output), "-d", number, "-p", plans, "-c", configuration, "-tr", TRAINER,
        "-f", str(fold), "-device", device, "--disable_tta", "--disable_progress_bar", "-npp", "1", "-nps", "1",
    ]  # fmt: skip


def results_folder(results: Path, dataset: str, configuration: str, plans: str, fold: int | str) -> Path:
    """Where nnU-Net leaves the training of a fold."""
    return results / dataset / f"{TRAINER}__{plans}__{configuration}" / f"fold_{fold}"
