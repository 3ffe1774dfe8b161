"""What bfloat16 saves of a 2D training step on a CPU: the segmentation bundle's U-Net, and nnU-Net's with the plugin.

    taskset -c 0 chrt -r 1 python benchmarks/step_time.py    # some three minutes; writes results/step_time.json
    python benchmarks/step_time.py --rounds 2 --output /tmp/short.json

A step is the training's own (`SegmentationUpdate` with `evidence.json`; `nnUNetTrainerSynthAug.train_step` with
`training.autocast`, deep supervision and the sizes of `synthaug cpu-plans`) on random data of 128 x 128, batch 16: time
does not depend on the values. Data loading is not in it. One thread; in every round all four arms take a step, in a
shuffled order, and a ratio compares the two of one round. `chrt` (for root) keeps other work off the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from plugin_overhead import ROOT, commit

sys.path.insert(0, str(ROOT))

from scripts.training.segmentation import SegmentationUpdate

SIZE, BATCH = 128, 16
TYPES = {"float32": None, "bfloat16": "bfloat16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/step_time.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        steps = {f"bundle {name}": bundle_step(kind) for name, kind in TYPES.items()}
        steps |= {f"nnunet {name}": nnunet_step(Path(folder), kind) for name, kind in TYPES.items()}
        seconds = run_rounds(steps, arguments.rounds, arguments.seed)
    found = {arm: summarise(seconds, arm, arguments.seed) for arm in ("bundle", "nnunet")}
    packages = ("nnunetv2", "monai", "torch", "numpy")
    result = {
        "measured": "CPU seconds (time.process_time) of a training step; median of the ratios bfloat16 / float32 of a "
        "round, 95 % bootstrap interval over rounds",
        "command": f"python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "data": f"random, {SIZE} x {SIZE}, batch {BATCH}, one channel, one label",
        "device": f"{processor()}, AVX-512 BF16: {torch.cpu._is_avx512_bf16_supported()}",
        "scheduling": f"one thread on {len(os.sched_getaffinity(0))} of {os.cpu_count()} CPUs, "
        + ("in real time (round robin)" if os.sched_getscheduler(0) == os.SCHED_RR else "beside other work"),
        "n": {"rounds": arguments.rounds},
        "seed": arguments.seed,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "steps": found,
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(found, indent=2), f"written to {arguments.output}", sep="\n")


def bundle_step(autocast: str | None) -> Callable[[], object]:
    """A step of the segmentation bundle with `evidence.json`."""
    parser = ConfigParser()
    before = Path.cwd()
    os.chdir(ROOT / "bundles/segmentation")  # macros are resolved from here
    parser.read_config(["configs/train.json", "configs/evidence.json"])
    parser.update({"in_channels": 1, "out_channels": 1, "device": "cpu", "bundle_root": "/nonexistent"})
    network = parser.get_parsed_content("network_def").train()
    engine = SimpleNamespace(
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1),
        prepare_batch=lambda batch, *_: (batch["image"], batch["label"]),
        non_blocking=False,
        network=network,
        inferer=SimpleInferer(),
        loss_function=parser.get_parsed_content("train#loss"),
        optimizer=parser.get_parsed_content("train#optimizer"),
    )
    os.chdir(before)
    shown = torch.zeros(BATCH)
    image, label = random_pair()
    batch = {"image": image, "label": label, "synthetic": shown, "transplanted": shown}
    update = SegmentationUpdate(autocast, "cpu", parser.get_parsed_content("gradient_clip"))
    return lambda: update(engine, batch)


def nnunet_step(folder: Path, autocast: str | None) -> Callable[[], object]:
    """A step of nnU-Net's 2D U-Net, trained by the plugin."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    from nnunet_plugin.trainer import nnUNetTrainerSynthAug

    data = folder / "preprocessed/Dataset999_Random/nnUNetPlans_2d"
    data.mkdir(parents=True, exist_ok=True)
    (data / "case.b2nd").touch()  # nnU-Net looks for the kind of its files
    (folder / "results").mkdir(exist_ok=True)
    content = {"channel_names": {"0": "noise"}, "labels": {"background": 0, "blob": 1}}
    trainer = nnUNetTrainerSynthAug(plans(autocast), "2d_syn50", 0, content, torch.device("cpu"))
    trainer.initialize()
    trainer.network.train()
    image, label = random_pair()
    scales = trainer._get_deep_supervision_scales()
    target = [torch.nn.functional.interpolate(label, scale_factor=tuple(scale), mode="nearest") for scale in scales]
    return lambda: trainer.train_step({"data": image, "target": target})


def plans(autocast: str | None) -> dict:
    """What nnU-Net plans for slices of 128 x 128, with the widths and the batch of `synthaug cpu-plans`."""
    stages = 6
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(16 * 2**stage, 128) for stage in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * stages,
            "strides": [[1, 1], *[[2, 2]] * (stages - 1)],
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    real = {"data_identifier": "nnUNetPlans_2d", "patch_size": [SIZE, SIZE], "batch_size": BATCH, "batch_dice": True}
    block = {"pool": "pool", "share": 0.5, "training": {"seed": 0, "autocast": autocast}}
    return {
        "dataset_name": "Dataset999_Random",
        "plans_name": "nnUNetPlansCPU",
        "configurations": {
            "2d": {**real, "architecture": architecture},
            "2d_syn50": {"inherits_from": "2d", "synthaug": block},
        },
        "continue_training": False,
    }


def random_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Image and label of a batch."""
    image = torch.randn(BATCH, 1, SIZE, SIZE)
    return image, (image > 2).float()


def run_rounds(steps: dict[str, Callable[[], object]], rounds: int, seed: int) -> dict[str, np.ndarray]:
    """CPU seconds of every arm in every round; two rounds more warm up."""
    order, seconds = np.random.default_rng(seed), {arm: [] for arm in steps}
    for number in range(-2, rounds):
        for arm in order.permutation(list(steps)):
            start = time.process_time()
            steps[arm]()
            if number >= 0:
                seconds[arm].append(time.process_time() - start)
    return {arm: np.array(values) for arm, values in seconds.items()}


def summarise(seconds: dict[str, np.ndarray], arm: str, seed: int) -> dict:
    """Median seconds of both types, and the ratio with its interval."""
    ratios = seconds[f"{arm} bfloat16"] / seconds[f"{arm} float32"]
    medians = np.median(np.random.default_rng(seed).choice(ratios, (10_000, len(ratios))), axis=1)
    return {
        **{f"seconds_{name}": round(float(np.median(seconds[f"{arm} {name}"])), 4) for name in TYPES},
        "ratio": round(float(np.median(ratios)), 4),
        "interval": [round(float(bound), 4) for bound in np.percentile(medians, [2.5, 97.5])],
    }


def processor() -> str:
    """The CPU's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
