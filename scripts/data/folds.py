"""Which cases a fold trains on: nnU-Net's own splits, read or made as nnU-Net makes them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from scripts.data.files import write_json
from scripts.errors import InputError

NUM_FOLDS = 5


@dataclass(frozen=True)
class Fold:
    """Training and validation case ids of one fold, and a hash that names the split."""

    name: int | str
    train: list[str]
    val: list[str]
    sha256: str


def five_folds(case_ids: list[str]) -> list[dict[str, list[str]]]:
    """nnU-Net's default split: `generate_crossval_split(sorted ids, seed=12345, n_splits=5)`."""
    from sklearn.model_selection import KFold  # takes a second to import

    ids = sorted(case_ids)
    if len(ids) < NUM_FOLDS:
        raise InputError(
            f"{len(ids)} training cases", f"at least {NUM_FOLDS} for {NUM_FOLDS} folds", "annotate more cases"
        )
    folds = KFold(n_splits=NUM_FOLDS, shuffle=True, random_state=12345).split(ids)
    return [{"train": [ids[i] for i in train], "val": [ids[i] for i in val]} for train, val in folds]


def read_fold(dataset_dir: str | Path, case_ids: list[str], fold: int | str, store: bool) -> Fold:
    """The cases of one fold from `splits_final.json`, which is made as nnU-Net would when it is absent.

    Args:
        dataset_dir: folder that may hold `splits_final.json`.
        case_ids: ids of all training cases in the folder.
        fold: 0, 1, ... or "all" (every case trains, none validates).
        store: write the file when it was absent, so that nnU-Net trains on the same split.

    Raises:
        InputError: the fold does not exist or the split names cases that are not there.
    """
    path = Path(dataset_dir) / "splits_final.json"
    if path.is_file():
        splits = json.loads(path.read_text())
    else:
        splits = five_folds(case_ids)
        if store:
            write_json(path, splits)
    if str(fold) == "all":
        chosen: dict[str, list[str]] = {"train": sorted(case_ids), "val": []}
    elif str(fold).isdigit() and int(fold) < len(splits):
        fold = int(fold)
        chosen = splits[fold]
    else:
        raise InputError(f"fold {fold!r}", f"0 to {len(splits) - 1}, or all", f"choose one of the folds of {path.name}")
    missing = sorted({*chosen["train"], *chosen["val"]} - set(case_ids))
    if missing:
        raise InputError(
            f"{path} names cases that are not in the data set: {', '.join(missing[:5])}",
            "ids of cases in the data set folder",
            "delete splits_final.json so that it is made anew, or restore the cases",
        )
    digest = hashlib.sha256(json.dumps([chosen["train"], chosen["val"]]).encode()).hexdigest()
    return Fold(fold, list(chosen["train"]), list(chosen["val"]), digest)
