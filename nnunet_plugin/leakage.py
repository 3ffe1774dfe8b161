"""Whom a generator or a network has seen, and whether a fold is validated on one of them.

Names can lie: cases are renumbered, arrays replaced, folders mixed up. So the voxels are compared, too.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .errors import InputError
from .identity import Identity, find_twins, identify, same_case, same_image
from .pool_format import case_ids, is_sha256
from .preprocessed import json_sha256

MOST_TOLD = 10  # names in an error
_RETRAIN = "train a generator on this fold and sample a pool from it"


def seen_cases(provenance: Mapping[str, Any]) -> dict[str, Identity]:
    """Return the identities of a generator's training cases, by id.

    Raises `InputError` where a case has no usable hash, or the hash of the list itself is wrong.
    """
    names, cases = case_ids(dict(provenance)), provenance["cases"]
    remedy = "sample again from a checkpoint with its provenance.json: without it no leak can be excluded"
    if without := [
        name for name, case in zip(names, cases, strict=True)
        if not isinstance(case, dict) or not is_sha256(case.get("sha256"))
    ]:  # fmt: skip
        raise InputError(f"a provenance without the hash of {_some(without)}", "a sha256 of every case", remedy)
    if len(set(names)) < len(names):
        raise InputError("a provenance that names a case twice", "each case once", remedy)
    whole = provenance.get("cases_sha256")
    if any("fingerprint" in case for case in cases) and whole != cases_sha256(cases):
        raise InputError(
            f"a provenance whose list of cases was changed (cases_sha256 {whole})",
            "the list as the training wrote it",
            remedy,
        )
    identities = {case["id"]: Identity(case["sha256"], case.get("fingerprint")) for case in cases}
    for name, identity in identities.items():
        if identity.fingerprint is not None and not identity.is_readable():
            raise InputError(f"a provenance with an unreadable fingerprint of {name}", "base64", remedy)
    return identities


def cases_sha256(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return the hash of a provenance's list of cases."""
    return json_sha256(cases)


def check_split(
    provenance: Mapping[str, Any], splits: Sequence[Mapping[str, list[str]]] | None, identifiers: Iterable[str]
) -> None:
    """Raise `InputError` when a provenance's cases are not those that its own fold and split say.

    Args:
        provenance: of a generator; `split_sha256` is the hash of `[training ids, validation ids]`, and `validation`
            the latter (absent in older records, which are compared with the data set's splits).
        splits: those of the data set now, if there are any.
        identifiers: all cases of the data set.
    """
    names, fold, recorded = list(case_ids(dict(provenance))), provenance.get("fold"), provenance.get("split_sha256")
    number = fold if isinstance(fold, int) and not isinstance(fold, bool) else -1
    splits = splits or []
    now = [_split_sha256(split["train"], split["val"]) for split in splits]
    if "validation" in provenance and recorded != _split_sha256(names, provenance["validation"]):
        agrees = False
    elif recorded in now:  # the data set's splits are still those of the training
        own = 0 <= number < len(now) and now[number] == recorded and names == splits[number]["train"]
        agrees = own or "adopted" in provenance  # the user listed the cases, which are those of a fold
    elif number < 0 and fold not in ("all", "listed"):
        agrees = False
    elif "validation" in provenance:
        agrees = True
    else:
        held_out = sorted({*identifiers} - {*names}) if number >= 0 else []
        agrees = recorded == _split_sha256(names, held_out)
    if not agrees:
        raise InputError(
            f"a provenance whose {len(names)} cases are not the training cases of its own fold {fold} "
            f"(split_sha256 {recorded})",
            "the record that the generator's training wrote, and the splits_final.json of that training",
            f"restore both, or {_RETRAIN}",
        )


def _split_sha256(train: list[str], val: Any) -> str:
    return hashlib.sha256(json.dumps([train, val]).encode()).hexdigest()


def check_voxels(
    seen: Mapping[str, Identity], present: Mapping[str, Identity], held_out: Iterable[str], fold: int | str
) -> None:
    """Raise `InputError` when cases are no longer those that were seen, or one of them is validated on.

    Args:
        seen: the cases that a generator or network learnt from.
        present: the cases of the data set as they are now; at least those of `seen` and `held_out`.
        held_out: ids of the validation cases that are no training cases.
        fold: named in the error.
    """
    changed = [name for name, identity in seen.items() if not same_case(identity, present[name])]
    if changed:
        where = {  # of those that are told: each is compared with all
            name: next((now for now in present if same_image(seen[name], present[now])), None)
            for name in changed[:MOST_TOLD]
        }
        named = [f"{name} (now under {now})" if (now := where.get(name)) else name for name in changed]
        raise InputError(
            f"{len(changed)} of {len(seen)} cases that are not those that the generator was trained on: {_some(named)}",
            "the voxels whose hashes its provenance holds, or the same images and labels but for rounding",
            f"restore the cases, or {_RETRAIN}",
        )
    check_held_out(
        {name: present[name] for name in seen}, {name: present[name] for name in held_out}, fold, "the generator"
    )


def check_held_out(
    seen: Mapping[str, Identity], held_out: Mapping[str, Identity], fold: int | str, learner: str
) -> None:
    """Raise `InputError` when a validation case shows the image of a case that was seen, whatever their names."""
    names, others = list(held_out), list(seen)
    twins = find_twins(list(held_out.values()), list(seen.values()))
    if pairs := [f"{names[i]} (seen as {others[j]})" for i, j in twins]:
        raise InputError(
            f"a leak: {learner} was trained on validation cases of fold {fold}: {_some(pairs)}",
            f"validation cases whose images {learner} never saw, under any name",
            "remove the copies from the data set, or keep them on one side of the split",
        )


def identify_cases(load: Callable[[str], tuple[Any, Any, Any, Any]], names: Iterable[str]) -> dict[str, Identity]:
    """Return the identities of preprocessed cases, read by `load_case` of nnU-Net's data sets."""

    def of(name: str) -> Identity:
        try:
            data, seg, *_ = load(name)
            return identify(np.asarray(data[:]), np.asarray(seg[:])[0])
        except Exception as error:  # blosc2, zip and pickle raise many kinds
            raise InputError(
                f"case {name} cannot be read ({error})",
                "the arrays that nnUNetv2_preprocess writes",
                "run nnUNetv2_preprocess again",
            ) from error

    ordered = sorted(set(names))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(ordered, pool.map(of, ordered), strict=True))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_TOLD} more" if len(names) > MOST_TOLD else ""
    return ", ".join(names[:MOST_TOLD]) + more
