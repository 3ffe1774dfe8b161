"""Bring a pool into nnU-Net's preprocessed data and add a configuration that trains with it."""

import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes
from tqdm import tqdm

from .errors import InputError
from .pool_format import Pool, case_ids, is_safe_name, read_pool, read_sample
from .preprocessed import (
    PreprocessedDataset,
    case_identifiers,
    check_leakage,
    check_space,
    find_dataset,
    fold_split,
    read_json,
    read_plans,
    resolve_configuration,
    write_json,
)
from .settings import parse_settings, settings_block

IMPORT_RECORD = "import.json"
IMPORT_FORMAT = "synthaug-import"
TRAINER = "nnUNetTrainerSynthAug"


def add_pool(
    pool: str | Path,
    dataset: int | str,
    fold: int | str,
    configuration: str = "2d",
    share: float = 0.5,
    plans: str = "nnUNetPlans",
    plans_out: str | None = None,
    name: str | None = None,
    pool_name: str | None = None,
    schedule: str = "constant",
    share_end: float | None = None,
    steps: list | None = None,
    warmup_epochs: int = 0,
    finish_epochs: int = 0,
    seed: int = 0,
    training: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Import a pool for one fold and add a configuration such as 2d_syn50 that trains with it.

    The samples go to nnUNet_preprocessed/DATASET/synthaug/POOL_NAME/fold_FOLD, once for any number of
    configurations. The same command twice changes nothing. Returns `configuration`, `plans`, `plans_file`,
    `pool_folder`, `samples` (how many), `imported` (False when it was there already) and `train_command`.
    Raises `InputError`, and writes nothing, when the pool, the data set and the fold do not fit together.

    Args:
        pool: The folder of a finished pool; only its samples with the decision "keep" are used.
        dataset: Number or name of the data set, such as 501.
        fold: The fold to be trained, a number or "all". A pool whose generator saw its validation is refused.
        configuration: The configuration of the plans to train, such as 2d or 3d_fullres.
        share: Synthetic part of each epoch's samples, 0 to 1; with a schedule the part at its start.
        plans: The plans that hold the configuration.
        plans_out: Name of the plans file to write; by default the name of the plans with SynthAug appended.
        name: Name of the new configuration; by default such as 2d_syn50.
        pool_name: Name of the imported pool; by default the name of its folder.
        schedule: constant, linear, cosine or steps.
        share_end: The share at the end of the schedules linear and cosine.
        steps: The pairs [epoch, share] of the schedule steps.
        warmup_epochs: Epochs at the start with synthetic samples only.
        finish_epochs: Epochs at the end with real samples only.
        seed: Seed of the draws.
        training: What to change in nnU-Net's training for short comparisons: num_epochs,
            num_iterations_per_epoch, num_val_iterations_per_epoch, optimizer (SGD or AdamW), initial_lr,
            weight_decay, seed.
        overwrite: Replace an imported pool, a configuration or stale plans of the same name.

    Example:
        synthaug add-pool pool_fold0 501 2d 0 --share 0.5
    """
    pool_name = Path(pool).resolve().name if pool_name is None else pool_name
    block = {
        "pool": pool_name,
        "share": share,
        "schedule": schedule,
        "share_end": share_end,
        "steps": steps,
        "warmup_epochs": warmup_epochs,
        "finish_epochs": finish_epochs,
        "seed": seed,
        "training": training,
    }
    block = settings_block(parse_settings(block))
    plans_out = f"{plans}SynthAug" if plans_out is None else plans_out
    name = f"{configuration}_syn{100 * share:g}".replace(".", "p") if name is None else name
    _check_name("pool_name", pool_name)
    _check_name("name", name)
    check_plans_name(plans, plans_out)

    found = find_dataset(dataset)
    source = read_plans(found, plans)
    resolved = resolve_configuration(source, configuration)
    if "synthaug" in resolved:
        raise InputError(
            f"the configuration {configuration}, which mixes already",
            "a configuration of nnU-Net",
            "name the configuration that it inherits from",
        )
    plans_file = found.folder / f"{plans_out}.json"
    checked = read_pool(pool)
    _check_pool(checked, found, source, resolved)
    identifiers = case_identifiers(found, resolved)
    train, val, new_splits = fold_split(found, identifiers, fold)
    _check_known_cases(checked.generator_cases, identifiers)
    check_leakage(checked.generator_cases, train, val, fold)

    merged = _merged_plans(source, plans_file, configuration, name, block, overwrite)
    folder = found.pool_folder(pool_name, fold)
    record = _import_record(checked, pool_name, fold, resolved)
    imported = _needs_import(folder, record, overwrite)
    if imported:
        _import_samples(checked, found, source, resolved, folder, record)
    if new_splits is not None:
        write_json(found.folder / "splits_final.json", new_splits)
    write_json(plans_file, merged)
    return {
        "configuration": name,
        "plans": plans_out,
        "plans_file": plans_file,
        "pool_folder": folder,
        "samples": len(checked.kept),
        "imported": imported,
        "train_command": f"nnUNetv2_train {found.name} {name} {fold} -p {plans_out} -tr {TRAINER}",
    }


def read_import(dataset: PreprocessedDataset, pool: str, fold: int | str) -> dict[str, Any]:
    """Read the record of an imported pool and check that its samples are there.

    Its `samples` are sorted ids, its `cases` the ids that the generator saw.
    """
    folder = dataset.pool_folder(pool, fold)
    remedy = f"run add-pool for the pool {pool} and fold {fold}"
    if not folder.is_dir():
        present = sorted(path.parent.name for path in folder.parent.glob(f"fold_*/{IMPORT_RECORD}")) or ["none"]
        raise InputError(f"no imported pool {folder}", f"an imported fold, there is: {', '.join(present)}", remedy)
    record = read_json(folder / IMPORT_RECORD, remedy)
    samples = record.get("samples")
    if record.get("format") != IMPORT_FORMAT or record.get("format_version") != 1 or not samples:
        raise InputError(f"an unknown {folder / IMPORT_RECORD}", f"{IMPORT_FORMAT}, version 1", remedy)
    present_files = set(os.listdir(folder))
    for sample in samples:
        if not {f"{sample}.b2nd", f"{sample}_seg.b2nd", f"{sample}.pkl"} <= present_files:
            raise InputError(f"sample {sample} missing in {folder}", "all samples of import.json", remedy)
    return {**record, "cases": case_ids(record.get("provenance", {}))}


def check_plans_name(plans: str, plans_out: str) -> None:
    """Raise `InputError` when a plans file of this name cannot be written beside `plans`."""
    _check_name("plans_out", plans_out)
    if plans_out == plans:
        raise InputError(
            f"plans_out = {plans_out}, the plans themselves",
            "a plans file of its own",
            "leave plans_out away, or choose another name",
        )


def _check_name(what: str, value: object) -> None:
    if not isinstance(value, str) or not is_safe_name(value) or "__" in value:
        raise InputError(
            f"{what} = {value!r}",
            "letters, digits, `_`, `.` and `-`, and no `__` (nnU-Net separates names by it)",
            f"choose another {what}",
        )


def _merged_plans(
    source: dict[str, Any], file: Path, configuration: str, name: str, block: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    """Return the plans under the new name, with the mixed configurations that were there and the new one."""
    merged = {**deepcopy(source), "plans_name": file.stem}
    if name in merged["configurations"]:
        allowed = f"a name other than {', '.join(merged['configurations'])}"
        raise InputError(f"name = {name}, a configuration of {source['plans_name']}", allowed, "choose another name")
    mixed = {}
    if file.is_file():
        existing = read_json(file, "remove it")
        mixed = {key: c for key, c in existing.get("configurations", {}).items() if "synthaug" in c}
        plain = {key: c for key, c in existing.get("configurations", {}).items() if "synthaug" not in c}
        if {**existing, "configurations": plain} != merged and not overwrite:
            raise InputError(
                f"{file} made from plans other than the present {source['plans_name']}",
                "a copy of these plans with mixed configurations added",
                "choose another plans_out, or overwrite",
            )
    new = {"inherits_from": configuration, "synthaug": block}
    if mixed.get(name, new) != new and not overwrite:
        raise InputError(
            f"another configuration {name} in {file}: {mixed[name]}",
            f"the same settings ({new}) or another name",
            "choose another name, or overwrite",
        )
    merged["configurations"] = {**merged["configurations"], **mixed, name: new}
    return merged


def _check_pool(pool: Pool, dataset: PreprocessedDataset, plans: dict[str, Any], configuration: dict) -> None:
    """Raise `InputError` when the pool is of another data set, dimension or space than the configuration."""
    content = pool.content["dataset"]
    for of_pool in (content["name"], pool.content["provenance"]["dataset"]):
        if of_pool != dataset.name:
            raise InputError(f"a pool of {of_pool}", f"a pool of {dataset.name}", "name the pool's data set")
    ours = {
        "channel_names": dataset.channel_names,
        "labels": dataset.dataset_json["labels"],
        "regions_class_order": dataset.dataset_json.get("regions_class_order"),
    }
    for key, value in ours.items():
        of_pool = content.get(key)
        if of_pool != value:
            lengths = f"{len(of_pool)} channels: " if key == "channel_names" else ""
            raise InputError(
                f"a pool with {lengths}{key} = {of_pool}",
                f"{key} = {value}, as in dataset.json",
                "use a pool of a generator trained on this data set",
            )
    dimension = len(configuration["patch_size"])
    if pool.dimension < dimension:
        raise InputError(
            "a pool of slices for a 3D configuration",
            "volumes for 3D configurations",
            "train the 2d configuration: single slices lack the context along the third axis that 3D needs",
        )
    if pool.is_raw and pool.dimension == 2:
        raise InputError(
            "a pool of raw slices",
            "slices in nnU-Net's preprocessed space, or raw volumes",
            "train the generator on nnUNet_preprocessed: nnU-Net normalises whole volumes, so a raw slice "
            "cannot be normalised as its volume would have been",
        )
    if pool.is_raw:
        _check_reader(plans)
    else:
        check_space(pool.content["space"], pool.dimension, plans, configuration)


def _check_reader(plans: dict[str, Any]) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    endings = PlansManager(plans).image_reader_writer_class.supported_file_endings
    if ".nii.gz" not in endings:
        raise InputError(
            f"a raw pool of NIfTI files for plans that read {', '.join(endings)}",
            "plans with a reader of .nii.gz",
            "use a pool in the preprocessed space",
        )


def _check_known_cases(cases: tuple[str, ...], identifiers: list[str]) -> None:
    unknown = sorted(set(cases) - set(identifiers))
    if unknown:
        raise InputError(
            f"a generator trained on cases that the data set does not have: {', '.join(unknown)}",
            "cases of the data set, so that a leak can be excluded",
            "use the data set as it was when the generator was trained",
        )


def _import_record(pool: Pool, pool_name: str, fold: int | str, configuration: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": IMPORT_FORMAT,
        "format_version": 1,
        "pool": pool_name,
        "pool_sha256": pool.sha256,
        "fold": fold,
        "data_identifier": configuration["data_identifier"],
        "dimension": pool.dimension,
        "dataset": pool.content["dataset"],
        "space": pool.content["space"],
        "provenance": pool.content["provenance"],
        "samples": list(pool.kept),
    }


def _needs_import(folder: Path, record: dict[str, Any], overwrite: bool) -> bool:
    if not folder.exists() or overwrite:
        return True
    existing = read_json(folder / IMPORT_RECORD, "import the pool again with overwrite")
    if existing != record:
        what = [key for key in record if existing.get(key) != record[key]]
        raise InputError(
            f"another pool in {folder} (different: {', '.join(what)})",
            "the same pool, or a name that is free",
            "choose another pool_name, or overwrite",
        )
    return False


def _import_samples(
    pool: Pool,
    dataset: PreprocessedDataset,
    plans: dict[str, Any],
    configuration: dict[str, Any],
    folder: Path,
    record: dict[str, Any],
) -> None:
    """Write the kept samples as nnU-Net's preprocessing would, to a temporary folder that is then renamed."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    manager, config = PlansManager(plans), ConfigurationManager(configuration)
    label_manager = manager.get_label_manager(dataset.dataset_json)
    labels = set(map(int, label_manager.all_labels))
    if label_manager.has_ignore_label:
        labels.add(int(label_manager.ignore_label))
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for sample in tqdm(pool.kept, desc=f"importing {record['pool']}", unit="sample", mininterval=1.0):
            image, label = read_sample(pool, sample, labels)
            target = str(temporary / sample)
            if pool.is_raw:
                files = [str(file) for file in pool.image_files(sample)]
                preprocessor = config.preprocessor_class(verbose=False)
                preprocessor.run_case_save(
                    target, files, str(pool.label_file(sample)), manager, config, dataset.dataset_json
                )
            else:
                _save_preprocessed(target, image, label, config, label_manager, record["space"]["spacing"])
        write_json(temporary / IMPORT_RECORD, record)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def _save_preprocessed(
    target: str, image: np.ndarray, label: np.ndarray, config: Any, label_manager: Any, spacing: list
) -> None:
    """Save arrays (channel Z Y X), normalised and resampled already, as `run_case_save` does."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    masked = [channel for channel, uses_mask in enumerate(config.use_mask_for_norm) if uses_mask]
    if masked:
        # nnU-Net marks what lies outside the nonzero mask with -1 and sets the image to 0 there.
        nonzero = np.asarray(image[masked].any(axis=0))
        is_slice = image.shape[1] == 1
        inside = binary_fill_holes(nonzero[0] if is_slice else nonzero).reshape(label.shape)
        label[(label == 0) & ~inside] = -1
    has_regions = label_manager.has_regions
    classes = list(label_manager.foreground_regions if has_regions else label_manager.foreground_labels)
    if label_manager.has_ignore_label:
        classes.append([-1, *label_manager.all_labels])
    locations = DefaultPreprocessor._sample_foreground_locations(label, classes)
    blocks, chunks = comp_blosc2_params(image.shape, tuple(config.patch_size), image.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(label.shape, tuple(config.patch_size), label.itemsize)
    nnUNetDatasetBlosc2.save_case(
        image,
        label,
        {"class_locations": locations, "spacing": spacing},
        target,
        chunks=chunks,
        blocks=blocks,
        chunks_seg=chunks_seg,
        blocks_seg=blocks_seg,
    )
