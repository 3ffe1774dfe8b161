"""The command `transplant`: banks for the folds of a data set, and a configuration that trains with them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import InputError
from ..import_pool import TRAINER, _check_name, _merged_plans, _only_writer, check_plans_name, made_configuration
from ..leakage import identify_cases
from ..options import checked
from ..preprocessed import (
    PreprocessedDataset,
    case_identifiers,
    case_reader,
    find_dataset,
    fold_split,
    read_json,
    read_plans,
    resolve_configuration,
    write_json,
)
from ..settings import parse_settings, settings_block
from .folds import bank_folder, choose_labels, find_bank, fold_record, label_volumes, make_fold


@checked
def add_transplants(
    dataset: int | str,
    configuration: str = "2d",
    fold: int | str | None = None,
    share: float = 0.3,
    decoys: float = 0.25,
    labels: list[int] | None = None,
    plans: str = "nnUNetPlans",
    plans_out: str | None = None,
    name: str | None = None,
    schedule: str = "constant",
    share_end: float | None = None,
    steps: list | None = None,
    warmup_epochs: int = 0,
    finish_epochs: int | None = None,
    seed: int = 0,
    training: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Add a configuration such as 2d_transplant, whose training puts lesions of one patient into another.

    The lesions of each fold's training cases go to nnUNet_preprocessed/DATASET/synthaug, once for any number of
    configurations of the same labels; the transplants are made while training. Data sets whose labels are organs are
    refused. The same command twice changes nothing. Returns `configuration`, `plans`, `plans_file`, for each fold
    `folders`, `made` (False when it was there already), `lesions` (how many), `fitting` (how many of them find a
    place in another patient) and `receiving` (how many patients they find one in), the `lesion_labels`, and
    `train_command`.

    Args:
        dataset: Number or name of the data set, such as 501.
        configuration: The configuration of the plans to train, such as 2d or 3d_fullres; or one that add-pool made,
            to train with its pool and transplants.
        fold: The fold to be trained, a number or "all"; by default every fold of the split.
        share: Transplants' part of each epoch's samples, 0 to 1; with a schedule the part at its start.
        decoys: The part of the transplants that is healthy tissue without a label, 0 to 1.
        labels: The labels that are lesions, such as [2]; by default those whose volume varies from case to case. The
            configuration keeps them.
        plans: The plans that hold the configuration.
        plans_out: Name of the plans file to write; by default the name of the plans with SynthAug appended.
        name: Name of the new configuration; by default such as 2d_transplant.
        schedule: constant, linear, cosine or steps.
        share_end: The share at the end of the schedules linear and cosine.
        steps: The pairs [epoch, share] of the schedule steps.
        warmup_epochs: Epochs at the start with transplants only.
        finish_epochs: Epochs at the end without transplants; by default the last fifth.
        seed: Seed of the transplants.
        training: What to change in nnU-Net's training for short comparisons: num_epochs,
            num_iterations_per_epoch, num_val_iterations_per_epoch, optimizer (SGD or AdamW), initial_lr,
            weight_decay, seed, autocast (bfloat16 or auto, on a CPU).
        overwrite: Replace a configuration or stale plans of the same name, and make the lesions' folders anew, also
            for other configurations of the same labels.

    Example:
        synthaug transplant 501 2d --share 0.3
    """
    plans_out = f"{plans}SynthAug" if plans_out is None else plans_out
    name = f"{configuration}_transplant" if name is None else name
    _check_name("name", name)
    check_plans_name(plans, plans_out)
    found = find_dataset(dataset)
    source, plans_file = read_plans(found, plans), found.folder / f"{plans_out}.json"
    mixed = _mixed_configuration(source, plans_file, configuration)
    base = mixed["inherits_from"] if mixed else configuration
    block: dict[str, Any] = {"seed": seed, "training": training}
    if mixed:
        block = {**mixed["synthaug"], **{key: value for key, value in block.items() if value}}
    block["transplant"] = {
        "share": share,
        "decoys": decoys,
        "schedule": schedule,
        "share_end": share_end,
        "steps": steps,
        "warmup_epochs": warmup_epochs,
        "finish_epochs": finish_epochs,
    }
    block = settings_block(parse_settings(block))
    resolved = resolve_configuration(source, base)
    if "synthaug" in resolved:
        raise InputError(
            f"the configuration {base}, which mixes already",
            "a configuration of nnU-Net, or one that add-pool made",
            "name the configuration that it inherits from",
        )
    identifiers = case_identifiers(found, resolved)
    folds = [fold] if fold is not None else list(range(_count_folds(found, identifiers)))
    splits = {of: fold_split(found, identifiers, of) for of in folds}
    every = sorted(set().union(*(splits[of][0] for of in folds)))
    seen = identify_cases(case_reader(found, resolved["data_identifier"]), every)  # the first to read them
    volumes = label_volumes(found, source, resolved, every)
    before = made_configuration(plans_file, name)
    if labels is None:  # folds that are made later take those of the first
        labels = (before.get("synthaug", {}).get("transplant") or {}).get("labels")
    chosen = choose_labels({label: [volumes[case][label] for case in every] for label in volumes[every[0]]}, labels)
    kept: list[int] | None = chosen
    if not overwrite and before == {"inherits_from": base, "synthaug": block}:
        kept = None  # as it was written before labels were kept in it: it goes on as it is
    else:
        block["transplant"]["labels"] = chosen
    folders = {of: bank_folder(found, resolved["data_identifier"], of, kept) for of in folds}
    with _only_writer(found):
        merged = _merged_plans(source, plans_file, base, name, block, overwrite)
        wanted = {
            of: fold_record(found, source, resolved, of, {case: seen[case] for case in splits[of][0]}, chosen)
            for of in folds
        }
        there = {of: find_bank(folders[of], wanted[of], overwrite) for of in folds}
        records = [
            there[of] or make_fold(found, source, resolved, folders[of], wanted[of])
            for of in tqdm(folds, desc="finding lesions and their places", unit="fold")
        ]
        _, _, all_splits, is_new = splits[folds[0]]
        if is_new and not (found.folder / "splits_final.json").exists():
            write_json(found.folder / "splits_final.json", all_splits)
        if not plans_file.is_file() or read_json(plans_file, "") != merged:
            write_json(plans_file, merged)
    return {
        "configuration": name,
        "plans": plans_out,
        "plans_file": plans_file,
        "folders": list(folders.values()),
        "made": [record is None for record in there.values()],
        "lesion_labels": chosen,
        "lesions": [record["lesions"] for record in records],
        "fitting": [record["fitting"] for record in records],
        "receiving": [record["receiving"] for record in records],
        "train_command": shlex.join(
            ["nnUNetv2_train", found.name, name, str(folds[0]), "-p", plans_out, "-tr", TRAINER]
        ),
    }


def _mixed_configuration(source: dict[str, Any], plans_file: Path, configuration: str) -> dict[str, Any] | None:
    """Return the configuration that add-pool made under this name, if it did."""
    made = {} if configuration in source["configurations"] else made_configuration(plans_file, configuration)
    return made if "pool" in made.get("synthaug", {}) else None


def _count_folds(dataset: PreprocessedDataset, identifiers: list[str]) -> int:
    splits = fold_split(dataset, identifiers, 0)[2]
    return len(splits or ())
