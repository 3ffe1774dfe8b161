"""The cells of an experiment: what there is to do, each with its settings and the cells that it needs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..pool.from_real import FROM_REAL
from ..runtime.errors import InputError
from ..runtime.files import json_sha256
from .protocol import SEGMENTATION, budget_of, is_reference, mixing_of

KINDS = ("source", "data", "generator", "pool", "audit", "metrics", "train", "evaluate")
# More than is asked for, so that enough are left after an audit.
AUDIT_MARGIN = 1.25
# Settings that do not decide a result: what an arm is compared with is the report's matter.
UNDECIDING = ("reference",)


@dataclass(frozen=True)
class Cell:
    """One thing to do.

    Attributes:
        kind: one of `KINDS`.
        name: readable, and a folder name.
        settings: all that decides the result, besides the results of `needs`.
        needs: ids of the cells whose results it reads.
        alike: cells with the same words take about the same time.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    needs: dict[str, str] = field(default_factory=dict)
    alike: str = ""

    @property
    def id(self) -> str:
        """Kind and name, its place below `cells`."""
        return f"{self.kind}/{self.name}"


def cell_hashes(cells: list[Cell]) -> dict[str, str]:
    """Names what decides each cell's result: its settings, and those of all that it needs, directly or not."""
    found: dict[str, str] = {}
    for cell in cells:
        settings = {key: value for key, value in cell.settings.items() if key not in UNDECIDING}
        needs = {kind: found[name] for kind, name in cell.needs.items()}
        found[cell.id] = json_sha256([cell.kind, settings, needs])
    return found


def plan_cells(s: dict[str, Any]) -> list[Cell]:
    """All cells of a protocol's settings, each after those that it needs.

    A generator is trained for each fold and number of real patients on the fold's training cases alone, and its pool
    serves that fold only; arms with fewer samples use the first ones of the largest pool.

    Raises:
        InputError: two cells would have one name, and so one folder.
    """
    made = s["dataset"] if s["dataset_dir"] is None else s.get("data_sha256")  # what the data are, not where they lie
    source = Cell("source", "dataset", {"data": made, **{name: s[name] for name in ("space", "configuration")}})
    cells = [source]
    for real in s["real"]:
        inner = {} if s.get("inner") is None else {"inner": s["inner"]}
        data = Cell("data", f"real-{real}", {"real": real, **inner, **_read(s)}, {"source": source.id})
        cells.append(data)
        for fold in s["folds"]:
            pools = {}
            for name in s["generators"]:
                if size := _pool_size(name, s):
                    made = _pool_cells(name, data, real, fold, size, s)
                    pools[name] = made
                    cells += made.values()
            for segmenter in s["segmenters"]:
                cells += _segmenter_cells(segmenter, data, pools, real, fold, s)
    counts = Counter(cell.id for cell in cells)
    if same := next((cell for cell, count in counts.items() if count > 1), None):
        raise InputError(
            f"several cells of the name {same}",
            "arms, generators and segmenters whose names differ in letters and digits, and no number twice",
            "rename one of them in the protocol",
        )
    last = KINDS.index("train")  # a training is evaluated before the next one starts: a report grows arm by arm
    return sorted(cells, key=lambda cell: min(KINDS.index(cell.kind), last))


def slug(text: str) -> str:
    """A readable folder name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(text)).strip("-")


def _read(s: dict[str, Any]) -> dict[str, Any]:
    return {key: s[key] for key in ("plans", "configuration")}


def _pool_size(generator: str, s: dict[str, Any]) -> int:
    """The most samples that any arm wants of a generator; those that no arm names are asked for their quality."""
    arms = [arm for arm in s["arms"].values() if arm.get("pool") == generator]
    numbers = [n for arm in arms for n in arm.get("num_synthetic", s["num_synthetic"])]
    if not numbers and not s["segmenters"]:
        numbers = s["num_synthetic"]
    size = max(numbers, default=0)
    return -(-int(100 * AUDIT_MARGIN) * size // 100) if _audited(generator, s) else size


def _audited(generator: str, s: dict[str, Any]) -> bool:
    """Pools of real slices are not audited: each is a training case, or all but its tumour is one."""
    return s["audit"] is not None and s["generators"][generator]["bundle"] not in FROM_REAL


def _pool_cells(
    name: str, data: Cell, real: int | str, fold: int | str, size: int, s: dict[str, Any]
) -> dict[str, Cell]:
    """Generator, pool, audit and metrics of one generator, fold and number of real patients."""
    entry = s["generators"][name]
    place = {"label": name, "real": real, "fold": fold, "seed": s["generator_seed"], **_read(s)}
    where, words = f"{slug(name)}_real-{real}_fold{fold}", f"{name} {real}"
    needs, made = {"data": data.id}, {}
    if entry["bundle"] not in FROM_REAL:
        made["generator"] = Cell("generator", where, {**place, **entry}, needs, words)
        needs = {**needs, "generator": made["generator"].id}
    made["pool"] = Cell("pool", where, {**place, **entry, "num_samples": size}, needs, words)
    needs = {"data": data.id, "pool": made["pool"].id}
    if _audited(name, s):
        made["audit"] = Cell("audit", where, {**place, "options": s["audit"]}, needs, words)
        needs = {**needs, "audit": made["audit"].id}  # which rewrites the pool's decisions
    if s["pool_metrics"] is not None:
        made["metrics"] = Cell("metrics", where, {**place, "options": s["pool_metrics"]}, needs, words)
    return made


def _segmenter_cells(
    segmenter: str, data: Cell, pools: dict[str, dict[str, Cell]], real: int | str, fold: int | str, s: dict[str, Any]
) -> list[Cell]:
    entry = {"bundle": SEGMENTATION, "overlays": [], "settings": {}, **s["segmenters"][segmenter]}
    cells = []
    budget = budget_of(entry, s)
    entry.pop("budget", None)
    for arm_name in entry.pop("arms", s["arms"]):
        arm = s["arms"][arm_name]
        mixing = {**mixing_of(arm), **({} if budget == "steps" else {"budget": budget})}
        length = {"epochs_factor": arm["epochs_factor"]} if arm.get("epochs_factor", 1) != 1 else {}
        numbers = arm.get("num_synthetic", s["num_synthetic"]) if "pool" in arm else [0]
        for number in numbers:
            for seed in s["seeds"]:
                place = {"segmenter": segmenter, "arm": arm_name, "num_synthetic": number, "real": real, "fold": fold,
                         "seed": seed, "reference": is_reference(arm_name, s)}  # fmt: skip
                where = f"{slug(segmenter)}_{slug(arm_name)}_n{number}_real-{real}_fold{fold}_seed{seed}"
                needs = {"data": data.id}
                if "pool" in arm:
                    made = pools[arm["pool"]]
                    needs |= {kind: made[kind].id for kind in ("pool", "audit") if kind in made}
                train = Cell(
                    "train", where, {**place, **entry, **length, "mixing": mixing, **_read(s)}, needs, segmenter
                )
                cells.append(train)
                for split in s["evaluate"]:
                    name = where if split == "validation" else f"{where}_{split}"
                    cases = {"cases": s["test_sha256"]} if split == "test" and s.get("test_sha256") else {}
                    needs = {"data": data.id, "source": "source/dataset", "train": train.id}
                    settings = {**train.settings, "split": split, **cases}
                    cells.append(Cell("evaluate", name, settings, needs, f"{segmenter} {split}"))
    return cells
