"""What mixing costs: CPU time of nnU-Net's training batches with the plugin, against stock nnU-Net.

One process without background workers draws batches in these arms: stock nnU-Net, stock again, the plugin with a pool
at share 0 and 0.5, and with transplants at share 0 and 0.3. The order of the arms is shuffled in each block, each block
reseeds every random generator, and the CPU time of an arm is compared with stock's in the same block. Stock against
stock shows the noise of the measurement; the plugin passes where its interval does not lie above that one, transplants
where their median is at most 1.1 times stock's.

    python benchmarks/plugin_overhead.py                                  # random cases that it makes itself
    python benchmarks/plugin_overhead.py --dataset /path/to/nnUNet_raw/Dataset501_LGG
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

ARMS = ("stock", "stock again", "share 0", "share 0.5", "transplants 0", "transplants 0.3")
MOST = 1.1  # times stock's loader that transplants may take
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="a raw nnU-Net data set; random cases when left away")
    parser.add_argument("--configurations", nargs="+", default=["2d", "3d_fullres"])
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--batches", type=int, default=20, help="batches of each arm in a block")
    parser.add_argument("--batch_size", type=int, default=8, help="in 2d; in 3D 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/plugin_overhead.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {arguments.output}")


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    """Prepare the data and time every configuration; returns what goes into the results file."""
    name = prepare(folder, arguments.dataset, arguments.seed, arguments.batch_size)
    torch.set_num_threads(1)
    configurations = {}
    for configuration in arguments.configurations:
        trainers = make_trainers(folder, name, configuration)
        seconds = run_blocks(trainers, arguments.blocks, arguments.batches, arguments.seed)
        configurations[configuration] = summarise(seconds, arguments.seed)
        for arm, summary in configurations[configuration]["ratio_to_stock"].items():
            print(f"{configuration:12s} {arm:12s} {summary['median']:.3f} {summary['interval']}")
        print(f"{configuration:12s} passes: {configurations[configuration]['passes']}")
    packages = ("nnunetv2", "torch", "numpy", "batchgenerators", "batchgeneratorsv2", "blosc2")
    return {
        "measured": "CPU seconds (time.process_time) per training batch, median of paired ratios to stock",
        "command": f"python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "data": f"{arguments.dataset.name}" if arguments.dataset else "30 random cases of 32 x 128 x 128 voxels",
        "device": f"{platform.machine()}, {os.cpu_count()} CPUs, one thread, no background workers",
        "n": {"blocks": arguments.blocks, "batches_per_block_and_arm": arguments.batches},
        "seed": arguments.seed,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "configurations": configurations,
    }


def prepare(folder: Path, dataset: Path | None, seed: int, batch_size: int) -> str:
    """Plan and preprocess a raw data set with nnU-Net, and import a pool made of raw training volumes."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir()
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    # nnU-Net plans with as many threads as this says; the loaders are told otherwise later on.
    os.environ.update(nnUNet_n_proc_DA="2", nnUNet_def_n_proc="2")
    if dataset is None:
        raw = folder / "raw" / "Dataset999_Random"
        write_random_cases(raw, 30, seed)
    else:
        raw = folder / "raw" / dataset.name
        raw.symlink_to(dataset.resolve())
    command = ["-d", raw.name[7:10], "-c", "2d", "3d_fullres", "-np", "2", "2", "-npfp", "2"]
    entry = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as e"
    subprocess.run([sys.executable, "-c", f"{entry}; e()", *command], check=True, stdout=subprocess.DEVNULL)
    base = folder / "preprocessed" / raw.name
    plans = json.loads((base / "nnUNetPlans.json").read_text())
    for configuration, size in (("2d", batch_size), ("3d_fullres", 2)):
        plans["configurations"][configuration]["batch_size"] = size
    (base / "nnUNetPlans.json").write_text(json.dumps(plans))

    from nnunet_plugin.import_pool import add_pool
    from nnunet_plugin.transplant.command import add_transplants

    pool = write_pool(folder / "pool", raw, base)
    for configuration in ("2d", "3d_fullres"):
        for share in (0.0, 0.5):
            add_pool(pool, raw.name, 0, configuration, share, pool_name=f"pool_{configuration}")
        for share in (0.0, 0.3):
            name = f"{configuration}_transplant{100 * share:g}"
            # The lesions of the random cases are all of one size, as organs are.
            add_transplants(raw.name, configuration, 0, share, name=name, finish_epochs=0, labels=[1])
    return raw.name


def write_random_cases(raw: Path, cases: int, seed: int) -> None:
    """Write cases of smooth noise with an ellipsoid of label 1."""
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
    grid = np.indices((128, 128, 32)).astype(np.float32)
    for case in range(cases):
        rng = np.random.default_rng([seed, case])
        centre = rng.uniform([40, 40, 8], [88, 88, 24])[:, None, None, None]
        label = (((grid - centre) / np.array([14, 10, 4])[:, None, None, None]) ** 2).sum(0) < 1
        image = rng.normal(100, 20, label.shape) + 60 * label
        for array, file in ((image.astype(np.float32), f"imagesTr/case_{case:03d}_0000.nii.gz"),
                            (label.astype(np.uint8), f"labelsTr/case_{case:03d}.nii.gz")):  # fmt: skip
            nib.save(nib.Nifti1Image(array, np.eye(4)), raw / file)
    content = {"channel_names": {"0": "noise"}, "labels": {"background": 0, "blob": 1}}
    content |= {"numTraining": cases, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))


