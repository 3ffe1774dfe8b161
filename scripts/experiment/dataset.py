"""The data of an experiment: a phantom or the user's, and views of it with fewer training patients."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.cases import PHANTOM_NAME, open_cases
from ..data.folds import crossval_folds
from ..data.raw_files import is_raw_dataset, with_absolute_files
from ..runtime.errors import InputError
from ..runtime.files import write_json
from .nnunet_commands import dataset_number, nnunet_environment, preprocess_command

SPLITS = "splits_final.json"
# Which patients make up "10 of them" is one choice for all seeds: each needs a generator of its own.
REAL_SEED = 0


def make_source(settings: dict[str, Any], folder: Path, call: Callable[[list[str]], None]) -> dict[str, Path]:
    """The data set that an experiment reads: `dataset_dir`, and `raw_dir` where it is known.

    Args:
        settings: of the experiment.
        folder: where a phantom and what nnU-Net preprocesses go.
        call: runs a command.
    """
    given = settings["dataset_dir"]
    if given is None:
        source = (
            folder / PHANTOM_NAME if settings["dataset"]["modality"] == "flair" else folder / "Dataset802_PhantomPET"
        )
        if not source.exists():
            from ..phantom.dataset import write_phantom

            write_phantom(source, **settings["dataset"])
    else:
        source = Path(given)
    if not is_raw_dataset(source):
        raw = settings["raw_dir"]
        return {"dataset_dir": source, **({} if raw is None else {"raw_dir": Path(raw)})}
    if settings["space"] == "raw":
        return {"dataset_dir": source, "raw_dir": source}
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(exist_ok=True)
    raw = link_raw(source, folder / "nnUNet_raw" / source.name)
    preprocessed = folder / "nnUNet_preprocessed" / source.name
    # The planner takes this number for its threads, of which there is at least one.
    workers = {"nnUNet_n_proc_DA": "1"} if os.environ.get("nnUNet_n_proc_DA", "1").strip() in ("", "0") else {}
    with nnunet_environment(folder, full_plans=False, **workers):
        call(preprocess_command(dataset_number(source.name), settings["configuration"]))
    if (source / SPLITS).is_file():
        shutil.copyfile(source / SPLITS, preprocessed / SPLITS)
    return {"dataset_dir": preprocessed, "raw_dir": raw}


def link_raw(source: Path, target: Path) -> Path:
    """A raw data set as links, without hidden files: nnU-Net takes macOS's `._CASE_0000.nii.gz` for an image."""
    if target.exists() or target.is_symlink():
        target.unlink() if target.is_symlink() else shutil.rmtree(target)  # links alone
    target.mkdir(parents=True)
    for path in visible(source):
        if path.is_dir() and any(child.name.startswith(".") for child in path.iterdir()):
            (target / path.name).mkdir()
            for child in visible(path):
                (target / path.name / child.name).symlink_to(child.resolve())
        else:
            (target / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
    _name_files(source, target)
    return target


def _name_files(source: Path, target: Path) -> None:
    """In a view of a raw data set that lists its files, name them by where they are."""
    if is_raw_dataset(source) and (content := with_absolute_files(source)) is not None:
        (target / "dataset.json").unlink()
        write_json(target / "dataset.json", content)


def visible(folder: Path, ending: str = "") -> list[Path]:
    """What is in a folder, sorted, without hidden files."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name.endswith(ending))


def link_dataset(source: Path, target: Path) -> Path:
    """A folder with links to all files of a data set, whose own splits can be written without touching it.

    What the plugin keeps there, its folder and its lock, stays behind: a lock behind a link cannot be held.
    """
    if target.exists():
        shutil.rmtree(target)  # links alone, and its splits
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.name not in (SPLITS, "synthaug", "synthaug.lock"):
            (target / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
    if (source / SPLITS).is_file():
        shutil.copyfile(source / SPLITS, target / SPLITS)
    _name_files(source, target)
    return target


def make_view(
    source: Path, folder: Path, real: int | str, plans: str, configuration: str, inner: dict[str, Any] | None = None
) -> tuple[Path, list[dict[str, Any]]]:
    """The data set with `real` training patients in each fold; fewer are a part of more.

    What every command reads as a data set: generators, pools' audits, segmenters and nnU-Net alike see no other
    training case. Validation cases stay as they are. With `inner`, `{"fold", "folds"}`, the folds are so many new ones
    of that fold's training cases, and its validation cases are in none.

    Returns the folder and its folds.
    """
    from ..segmentation.mixing import first_cases  # imports MONAI, which takes seconds

    view = link_dataset(source, folder / source.name)
    cases = open_cases(view, 0, plans, configuration)
    path = view / SPLITS
    splits = (
        json.loads(path.read_text("utf-8-sig"))
        if path.is_file()
        else crossval_folds([*cases.fold.train, *cases.fold.val])
    )
    if inner is not None:
        known = cases.fold.train + cases.fold.val if inner["fold"] == "all" else splits[int(inner["fold"])]["train"]
        splits = crossval_folds(known, int(inner["folds"]))
        write_json(path, splits)  # which the cases of fewer patients are drawn from
    if real != "all":
        fewest = min(len(split["train"]) for split in splits)
        if int(real) > fewest:
            raise InputError(
                f"{real} real training patients", f"at most {fewest}, what each fold has", "mend `real` of the protocol"
            )
        for number, split in enumerate(splits):
            few = first_cases(open_cases(view, number, plans, configuration), int(real), REAL_SEED)
            split["train"] = list(few.fold.train)
    write_json(path, splits)
    return view, splits
