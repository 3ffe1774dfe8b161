"""Bring a pool into nnU-Net's preprocessed data and add a configuration that trains with it."""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import InputError, plain_words
from .identity import Identity
from .imported import IMPORT_RECORD, import_record, import_samples, needs_import, read_import
from .leakage import check_split, check_voxels, identify_cases, seen_cases
from .mixing import few_samples_words
from .options import checked
from .pool_format import Pool, is_safe_name, read_pool
from .preprocessed import (
    CPU_PLANS_MARK,
    PreprocessedDataset,
    case_identifiers,
    case_reader,
    check_leakage,
    check_space,
    find_dataset,
    fold_split,
    read_json,
    read_plans,
    resolve_configuration,
    write_json,
)
from .raw_cases import preprocessed_identities
from .settings import parse_settings, settings_block

__all__ = ["IMPORT_RECORD", "TRAINER", "add_pool", "check_plans_name", "read_import"]
TRAINER = "nnUNetTrainerSynthAug"


@checked
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
        pool_name: Name of the imported pool, the same for every fold; by default that which the configuration has
            already, or else the name of the pool's folder without its fold, such as pool for pool_fold0.
        schedule: constant, linear, cosine or steps.
        share_end: The share at the end of the schedules linear and cosine.
        steps: The pairs [epoch, share] of the schedule steps.
        warmup_epochs: Epochs at the start with synthetic samples only.
        finish_epochs: Epochs at the end with real samples only.
        seed: Seed of the draws.
        training: What to change in nnU-Net's training for short comparisons: num_epochs,
            num_iterations_per_epoch, num_val_iterations_per_epoch, optimizer (SGD or AdamW), initial_lr,
            weight_decay, seed, autocast (bfloat16 or auto, on a CPU).
        overwrite: Replace an imported pool, a configuration or stale plans of the same name.

    Example:
        synthaug add-pool pool_fold0 501 2d 0 --share 0.5
    """
    plans_out = f"{plans}SynthAug" if plans_out is None else plans_out
    name = f"{configuration}_syn{100 * share:g}".replace(".", "p") if name is None else name
    block = {
        "pool": pool_name or "pool",  # chosen below
        "share": share,
        "schedule": schedule,
        "share_end": share_end,
        "steps": steps,
        "warmup_epochs": warmup_epochs,
        "finish_epochs": finish_epochs,
        "seed": seed,
        "training": training,
    }
    settings = parse_settings(block)
    block = settings_block(settings)
    if pool_name is not None:
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
    checked_pool = read_pool(pool)
    _check_pool(checked_pool, found, source, resolved)
    identifiers = case_identifiers(found, resolved)
    train, val, splits, is_new = fold_split(found, identifiers, fold)
    seen = _check_cases(checked_pool, found, source, resolved, identifiers, train, val, splits, fold)

    with _only_writer(found):
        if pool_name is None:
            pool_name = _pool_name(checked_pool, found, plans_file, name, block, fold)
            _check_name("pool_name", pool_name)
        merged = _merged_plans(source, plans_file, configuration, name, {**block, "pool": pool_name}, overwrite)
        folder = found.pool_folder(pool_name, fold)
        record = import_record(checked_pool, pool_name, fold, resolved, seen)
        imported = needs_import(folder, record, checked_pool.kept, overwrite)
        if imported:
            import_samples(checked_pool, found, source, resolved, folder, record)
        if is_new and not (found.folder / "splits_final.json").exists():
            write_json(found.folder / "splits_final.json", splits)
        if not plans_file.is_file() or read_json(plans_file, "") != merged:
            write_json(plans_file, merged)
    if (warning := few_samples_words(settings, len(checked_pool.kept))) is not None:
        print(warning, file=sys.stderr)
    return {
        "configuration": name,
        "plans": plans_out,
        "plans_file": plans_file,
        "pool_folder": folder,
        "samples": len(checked_pool.kept),
        "imported": imported,
        "train_command": shlex.join(["nnUNetv2_train", found.name, name, str(fold), "-p", plans_out, "-tr", TRAINER]),
    }


@contextmanager
def _only_writer(dataset: PreprocessedDataset) -> Iterator[None]:
    """Wait until no other add-pool writes to the data set; the lock ends with the process that holds it."""
    path = dataset.folder / "synthaug.lock"
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting for another add-pool for {dataset.name}", file=sys.stderr)
            lock.acquire()
        except OSError as error:  # a folder that cannot be written
            raise plain_words(error) or error from None
        if path.exists():
            break
        lock.release()  # of a file that its last holder had just removed
    try:
        yield
    finally:
        with suppress(OSError):  # where a file in use cannot be removed
            path.unlink()
        lock.release()


def made_configuration(plans_file: Path, name: str) -> dict[str, Any]:
    """Return the configuration of this name in a plans file that is written here; empty where there is none."""
    there = read_json(plans_file, "remove it").get("configurations", {}) if plans_file.is_file() else {}
    return there.get(name, {})


def _pool_name(
    pool: Pool, dataset: PreprocessedDataset, plans_file: Path, name: str, block: dict[str, Any], fold: int | str
) -> str:
    """Return the name under which the configuration has its pools of other folds, or else that of the folder.

    One configuration serves all folds, and it holds one name.
    """
    own = pool.folder.absolute().name
    there = made_configuration(plans_file, name).get("synthaug", {})
    if {**there, "pool": ""} == {**block, "pool": ""}:
        folder = dataset.pool_folder(there["pool"], fold)
        if there["pool"] == own or not folder.exists():
            return there["pool"]
        with suppress(InputError):
            if read_json(folder / IMPORT_RECORD, "").get("pool_sha256") == pool.sha256:
                return there["pool"]
    return re.sub(rf"(^|[_.-]+)fold[_.-]*{fold}$", "", own) or own


def _check_cases(
    pool: Pool, dataset: PreprocessedDataset, plans: dict[str, Any], configuration: dict[str, Any],
    identifiers: list[str], train: set[str], val: set[str], splits: list | None, fold: int | str,
) -> dict[str, Identity]:  # fmt: skip
    """Return the generator's cases as they are preprocessed here, if none of them would leak, by name or by voxels."""
    provenance = pool.content["provenance"]
    seen = seen_cases(provenance)
    unknown = sorted(set(seen) - set(identifiers))
    if unknown:
        raise InputError(
            f"a generator trained on cases that the data set does not have: {', '.join(unknown)}",
            "cases of the data set, so that a leak can be excluded",
            "use the data set as it was when the generator was trained",
        )
    check_leakage(seen, train, val, fold)
    check_split(provenance, splits, identifiers)
    held_out = val - train
    present = identify_cases(case_reader(dataset, configuration["data_identifier"]), {*seen, *held_out})
    if pool.is_raw:
        seen = preprocessed_identities(seen, dataset, plans, configuration, present)
    elif pool.content["space"]["data_identifier"] != configuration["data_identifier"]:
        seen = _as_seen(seen, pool, dataset)
    check_voxels(seen, present, held_out, fold)
    return {name: present[name] for name in seen}