def write_pool(pool: Path, raw: Path, base: Path) -> Path:
    """Write a raw pool of volumes: copies of the fold's training cases, so that a sample costs what a case costs."""
    from nnunet_plugin.identity import identify
    from nnunet_plugin.leakage import cases_sha256
    from nnunet_plugin.pool_format import files_sha256
    from nnunet_plugin.preprocessed import case_identifiers, find_dataset, fold_split

    dataset = find_dataset(raw.name)
    identifiers = case_identifiers(dataset, {"data_identifier": "nnUNetPlans_2d"})
    *_, splits, _ = fold_split(dataset, identifiers, 0)
    train, val = ([str(case) for case in splits[0][part]] for part in ("train", "val"))
    cases, samples = [], []
    for part in ("images", "labels"):
        (pool / part).mkdir(parents=True)
    content = dataset.dataset_json
    for k, case in enumerate(train):
        channels = range(len(content["channel_names"]))
        sample = f"syn_{k:06d}"
        sources = [raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz" for channel in channels]
        sources.append(raw / "labelsTr" / f"{case}.nii.gz")
        files = [pool / "images" / f"{sample}_{channel:04d}.nii.gz" for channel in channels]
        files.append(pool / "labels" / f"{sample}.nii.gz")
        for source, file in zip(sources, files, strict=True):
            shutil.copyfile(source, file)
        *image, label = (np.asarray(nib.Nifti1Image.from_filename(file).dataobj).T for file in sources)
        cases.append({"id": case, **identify(np.stack(image), label)._asdict()})
        samples.append({"id": sample, "decision": "keep", "sha256": files_sha256(files)})
    keys = ("channel_names", "labels", "regions_class_order")
    record = {
        "format": "synthaug-pool",
        "format_version": 2,
        "dimension": 3,
        "dataset": {"name": raw.name, **{key: content.get(key) for key in keys}},
        "space": {"kind": "raw"},
        "provenance": {
            "format_version": 1,
            "dataset": raw.name,
            "cases": cases,
            "cases_sha256": cases_sha256(cases),
            "fold": 0,
            "split_sha256": hashlib.sha256(json.dumps([train, val]).encode()).hexdigest(),
        },
        "samples": samples,
    }
    (pool / "pool.json").write_text(json.dumps(record))
    return pool


def make_trainers(folder: Path, dataset: str, configuration: str) -> dict:
    """Return a trainer for each arm."""
    from nnunet_plugin.trainer import nnUNetTrainerSynthAug
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    os.environ["nnUNet_n_proc_DA"] = "0"
    base = folder / "preprocessed" / dataset
    plans = json.loads((base / "nnUNetPlansSynthAug.json").read_text())
    dataset_json = json.loads((base / "dataset.json").read_text())
    kinds = {
        "stock": (nnUNetTrainer, configuration),
        "stock again": (nnUNetTrainer, configuration),
        "share 0": (nnUNetTrainerSynthAug, f"{configuration}_syn0"),
        "share 0.5": (nnUNetTrainerSynthAug, f"{configuration}_syn50"),
        "transplants 0": (nnUNetTrainerSynthAug, f"{configuration}_transplant0"),
        "transplants 0.3": (nnUNetTrainerSynthAug, f"{configuration}_transplant30"),
    }
    device = torch.device("cpu")
    trainers = {}
    for arm, (kind, name) in kinds.items():
        trainers[arm] = kind({**plans, "continue_training": False}, name, 0, dataset_json, device)
        trainers[arm]._set_batch_size_and_oversample()
    return trainers


def run_blocks(trainers: dict, blocks: int, batches: int, seed: int) -> dict[str, list[float]]:
    """Return CPU seconds per batch of every arm and block; a first block warms up and is left out."""
    loaders = {arm: trainer.get_dataloaders()[0] for arm, trainer in trainers.items()}
    order = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {arm: [] for arm in trainers}
    for block in range(-1, blocks):
        for arm in order.permutation(ARMS):
            state = 1_000_003 * seed + block + 1
            random.seed(state)
            np.random.seed(state)  # noqa: NPY002 (nnU-Net draws from the global generator)
            torch.manual_seed(state)
            start = time.process_time()
            for _ in range(batches):
                next(loaders[arm])
            if block >= 0:
                seconds[arm].append((time.process_time() - start) / batches)
    return seconds


def summarise(seconds: dict[str, list[float]], seed: int) -> dict:
    """Return the median ratio to stock with a 95 % bootstrap interval over blocks, for every other arm."""
    rng = np.random.default_rng(seed)
    ratios = {}
    for arm in ARMS[1:]:
        paired = np.array(seconds[arm]) / np.array(seconds["stock"])
        medians = np.median(rng.choice(paired, (10_000, len(paired))), axis=1)
        interval = [round(float(bound), 4) for bound in np.percentile(medians, [2.5, 97.5])]
        ratios[arm] = {"median": round(float(np.median(paired)), 4), "interval": interval}
    noise = ratios["stock again"]["interval"][1]
    passes = {arm: ratios[arm]["interval"][0] <= noise for arm in ARMS[2:5]}
    passes["transplants 0.3"] = ratios["transplants 0.3"]["median"] <= MOST
    medians = {arm: round(float(np.median(values)), 5) for arm, values in seconds.items()}
    return {"seconds_per_batch": medians, "ratio_to_stock": ratios, "passes": passes}


def commit() -> str:
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


if __name__ == "__main__":
    main()
