"""Command line: `synthaug COMMAND`, the same as `python -m scripts COMMAND`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from nnunet_plugin.__main__ import COMMANDS as PLUGIN_COMMANDS
from nnunet_plugin.command_line import Command, run_commands


def phantom(
    output_dir: str,
    modality: str = "flair",
    cases: int = 30,
    test_cases: int | None = None,
    seed: int = 0,
    channels: int = 1,
    shape: list[int] | None = None,
) -> Path:
    """Write a phantom data set in nnU-Net raw format.

    Args:
        output_dir: The folder of the data set; nnU-Net wants a name such as Dataset801_PhantomFLAIR.
        modality: flair (brain MRI with tumours) or pet (head and neck, SUV, with GTVp).
        cases: Training cases.
        test_cases: Test cases; by default a third of the training cases.
        seed: The same seed gives the same files.
        channels: 1, or 4 with flair: T1, T1c, T2, FLAIR and the regions of BraTS.
        shape: Voxels along x, y, z; by default a size for a CPU.

    Example:
        synthaug phantom Dataset801_PhantomFLAIR --cases 30 --seed 0
    """
    from .phantom.dataset import write_phantom

    grid: Any = None if shape is None else tuple(shape)  # whose length is checked there
    return write_phantom(output_dir, modality, cases, test_cases, seed, channels, grid)


def run(
    dataset_dir: str,
    output_dir: str,
    bundle: str = "dhvae",
    overlays: list[str] | None = None,
    generator: dict | None = None,
    configuration: str = "2d",
    num_samples: int = 400,
    share: float = 0.5,
    transplants: bool = False,
    folds: Any = 0,
    seeds: Any = 0,
    num_epochs: int = 12,
    num_iterations_per_epoch: int = 40,
    full_plans: bool = False,
    seed: int = 0,
    audit: bool = True,
    processes: int | None = None,
    devices: Any = None,
    executor: str = "processes",
    cluster: dict | None = None,
) -> Path:
    """Train a generator, judge and audit its pool, train nnU-Net without and with it, and report Dice on imagesTs.

    The same command goes on where it stopped; one with other settings repeats only what they change. Prints the path of
    the HTML report.

    Args:
        dataset_dir: A raw nnU-Net data set, DatasetNNN_NAME, with imagesTs and labelsTs.
        output_dir: The working folder.
        bundle: The generator, such as dhvae or sbldm.
        overlays: Further config files of the bundle, such as '["paper.json"]'.
        generator: Settings of the bundle's train.json, such as '{"max_epochs": 100}'.
        configuration: nnU-Net's: 2d, or 3d_fullres for a generator of volumes.
        num_samples: Synthetic samples that nnU-Net gets: the first that the audit keeps of a quarter more.
        share: The synthetic share of nnU-Net's training samples.
        transplants: Train nnU-Net with lesions of one patient in another's anatomy, too.
        folds: The folds that generators and nnU-Net train on, such as '[0,1]', or all.
        seeds: One nnU-Net training per arm, fold and seed, such as '[0,1,2]'.
        num_epochs: Epochs of each nnU-Net training.
        num_iterations_per_epoch: Iterations of each of these epochs.
        full_plans: Train nnU-Net's own network instead of a small one for CPUs.
        seed: The seed of the generator, the pool and the audit.
        audit: Drop samples with implausible masks and copies of training cases.
        processes: How many cells run at a time; they share the cores. By default one for each device, two without.
        devices: GPUs, such as 0,1: one for each process in turn.
        executor: processes (of this machine), or by submitit slurm or local.
        cluster: Parameters of submitit, such as '{"slurm_partition": "gpu", "timeout_min": 600}'.

    Example:
        synthaug run /data/nnUNet_raw/Dataset501_LGG results/lgg --num_samples 400
    """
    print(f"synthaug run: checking {dataset_dir} and the settings", flush=True)
    from .experiment.experiment import devices_of
    from .experiment.run import run_dataset

    options = {
        "bundle": bundle, "overlays": overlays or [], "generator": {} if generator is None else generator,
        "configuration": configuration, "num_samples": num_samples, "share": share,
        "transplants": transplants, "folds": folds, "seeds": seeds, "num_epochs": num_epochs,
        "num_iterations_per_epoch": num_iterations_per_epoch, "full_plans": full_plans, "seed": seed, "audit": audit,
    }  # fmt: skip
    return run_dataset(
        dataset_dir, output_dir, options, processes=processes, devices=devices_of(devices), executor=executor,
        cluster=cluster, command=_command(),
    )  # fmt: skip


def demo(output_dir: str = "synthaug_demo", seed: int = 0, processes: int | None = None) -> Path:
    """Run the whole chain on a phantom, in a few minutes on two cores; prints the path of the HTML report.

    Args:
        output_dir: The working folder; the same command again goes on where it stopped.
        seed: The seed of everything.
        processes: How many cells run at a time; by default two.

    Example:
        synthaug demo --output_dir synthaug_demo
    """
    print("synthaug demo: the whole chain on a phantom, a few minutes on two cores", flush=True)
    from .experiment.run import run_demo

    return run_demo(output_dir, seed, processes=processes, command=_command())


def _command() -> str:
    """What the user typed, for the report."""
    return shlex.join(["synthaug", *sys.argv[1:]])


def convert(
    format: str,
    source_dir: str,
    output_dir: str,
    dataset_id: int | None = None,
    name: str | None = None,
    test_fraction: float | None = None,
    test_cases: int | None = None,
    seed: int = 0,
    modalities: list[str] | None = None,
    target: str | None = None,
    ct: bool | None = None,
    crop: int | None = None,
) -> Path:
    """Convert BraTS, HECKTOR or a Medical Segmentation Decathlon task to an nnU-Net raw data set.

    Everything is checked first; the same command after an interruption goes on. Returns the folder.

    Args:
        format: brats (2021, 2022, 2023 adult glioma), hecktor (2022) or msd.
        source_dir: The folder as downloaded and unpacked.
        output_dir: A folder to make, DatasetNNN_NAME, or the folder to make it in, such as $nnUNet_raw.
        dataset_id: NNN, when output_dir does not say it.
        name: NAME, when output_dir does not say it.
        test_fraction: The share of patients to hold out as imagesTs and labelsTs.
        test_cases: Their number instead.
        seed: The seed of that draw.
        modalities: brats: of t1, t1c, t2, flair, such as '["flair"]'; all by default.
        target: brats: regions (default) or whole; hecktor: GTVp (default) or both.
        ct: hecktor: CT as the second channel.
        crop: hecktor: the side of the cube around the tumour in mm; 256 by default.

    Example:
        synthaug convert msd /data/Task01_BrainTumour /data/nnUNet_raw/Dataset501_BrainTumour
    """
    from .converters import convert as convert_dataset

    options: dict[str, Any] = {"modalities": modalities, "target": target, "ct": ct, "crop": crop}
    given = {name: value for name, value in options.items() if value is not None}
    return convert_dataset(format, source_dir, output_dir, dataset_id, name, test_fraction, test_cases, seed, **given)


def evaluate_pool(
    pool: str,
    dataset_dir: str,
    output: str | None = None,
    weights_inception: str | None = None,
    weights_alexnet: str | None = None,
    weights_vgg: str | None = None,
    num_samples: int | None = None,
    resamples: int = 500,
    seed: int = 0,
    feature_steps: int = 200,
) -> Path:
    """Measure a pool against real cases: PSNR, SSIM, LPIPS, FID, KID, PRDC, masks; writes metrics.json, .md and .png.

    Args:
        pool: The folder of a finished pool.
        dataset_dir: The data set that its generator learnt from, preprocessed or raw.
        output: Where to write; the pool's own folder by default.
        weights_inception: A local file of the FID Inception's weights; without any, the project's own extractor.
        weights_alexnet: A local file of AlexNet's weights, for LPIPS.
        weights_vgg: A local file of VGG16's weights.
        num_samples: Measure so many samples only, spread evenly over the pool; all by default.
        resamples: Bootstrap draws of the intervals.
        seed: The seed of pairs, draws and the own extractor's training.
        feature_steps: Training steps of the project's own extractor.

    Example:
        synthaug evaluate-pool pool_fold0 /data/nnUNet_preprocessed/Dataset501_LGG
    """
    from .metrics.evaluate_pool import EvaluationSettings
    from .report.pool_metrics import write_pool_metrics

    return write_pool_metrics(
        pool, dataset_dir, output, weights_inception=weights_inception, weights_alexnet=weights_alexnet,
        weights_vgg=weights_vgg, num_samples=num_samples,
        settings=EvaluationSettings(resamples=resamples, seed=seed, feature_steps=feature_steps),
    )  # fmt: skip


def audit(
    pool: str,
    dataset_dir: str,
    thresholds: dict | None = None,
    dry_run: bool = False,
    seed: int = 0,
    usefulness_steps: int | None = None,
    usefulness_threshold: float = 0.85,
    segmenter_steps: int | None = None,
) -> str:
    """Judge every sample of a pool against real cases, and keep or drop it; writes pool.json, audit.json, audit.png.

    At the end it says how useful the kept samples are: the Dice on held-out patients of a small network that learnt
    from them alone, over that of one that learnt from the real cases alone.

    Args:
        pool: The folder of a finished pool.
        dataset_dir: The data set that its generator learnt from, as it was then.
        thresholds: The share of real items that a check may drop, such as '{"agreement": 0.1}'.
        dry_run: Say what would be dropped, and write nothing.
        seed: The seed of the segmenters, the feature extractor and the intervals.
        usefulness_steps: Training steps of each of the two small networks, by default 300 (volumes: 100); 0 leaves
            usefulness out.
        usefulness_threshold: The ratio below which mixing the pool in is called unlikely to help.
        segmenter_steps: Training steps of each of the three segmenters that masks are held against; by default 400 on
            slices, 150 on volumes. Fewer are faster, and see fewer wrong masks.

    Example:
        synthaug audit pool_fold0 /data/nnUNet_preprocessed/Dataset501_LGG --dry_run
    """
    from .audit.agreement import SegmenterSettings
    from .audit.audit import audit_pool
    from .audit.usefulness import usefulness_settings

    usefulness = usefulness_settings(usefulness_steps, usefulness_threshold)
    segmenters = SegmenterSettings(steps=segmenter_steps)
    return audit_pool(pool, dataset_dir, thresholds, dry_run, seed, segmenters, usefulness=usefulness)


def copy_paste(
    dataset_dir: str,
    output_dir: str,
    num_samples: int,
    fold: int = 0,
    seed: int = 0,
    plans: str = "nnUNetPlans",
    configuration: str = "2d",
    spatial_size: list[int] | None = None,
) -> Path:
    """Write a pool of tumours pasted from one training patient into another: the baseline without a generator.

    The same command goes on where it stopped. Returns the pool's folder.

    Args:
        dataset_dir: A data set in nnUNet_preprocessed, or a raw one.
        output_dir: The pool's folder.
        num_samples: The size of the pool.
        fold: The fold whose training cases are used; the pool serves this fold alone.
        seed: The seed of the draws.
        plans: The plans of a preprocessed data set.
        configuration: Its configuration: 2d, or 3d_fullres for volumes.
        spatial_size: A grid to bring cases to, such as '[64,64]'; without, the largest height and width of the
            training cases, to which smaller ones are padded.

    Example:
        synthaug copy-paste /data/nnUNet_preprocessed/Dataset501_LGG pool_pasted 400 -c 2d -f 0
    """
    from .report.pool import pool_sheet
    from .sampling.copy_paste import write_copy_paste

    pool = write_copy_paste(dataset_dir, output_dir, num_samples, fold, seed, plans, configuration, spatial_size)
    pool_sheet(pool)
    return pool


def experiment(
    protocol: str | None = None,
    output_dir: str | None = None,
    preset: str | None = None,
    dataset_dir: str | None = None,
    raw_dir: str | None = None,
    processes: int | None = None,
    devices: Any = None,
    executor: str = "processes",
    cluster: dict | None = None,
) -> Path | str:
    """Run an experiment: generators, pools, segmenters and evaluations of all its arms, folds and seeds.

    Without a protocol, list what there is. The same command goes on where it stopped; one with other settings repeats
    only what they change. Prints the path of the report.

    Args:
        protocol: smoke, image_quality, mask_quality, number_of_synthetic, number_of_real, segmenters, seed_tables,
            volumes, or a YAML file.
        output_dir: The working folder; by default synthaug_PROTOCOL.
        preset: smoke (minutes on a CPU), small (hours on a CPU) or paper (GPUs); by default the protocol's first.
        dataset_dir: An nnU-Net data set, raw or preprocessed; without, a phantom is made.
        raw_dir: The raw data set of a preprocessed one, for protocols that evaluate test cases.
        processes: How many cells run at a time; they share the cores. By default one for each device, two without.
        devices: GPUs, such as 0,1: one for each process in turn.
        executor: processes (of this machine), or by submitit slurm or local.
        cluster: Parameters of submitit, such as '{"slurm_partition": "gpu", "timeout_min": 600}'.

    Example:
        synthaug experiment number_of_synthetic --preset small --dataset_dir /data/nnUNet_preprocessed/Dataset501_LGG
    """
    if protocol is not None:
        print(f"synthaug experiment: checking {protocol} and its data", flush=True)
    from .experiment.experiment import devices_of, list_protocols, prepare, run_experiment

    if protocol is None:
        return list_protocols()
    folder = output_dir or f"synthaug_{Path(protocol).stem}"
    where = (processes, devices_of(devices), executor, cluster)
    return run_experiment(prepare(protocol, folder, preset, dataset_dir, raw_dir, *where), _command())


def bundle_path(name: str) -> Path:
    """Print the folder of a bundle, to run it with `python -m monai.bundle run` from there.

    Args:
        name: Such as dhvae.

    Example:
        synthaug bundle-path dhvae
    """
    from .packaging.bundle_files import bundle_dir

    return bundle_dir(name)


def insert(
    image: str,
    out: str,
    bundle_root: str | None = None,
    mask: str | None = None,
    volume: float | None = None,
    centre: list[int] | None = None,
    remove: bool = False,
    seed: int = 0,
) -> Path:
    """Paint a lesion into one volume, or healthy tissue over one; prints the path of a picture.

    Writes OUT (voxels outside what was painted keep their bits, the file its type and geometry), OUT_mask and OUT.png.

    Args:
        image: A NIfTI file; of several channels CASE_0000.nii.gz, with the others beside it.
        out: The NIfTI file to write; of several channels OUT_0000.nii.gz and so on.
        bundle_root: Where a training of the bundle lesion_flow left its models; by default the bundle's own folder.
        mask: A label map on the image's grid: the lesion that is wanted, or with --remove the one to take away.
        volume: Instead of a mask, mm3 of a lesion to draw.
        centre: Where, as a voxel index, such as '[30,42,18]'.
        remove: Paint healthy tissue over the mask, or over what lies there.
        seed: The seed of shape and noise.

    Example:
        synthaug insert patient_0000.nii.gz with_lesion.nii.gz --bundle_root ~/flow --volume 9000 --centre '[30,42,18]'
    """
    from .packaging.bundle_files import bundle_dir
    from .report.insertion import insert as insert_into

    root = bundle_dir("lesion_flow") if bundle_root is None else bundle_root
    return insert_into(image, out, root, mask, volume, centre, remove, seed)


COMMANDS: dict[str, Command | str] = {
    "demo": demo,
    "phantom": phantom,
    "run": run,
    "bundle-path": bundle_path,
    "verify": f"{__package__}.packaging.verify:verify",
    "pack": f"{__package__}.packaging.pack:pack",
    "obedience": f"{__package__}.report.obedience:report_obedience",
    "convert": convert,
    "audit": audit,
    "evaluate-pool": evaluate_pool,
    "copy-paste": copy_paste,
    "insert": insert,
    "adopt": f"{__package__}.report.adopted:adopt",
    "prepare": f"{__package__}.data.prepared:write_prepared",
    "datalist": f"{__package__}.segmentation.datalist:write_datalist",
    "reader": f"{__package__}.report.reader:write_reader",
    "curve": f"{__package__}.experiment.curve:write_curve",
    "experiment": experiment,
    "tune": f"{__package__}.experiment.tune:tune",
    "report": f"{__package__}.report.experiment:write_experiment_report",
    **PLUGIN_COMMANDS,
}


def main() -> int:
    """Run a command; returns the exit status: 1 after bad input, 2 after wrong usage, 130 after Ctrl-C."""
    return run_commands(COMMANDS, "synthaug")


if __name__ == "__main__":
    sys.exit(main())
