"""One bundle on this machine's device: trains, resumes, samples, and loses what it loses on a CPU.

    python benchmarks/gpu/check.py dhvae prepared/Dataset502_STSPET gpu_results/check_dhvae

Writes result.json: losses of the first epoch on the CPU and on the device in float32, and on the device as the bundle
computes (bfloat16 where it may), their relative differences, the seconds of an epoch, and the samples of a pool.

All noise is drawn on the CPU, and so alike in all arms. But what is trained first decides what the loss is of: dHVAE's
feature extractor, the latents of LDM and SBLDM. Hundreds of steps with other roundings end at other weights, so two
trainings on two devices measure two losses. In float32 the device gets what the CPU has: an extractor that nothing was
trained in, the CPU's autoencoder, and no TF32.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from gpu_jobs import ROOT, TINY_NETWORKS

TOLERANCE = 0.02  # of a first epoch's mean loss: kernels round differently, and losses follow each other


def run(bundle: str, files: list[str], tf32: bool = True, **overrides: object) -> None:
    """Run config files of a bundle; without `tf32`, in whole float32 where that is not bfloat16."""
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    stack = str([f"configs/{name}.json" for name in files])
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", stack, *words]
    rounding = {} if tf32 else {"NVIDIA_TF32_OVERRIDE": "0"}
    subprocess.run(command, cwd=ROOT / "bundles" / bundle, check=True, env={**os.environ, **rounding})


def epochs(root: Path) -> list[dict[str, float]]:
    """Rows of the log of losses."""
    with open(root / "models/losses.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a bundle on this machine's device.")
    parser.add_argument("bundle")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    device, out = "cuda" if torch.cuda.is_available() else "cpu", given.out.absolute()
    settings: dict[str, object] = {"dataset_dir": given.dataset.absolute(), "grid_interval": 1000, "val_interval": 1}
    if given.bundle == "dhvae":  # its discriminator from the first step on
        settings |= {"discriminator_start": 0, "adaptive_weight": True}
    if given.tiny:
        settings |= {"batch_size": 4, **TINY_NETWORKS.get(given.bundle, {})}
    if given.bundle in ("ldm", "sbldm"):
        settings |= {"autoencoder_epochs": 1, "autoencoder_val_interval": 1}
    if given.bundle == "sbldm":
        settings |= {"configuration": "3d_fullres"}
    compared: dict[str, object] = {"amp": False, "tf32": False, "max_epochs": 1, **settings}
    if given.bundle == "dhvae":
        compared |= {"feature_weights": "own", "feature_steps": 0}
    run(given.bundle, ["train"], bundle_root=out / "cpu", device="cpu", **compared)
    if (first_stage := out / "cpu/models/autoencoder").is_dir():
        shutil.copytree(first_stage, out / "device_float32/models/autoencoder", dirs_exist_ok=True)
    run(given.bundle, ["train"], bundle_root=out / "device_float32", device=device, **compared)
    run(given.bundle, ["train"], bundle_root=out / "device", device=device, amp=True, max_epochs=1, **settings)
    run(given.bundle, ["train"], bundle_root=out / "device", device=device, amp=True, max_epochs=2, **settings)
    drawn = {key: settings[key] for key in TINY_NETWORKS.get(given.bundle, {}) if key in settings}
    known = json.loads((ROOT / "bundles" / given.bundle / "configs/inference.json").read_text())
    run(given.bundle, ["inference"], bundle_root=out / "device", device=device, num_samples=4, min_foreground=0,
        **{key: value for key, value in drawn.items() if key in known},
        **({"dataset_dir": settings["dataset_dir"]} if given.bundle == "lesion_flow" else {}))  # fmt: skip
    first = {name: epochs(out / name)[0] for name in ("cpu", "device_float32", "device")}
    differences = {"device_float32": abs(first["device_float32"]["loss"] / first["cpu"]["loss"] - 1)}
    if given.bundle not in ("dhvae", "ldm", "sbldm"):  # whose third arm trained its own extractor or autoencoder
        differences["device"] = abs(first["device"]["loss"] / first["cpu"]["loss"] - 1)
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "loss_of_the_first_epoch": {name: row["loss"] for name, row in first.items()},
        "relative_difference_to_the_cpu": differences,
        "seconds_of_an_epoch": {name: row["seconds"] for name, row in first.items()},
        "resumed_at_epoch": int(epochs(out / "device")[-1]["epoch"]),
        "samples": len(json.loads((out / "device/pool/pool.json").read_text())["samples"]),
        "tolerance": TOLERANCE,
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if differences["device_float32"] > TOLERANCE:
        sys.exit(f"error: the losses in float32 differ by {differences['device_float32']:.3g}")


if __name__ == "__main__":
    main()
