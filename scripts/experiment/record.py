"""What a finished chain leaves to be reported: figures read from the files of its stages."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.description import DatasetDescription
from ..data.provenance import code_revision, package_versions, read_provenance
from ..pool.writing import read_pool
from ..runtime.files import write_text


@dataclass(frozen=True)
class FinishedRun:
    """One nnU-Net training with its test predictions: arm, synthetic share, seed, and its `fold_K` folder."""

    arm: str
    share: float
    seed: int
    folder: Path


def chain_record(
    description: DatasetDescription, models: Path, pool_dir: Path, runs: list[FinishedRun], shares_dir: Path, steps: int
) -> dict[str, Any]:
    """The record that `scripts.report.page.write_report` turns into a page.

    Args:
        description: of the data set.
        models: folder of the generator's checkpoint and provenance.
        pool_dir: the pool.
        runs: nnU-Net trainings; each has `test/summary.json` (nnU-Net's evaluation) and `synthaug_epochs.jsonl`.
        shares_dir: where the realised shares go, as CSV.
        steps: iterations of each training.
    """
    provenance = read_provenance(models / "provenance.json")
    pool = read_pool(pool_dir)
    kept = sum(sample["decision"] == "keep" for sample in pool["samples"])
    arms: dict[str, Any] = {}
    for run in runs:
        dice = read_dice(run.folder / "test" / "summary.json", description)
        shares = _write_shares(run, shares_dir)
        entry = arms.setdefault(run.arm, {"share": run.share, "steps": steps, "runs": []})
        entry["runs"].append({"seed": run.seed, "dice": dice, "shares_file": str(shares)})
    limits = []
    if "Phantom" in description.name:
        limits.append("The data are a phantom: figures on it say that the chain works, not that the method helps.")
    size = provenance["geometry"]["spatial_size"]
    what, unit = ("slices", "pixels") if len(size) == 2 else ("volumes", "voxels")
    limits.append(f"The generator works on {what} of {' x '.join(map(str, size))} {unit}.")
    return {
        "title": f"synthaug: {description.name}, real only against real + synthetic",
        "versions": package_versions(),
        "commit": code_revision(),
        "limits": limits,
        "dataset": {
            "name": description.name,
            "channel_names": description.channel_names,
            "labels": description.labels,
            "training_cases": len(provenance["cases"]),
            "test_cases": len(dice),
            "fold": provenance["fold"],
        },
        "generator": {
            "bundle": f"{provenance['bundle']['name']} {provenance['bundle']['version']}",
            "settings": {"seed": provenance["seed"], **provenance["network"], **provenance["training"]},
            "parameters": num_parameters(models / "model.pt"),
            "feature_extractor": provenance["training"].get("feature_extractor"),
            "losses_file": str(models / "losses.csv"),
        },
        "pool": {
            "samples": len(pool["samples"]),
            "kept": kept,
            "dropped": len(pool["samples"]) - kept,
            "seed": pool["sampling"]["seed"],
            "candidates": pool["sampling"]["candidates"],
        },
        "segmentation": {"arms": arms},
    }


def read_dice(summary: Path, description: DatasetDescription) -> dict[str, dict[str, float | None]]:
    """Dice per case and label from nnU-Net's `summary.json`; None where reference and prediction are both empty."""
    names = {str(tuple(v) if isinstance(v, list) else v): k for k, v in description.labels.items()}
    dice: dict[str, dict[str, float | None]] = {}
    for case in json.loads(summary.read_text())["metric_per_case"]:
        case_id = Path(case["reference_file"]).name[: -len(description.file_ending)]
        values = {names[key]: m["Dice"] for key, m in case["metrics"].items()}
        dice[case_id] = {name: None if value != value else float(value) for name, value in values.items()}
    return dice


def _write_shares(run: FinishedRun, folder: Path) -> Path:
    """The realised share of each epoch, as the report reads it."""
    rows = [json.loads(line) for line in (run.folder / "synthaug_epochs.jsonl").read_text().splitlines()]
    text = "".join(f"{row['epoch']},{row['share']},{row['planned_share']}\n" for row in rows)
    return write_text(folder / f"{run.share:g}_seed{run.seed}.csv", "epoch,realised,planned\n" + text)


def num_parameters(checkpoint: Path) -> int:
    """Numbers in the weights of a generator, without those of the latent density that sampling draws from."""
    import torch

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return sum(value.numel() for name, value in state.items() if not name.startswith("density_"))


def choose_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def num_processes(device: str) -> int:
    """How many processes may share a job: one for each GPU, or on the CPU one for each core up to four."""
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    return min(4, os.cpu_count() or 1)  # each takes half a gigabyte and seconds to start


def device_words(device: str) -> str:
    """The device as a reader knows it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"