def _as_seen(seen: Mapping[str, Identity], pool: Pool, dataset: PreprocessedDataset) -> dict[str, Identity]:
    """Return fingerprints of volumes that a generator saw in 3D, to compare them with those that 2d reads."""
    if all(identity.fingerprint is not None for identity in seen.values()):
        return dict(seen)
    present = identify_cases(case_reader(dataset, pool.content["space"]["data_identifier"]), seen)
    check_voxels(seen, present, (), pool.content["provenance"]["fold"])
    return present


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
    merged.pop(CPU_PLANS_MARK, None)
    if name in merged["configurations"]:
        allowed = f"a name other than {', '.join(merged['configurations'])}"
        raise InputError(f"name = {name}, a configuration of {source['plans_name']}", allowed, "choose another name")
    mixed = {}
    if file.is_file():
        existing = read_json(file, "remove it")
        if existing.get("plans_name") != file.stem or not isinstance(existing.get("configurations"), dict):
            raise InputError(f"{file}, which is no plans file", "plans, or a name that is free", "choose another name")
        mixed = {key: c for key, c in existing.get("configurations", {}).items() if "synthaug" in c}
        plain = {key: c for key, c in existing.get("configurations", {}).items() if "synthaug" not in c}
        if not mixed:
            raise InputError(
                f"{file}, which add-pool did not write", "plans with mixed configurations, or a name that is free",
                "choose another plans_out",
            )  # fmt: skip
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
        if of_pool not in dataset.names:
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
