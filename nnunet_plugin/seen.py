"""What a trained network has seen: `synthaug_seen.json` beside its checkpoints, for whoever starts from its weights.

It also says which pool and which lesions it trains with, so that one that goes on does so with the same.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from nnunetv2.run import run_training

from .errors import InputError
from .export import load_checkpoint, refuse_broken
from .identity import Identity
from .leakage import check_held_out
from .preprocessed import PreprocessedDataset, read_json, read_splits, write_json

SEEN_RECORD = "synthaug_seen.json"
_FORMAT = "synthaug-seen"

# Network -> file whose weights nnU-Net put into it. nnU-Net tells its trainers nothing of -pretrained_weights.
_pretrained: WeakKeyDictionary = WeakKeyDictionary()


def _remembered(load: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(load)
    def load_pretrained_weights(network: Any, fname: Any, *args: Any, **kwargs: Any) -> None:
        load(network, fname, *args, **kwargs)
        _pretrained[network] = Path(fname)

    return load_pretrained_weights


_module: Any
for _module in (run_training, sys.modules["__main__"]):  # the latter with python -m nnunetv2.run.run_training
    if getattr(_module, "load_pretrained_weights", None) is not None:
        _module.load_pretrained_weights = _remembered(_module.load_pretrained_weights)


def pretrained_file(network: Any) -> Path | None:
    """Return the file that a network's weights came from with -pretrained_weights, or None."""
    return None if network is None else _pretrained.get(network)


def read_seen(folder: Path) -> list[dict[str, Any]] | None:
    """Return the cases that the network of a fold's folder has seen, or None where nothing is recorded."""
    record = _read(folder)
    return None if record is None else record["cases"]


def check_sources(folder: Path, sources: Mapping[str, str]) -> None:
    """Raise `InputError` where the training in a fold's folder began with another pool or other lesions than these.

    Args:
        folder: of the fold; a record from before these were kept says nothing.
        sources: the hash of each.
    """
    began = (_read(folder) or {}).get("sources", sources)
    if began != sources:
        changed = [name for name in sorted({*began, *sources}) if began.get(name) != sources.get(name)]
        raise InputError(
            f"a training in {folder} that began with other data: {' and '.join(changed)} changed since",
            "what it began with",
            "add that again (with overwrite), or train from the start: without --c, in another results folder",
        )


def _read(folder: Path) -> dict[str, Any] | None:
    """Return the whole record of a fold's folder, or None."""
    file = folder / SEEN_RECORD
    if not file.is_file():
        return None
    remedy = "restore it; without it no leak can be excluded"
    record = read_json(file, remedy)
    cases = record.get("cases")
    keys = {"dataset", "id", "sha256", "fingerprint"}
    is_known = record.get("format") == _FORMAT and isinstance(record.get("sources", {}), dict)
    if not is_known or not isinstance(cases, list) or not all(
        isinstance(case, dict) and keys <= case.keys() for case in cases
    ):  # fmt: skip
        raise InputError(f"an unknown {file}", f"{_FORMAT}, version 1", remedy)
    return record


def write_seen(
    folder: Path, dataset: PreprocessedDataset, cases: Mapping[str, Identity], before: Iterable[dict[str, Any]],
    sources: Mapping[str, str],
) -> None:  # fmt: skip
    """Record what the network of a fold's folder learns from, itself or through the generator of its pool.

    Args:
        folder: of the fold.
        dataset: of `cases`.
        cases: by id.
        before: what its weights had seen when the training began.
        sources: the hash of each of the pool and the lesions that it trains with.
    """
    ours = [{"dataset": dataset.name, "id": name, **identity._asdict()} for name, identity in sorted(cases.items())]
    merged = {(case["dataset"], case["id"], case["sha256"]): case for case in [*before, *ours]}
    record = {"format": _FORMAT, "format_version": 1, "sources": dict(sources), "cases": list(merged.values())}
    write_json(folder / SEEN_RECORD, record)


def check_seen(
    cases: Iterable[Mapping[str, Any]], dataset: PreprocessedDataset, held_out: Mapping[str, Identity],
    fold: int | str, learner: str,
) -> None:  # fmt: skip
    """Raise `InputError` when one of these cases is validated on, by its name or by its image."""
    known = {}
    for case in cases:
        if case["dataset"] in dataset.names and case["id"] in held_out:
            raise _leak(learner, fold, [case["id"]])
        known[f"{case['id']} of {case['dataset']}"] = Identity(case["sha256"], case["fingerprint"])
    check_held_out(known, held_out, fold, learner)


def check_pretrained(
    file: Path, dataset: PreprocessedDataset, held_out: Mapping[str, Identity], fold: int | str
) -> tuple[list[dict[str, Any]], str | None]:
    """Refuse weights that are not finite or have seen a validation case, where their folder or checkpoint says so.

    Returns what they have seen as far as it is recorded, and a warning where it is not.
    """
    learner = f"the network of {file}"
    try:
        content = load_checkpoint(file)
    except InputError:  # of other programs, which nnU-Net may be able to read
        content = {}
    refuse_broken(content, file)
    cases = read_seen(file.resolve().parent)
    if cases is not None:
        check_seen(cases, dataset, held_out, fold, learner)
        return cases, None
    warning = (
        f"WARNING: pretrained weights {file}: which cases they have seen is not recorded. If validation cases of fold "
        f"{fold} are among them, every validation result of this training is worthless."
    )
    made_with = content.get("init_args")
    made_with = made_with if isinstance(made_with, dict) else {}
    plans = made_with.get("plans")
    if not isinstance(plans, dict) or plans.get("dataset_name") not in dataset.names:
        return [], warning
    # nnU-Net's own record: a fold of this data set, whose cases splits_final.json names.
    splits_file, trained = dataset.folder / "splits_final.json", made_with.get("fold")
    splits = read_splits(splits_file) if splits_file.is_file() else []
    if trained == "all" and held_out:
        raise _leak(learner, fold, sorted(held_out))
    if not isinstance(trained, int) or not 0 <= trained < len(splits):
        return [], warning
    if leaked := sorted({*splits[trained]["train"]} & {*held_out}):
        raise _leak(learner, fold, leaked)
    return [], (
        f"WARNING: pretrained weights {file}: trained on fold {trained} of {dataset.name}, which holds no validation "
        f"case of fold {fold} if {splits_file.name} has not changed since; nothing else of them is recorded."
    )


def _leak(learner: str, fold: int | str, names: list[str]) -> InputError:
    return InputError(
        f"a leak: {learner} was trained on validation cases of fold {fold}: {', '.join(names[:10])}",
        f"weights that have seen none of the validation cases of fold {fold}",
        "start from weights of this fold, or of another data set",
    )
