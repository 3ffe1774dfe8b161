"""Which cases a fold trains on: nnU-Net's own splits, read or made as nnU-Net makes them."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.files import write_json

NUM_FOLDS = 5
SPLITS = "splits_final.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """Training and validation case ids of one fold, and a hash that names the split."""

    name: int | str
    train: list[str]
    val: list[str]
    sha256: str


def crossval_folds(case_ids: list[str], num_folds: int = NUM_FOLDS) -> list[dict[str, list[str]]]:
    """Folds as nnU-Net makes them; its default is five."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # takes a second to import

    ids = sorted(case_ids)
    if len(ids) < num_folds:
        raise InputError(
            f"{len(ids)} training cases", f"at least {num_folds} for {num_folds} folds", "annotate more cases"
        )
    folds = generate_crossval_split(ids, seed=12345, n_splits=num_folds)
    return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in folds]


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
    path = Path(dataset_dir) / SPLITS
    if str(fold) == "all":
        return _fold("all", sorted(case_ids), [])
    splits = _splits(path, case_ids)
    if str(fold).isdecimal() and int(fold) < len(splits):
        fold = int(fold)
        chosen = splits[fold]
    else:
        raise InputError(f"fold {fold!r}", f"0 to {len(splits) - 1}, or all", f"choose one of the folds of {path.name}")
    counts = [Counter(part) for part in (chosen["train"], chosen["val"])]
    if twice := sorted({case for of in counts for case, count in of.items() if count > 1}):
        raise InputError(
            f"fold {fold} of {path} with {', '.join(twice[:5])} more than once", "each case once",
            "mend or delete the file",
        )  # fmt: skip
    if not chosen["train"] or set(chosen["train"]) & set(chosen["val"]):
        raise InputError(
            f"fold {fold} of {path} trains on {len(chosen['train'])} cases and validates on "
            f"{len(set(chosen['train']) & set(chosen['val']))} of them",
            "training cases, none of them in validation",
            "mend or delete the file",
        )
    missing = sorted({*chosen["train"], *chosen["val"]} - set(case_ids))
    if missing:
        raise InputError(
            f"{path} names cases that are not in the data set: {', '.join(missing[:5])}",
            "ids of cases in the data set folder",
            "delete splits_final.json so that it is made anew, or restore the cases",
        )
    if store and not path.is_file():
        try:
            write_json(path, splits)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            logger.warning("%s cannot be written (%s); nnU-Net makes the same split of these cases", path, error)
    return _fold(fold, list(chosen["train"]), list(chosen["val"]))


def listed_fold(case_ids: list[str]) -> Fold:
    """Cases that somebody listed: all of them train."""
    return _fold("listed", case_ids, [])


def listed_cases(dataset_dir: str | Path, seen: list[str], case_ids: list[str]) -> Fold:
    """The fold that trains on the cases that a generator saw; where there is none, these and all others."""
    path = Path(dataset_dir) / SPLITS
    for number, split in enumerate(_splits(path, case_ids) if path.is_file() or len(case_ids) >= NUM_FOLDS else []):
        if {*split["train"]} == {*seen}:
            return _fold(number, list(split["train"]), list(split["val"]))
    return _fold("listed", sorted(seen), sorted({*case_ids} - {*seen}))


def _splits(path: Path, case_ids: list[str]) -> list[dict[str, list[str]]]:
    return read_splits(path) if path.is_file() else crossval_folds(case_ids)


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """The folds of `splits_final.json`.

    Raises:
        InputError: it is no list of training and validation ids.
    """
    try:
        wrong = "no such lists"
        splits = json.loads(path.read_text("utf-8-sig"))
        ids = [case for split in splits for part in ("train", "val") for case in split[part]]
        whole = isinstance(splits, list) and all(isinstance(case, str) for case in ids)
        whole = whole and all(isinstance(split[part], list) for split in splits for part in ("train", "val"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        whole, wrong = False, f"{type(error).__name__}: {error}"
    if not whole:
        raise InputError(
            f"{path} cannot be used ({wrong})",
            'nnU-Net\'s splits: [{"train": [ids], "val": [ids]}, ...]',
            "restore or delete it",
        )
    return splits


def _fold(name: int | str, train: list[str], val: list[str]) -> Fold:
    return Fold(name, train, val, hashlib.sha256(json.dumps([train, val]).encode()).hexdigest())
