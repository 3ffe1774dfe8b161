"""The real cases behind a pool: those of its fold, and those that its generator was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nnunet_plugin.preprocessed import wrong_field

from ..runtime.errors import InputError
from .cases import Cases, open_cases


def _check_record(record: dict, required: dict[str, type | tuple[type, ...]]) -> None:
    if wrong := wrong_field(record, required):
        raise InputError(f"a pool.json in which {wrong}", "the file as it was written", "sample the pool again")


def open_cases_of_pool(record: dict, dataset_dir: str | Path) -> Cases:
    """Open the cases of a pool's fold with its plans and configuration; whether they are the same, the caller checks.

    Args:
        record: content of `pool.json`.
        dataset_dir: as for `open_cases`.
    """
    _check_record(record, {"space.kind": str, "provenance.fold": (int, str)})
    space = record["space"]
    plans = {name: space[key] for name, key in (("plans", "plans_name"), ("configuration", "configuration"))
             if key in space}  # fmt: skip
    return open_cases(dataset_dir, record["provenance"]["fold"], **plans)


def open_cases_of_generator(record: dict, dataset_dir: str | Path) -> Cases:
    """As `open_cases_of_pool`, and checked: the data set that the pool's generator was trained on, split as then.

    Training cases are those of the provenance, whatever the folds say now; every other case of them is held out. Where
    the provenance says that another program saw none, they are those of its fold.

    Raises:
        InputError: it has another space, other channels or labels, or lacks a training case.
    """
    _check_record(record, {"space.sha256": str, "provenance.cases": list, "provenance.dataset": str})
    space, provenance = record["space"], record["provenance"]
    cases = open_cases_of_pool(record, dataset_dir)
    seen, known = [case["id"] for case in provenance["cases"]], {*cases.fold.train, *cases.fold.val}
    found, expected, wrong = cases.description.as_record(), record["dataset"], ""
    if cases.space["sha256"] != space["sha256"]:
        different = sorted(key for key in {*cases.space, *space} if cases.space.get(key) != space.get(key))
        wrong = f"is in another space than the pool ({', '.join(different)})"
    elif different := [key for key in expected if key != "name" and found.get(key) != expected[key]]:
        wrong = f"has other {' and '.join(different)} than the pool"
    elif missing := sorted({*seen} - known):
        wrong = f"lacks {len(missing)} cases that the generator was trained on: {', '.join(missing[:5])}"
    if wrong:
        wanted = f"the data set that the generator was trained on ({provenance['dataset']}, {space['kind']})"
        raise InputError(f"{dataset_dir} {wrong}", wanted, "give that folder as --dataset_dir")
    if seen:
        cases.fold = replace(cases.fold, train=seen, val=sorted(known - {*seen}))
    return cases
