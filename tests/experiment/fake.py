"""An experiment's folder as its cells would leave it, with made-up numbers."""

import json
from pathlib import Path

import numpy as np

from scripts.experiment.cells import plan_cells
from scripts.experiment.protocol import read_protocol
from scripts.experiment.run_folder import RunFolder

PROTOCOL = """
title: A made-up experiment
question: Which number is larger?
folds: [0, 1]
seeds: [0, 1]
real: [all]
num_synthetic: [10, 20]
generators:
  model: {bundle: hvae}
  pasted: {bundle: copy_paste}
arms:
  real only: {}
  x5: {augmentation: x5}
  pasted: {pool: pasted, num_synthetic: [20]}
  model: {pool: model}
segmenters:
  U-Net: {}
  UNETR: {overlays: [unetr.json], arms: [real only, model]}
pool_metrics: {}
audit: true
"""
# What the arms add to a patient's Dice; patients and seeds differ, too.
EFFECTS = {"real only": 0.0, "x5": 0.0, "pasted": -0.1, "model": 0.08}
PATIENTS = 8  # of each fold


def write_protocol(folder: Path, text: str = PROTOCOL, name: str = "made_up") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def settings(folder: Path, text: str = PROTOCOL) -> dict:
    return read_protocol(write_protocol(folder, text)) | {"dataset_dir": None, "raw_dir": None}


def start(folder: Path, text: str = PROTOCOL) -> RunFolder:
    return RunFolder.start(folder / "run", settings(folder, text), {"command": "synthaug ...", "started": "today"})


def write_result(run: RunFolder, cell_id: str, values: dict) -> None:
    place = run.folder(cell_id)
    place.mkdir(parents=True, exist_ok=True)
    record = {
        "cell": cell_id, "settings_sha256": run.sha256[cell_id], "values": values, "seconds": 2.0,
        "finished": "today", "device": "CPU", "threads": "1", "versions": {"torch": "2"}, "code_revision": "abc",
    }  # fmt: skip
    (place / "result.json").write_text(json.dumps(record))


def dice(s: dict, patient: int) -> float:
    """Made up, but the same each time."""
    rng = np.random.default_rng([s["fold"], patient])
    base, gain = rng.uniform(0.4, 0.7), rng.uniform(0.5, 1.5)
    noise = np.random.default_rng([s["fold"], s["seed"], patient, len(s["arm"]), s["num_synthetic"]]).normal(0, 0.004)
    return float(base + gain * EFFECTS[s["arm"]] * (0.5 if s["num_synthetic"] == 10 else 1) + noise)


def finish(run: RunFolder, without: tuple[str, ...] = (), of=None, names=None, labels=("tumour",)) -> None:
    """Write a result for every cell whose id holds none of the words of `without`.

    of: (settings, number of the patient) -> Dice, or None where not defined; names: of the patients of a fold.
    """
    of = of or dice
    for cell in plan_cells(run.settings):
        if any(word in cell.id for word in without):
            continue
        s, values = cell.settings, {}
        if cell.kind == "evaluate":
            cases = {
                name: {label: _measures(of(s, patient)) for label in labels}
                for patient, name in enumerate(names or [f"p{s['fold']}{patient}" for patient in range(PATIENTS)])
            }
            values = {"split": s["split"], "cases": cases, "summary": {}}
        elif cell.kind == "train":
            values = {"steps": 600, "parameters": 1000, "cases": 8, "num_synthetic": s["num_synthetic"], "share": 0.5}
        elif cell.kind == "generator":
            values = {"parameters": 1234, "cases": 8, "iterations": 60, "epochs": 3}
        elif cell.kind == "pool":
            values = {"samples": s["num_samples"], "candidates": s["num_samples"] + 3, "seconds_per_sample": 0.5}
        elif cell.kind == "audit":
            values = {"words": ["20 of 25 samples are kept, 5 dropped: 20 %."], "kept": 20}
        elif cell.kind == "metrics":
            values = metrics(s)
        write_result(run, cell.id, values)


def _measures(d) -> dict:
    if d is None:
        return {**dict.fromkeys(("dice", "iou", "hd95", "nsd")), "reference_voxels": 0, "predicted_voxels": 0}
    return {"dice": d, "iou": d / (2 - d), "hd95": None if d < 0.4 else 9 * d, "nsd": d, "reference_voxels": 9,
            "predicted_voxels": 9}  # fmt: skip


def metrics(s: dict) -> dict:
    figure = {"name": "fid[own,unpaired,n=20/40]", "metric": "fid", "comparison": "synthetic vs training", "of": "own",
              "pairing": "unpaired", "n": [20, 40], "groups": [20, 8], "unit": "", "better": "lower",
              "value": 3.0 + s["fold"], "interval": [2.0, 4.5], "shift": 0.0}  # fmt: skip
    meaning = {"key": "synthetic vs training", "meaning": "the pool against what its generator saw", "groups": [20, 8]}
    return {"figures": [figure], "comparisons": [meaning], "intervals": "95 % bootstrap", "held_out_cases": ["p"],
            "training_cases": ["q"]}  # fmt: skip
