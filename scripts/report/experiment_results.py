"""The numbers of an experiment, read from the results of its cells: arms, comparisons, pools, what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..metrics.comparison import FEWEST_PATIENTS, bootstrap_interval, compare_paired, holm, mean_over_labels
from ..pool.from_real import FROM_REAL
from ..runtime.errors import InputError
from ..runtime.files import read_record

MEASURES = ("dice", "iou", "hd95", "nsd", "lesion_sensitivity", "false_positive_slices")
PRIMARY = "dice"
LEVEL = 0.95

Run = tuple[int | str, int]  # fold (a number, or all), seed


class Row(NamedTuple):
    """A line of the tables: one arm of one segmenter, with so many synthetic samples and real patients."""

    split: str
    segmenter: str
    real: int | str
    arm: str
    num_synthetic: int

    @property
    def words(self) -> str:
        """The arm and its number of samples."""
        return f"{self.arm}, {self.num_synthetic}" if self.num_synthetic else self.arm


@dataclass(frozen=True)
class Results:
    """An experiment's folder, read.

    Attributes:
        folder: of the experiment.
        content: of `run.json`.
        results: cell id -> `result.json` of those that are finished.
        failures: cell id -> error.
    """

    folder: Path
    content: dict[str, Any]
    results: dict[str, dict[str, Any]]
    failures: dict[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        """Of the protocol."""
        return self.content["settings"]

    def cells(self, kind: str) -> list[dict[str, Any]]:
        """Planned cells of a kind: `{"id", "kind", "settings", "needs"}`."""
        return [cell for cell in self.content["cells"] if cell["kind"] == kind]

    def values(self, cell: str) -> dict[str, Any] | None:
        """What a finished cell found."""
        return self.results[cell]["values"] if cell in self.results else None

    @property
    def missing(self) -> list[str]:
        """Cells without a result."""
        return [cell["id"] for cell in self.content["cells"] if cell["id"] not in self.results]

    @cached_property
    def rows(self) -> dict[Row, dict[Run, dict[str, Any]]]:
        """For each planned row its evaluations that are finished: fold and seed -> patient -> label -> measures."""
        rows: dict[Row, dict[Run, dict[str, Any]]] = {}
        for cell in self.cells("evaluate"):
            s = cell["settings"]
            row = Row(s["split"], s["segmenter"], s["real"], s["arm"], s["num_synthetic"])
            found = rows.setdefault(row, {})
            if (values := self.values(cell["id"])) is not None:
                found[s["fold"], s["seed"]] = values["cases"]
        return dict(sorted(rows.items(), key=lambda item: self._place(item[0])))

    def _place(self, row: Row) -> tuple[int, int, int]:
        s = self.settings
        return s["evaluate"].index(row.split), list(s["segmenters"]).index(row.segmenter), s["real"].index(row.real)

    @cached_property
    def planned_runs(self) -> list[Run]:
        """Folds and seeds of every row."""
        return [(fold, seed) for fold in self.settings["folds"] for seed in self.settings["seeds"]]

    @cached_property
    def labels(self) -> list[str]:
        """Labels or regions that were evaluated."""
        found = (labels for runs in self.rows.values() for cases in runs.values() for labels in cases.values())
        return list(next(found, {}))

    def reference(self, row: Row) -> Row | None:
        """The row that `row` is compared with: the same segmenter on the real cases as they are."""
        arms = {cell["settings"]["arm"] for cell in self.cells("evaluate") if cell["settings"]["reference"]}
        return next((r for r in self.rows if r.arm in arms and r[:3] == row[:3]), None)

    def patients(self, measure: str, split: str) -> dict[Row, dict[Run, dict[str, float]]]:
        """Values of each patient, the mean over labels, NaN where not defined; labels are the same in all rows."""
        rows = [row for row in self.rows if row.split == split]
        numbers = {run: index for index, run in enumerate(self.planned_runs)}
        table = {
            str(index): {
                numbers[run]: {
                    case: {name: m.get(measure) for name, m in labels.items()} for case, labels in cases.items()
                }
                for run, cases in self.rows[row].items()
            }
            for index, row in enumerate(rows)
        }
        means = mean_over_labels(table)
        return {
            row: {run: dict(means[str(index)][numbers[run]]) for run in self.rows[row]}  # type: ignore[arg-type]
            for index, row in enumerate(rows)
        }


def read_results(run_dir: str | Path) -> Results:
    """Read an experiment's folder, finished or not.

    Raises:
        InputError: it is none.
    """
    folder = Path(run_dir)
    path = folder / "run.json"
    content = read_record(path, {}, "give another folder") if path.is_file() else {}
    if content.get("format") != "synthaug-experiment":
        raise InputError(
            f"{folder} without the run.json of an experiment", "the --output_dir of one",
            "run synthaug experiment, run or demo",
        )  # fmt: skip
    results, failures = {}, {}
    for cell in content["cells"]:
        place = folder / "cells" / cell["id"]
        if (place / "result.json").is_file():
            results[cell["id"]] = read_record(place / "result.json", {"values": dict}, f"remove {place}")
        elif (place / "failure.json").is_file():
            failures[cell["id"]] = failure_of(place)
    return Results(folder, content, results, failures)


def failure_of(place: Path) -> str:
    """Why the cell of a folder failed; where it could not even say so, that it ended."""
    file = place / "failure.json"
    return str(json.loads(file.read_text())["error"]) if file.is_file() else "it ended without a word, see the log"


def average_runs(runs: Mapping[Run, Mapping[str, float]]) -> dict[str, float]:
    """Each patient's mean over the runs that evaluated it; NaN where one of them is."""
    values: dict[str, list[float]] = {}
    for cases in runs.values():
        for patient, value in cases.items():
            values.setdefault(patient, []).append(value)
    return {patient: float(np.mean(found)) for patient, found in sorted(values.items())}


def _of_seed(runs: Mapping[Run, Mapping[str, float]], seed: int) -> dict[Run, Mapping[str, float]]:
    return {run: cases for run, cases in runs.items() if run[1] == seed}


def arm_summary(results: Results, row: Row, runs: Mapping[Run, Mapping[str, float]]) -> dict[str, Any]:
    """Mean and spread of an arm: over patients, each averaged over seeds (and folds) first; and over seeds.

    Returns "mean", "sd" (over patients), "interval" (bootstrap over patients), "n", "excluded", "folds", "seeds",
    "runs", "planned", "seed_means" (of the seeds whose folds are all there), "sd_over_seeds".
    """
    averaged = average_runs(runs)
    values = np.array([value for value in averaged.values() if not np.isnan(value)])
    folds = {fold for fold, _ in results.planned_runs}
    seed_means = {}
    for seed in sorted({seed for _, seed in runs}):
        one = _of_seed(runs, seed)
        means = np.array(list(average_runs(one).values()))
        if {fold for fold, _ in one} == folds and not np.isnan(means).all():
            seed_means[seed] = float(np.nanmean(means))
    return {
        "mean": float(values.mean()) if len(values) else None,
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "interval": list(bootstrap_interval(values, LEVEL)) if len(values) >= FEWEST_PATIENTS else None,
        "n": len(values),
        "excluded": [patient for patient, value in averaged.items() if np.isnan(value)],
        "folds": sorted({fold for fold, _ in runs}, key=str),
        "seeds": sorted({seed for _, seed in runs}),
        "runs": len(runs),
        "planned": len(results.planned_runs),
        "seed_means": seed_means,
        "sd_over_seeds": float(np.std(list(seed_means.values()), ddof=1)) if len(seed_means) > 1 else None,
    }


def comparisons(results: Results, split: str) -> dict[Row, dict[str, Any]]:
    """Every row against real only of its segmenter and number of real patients, see `compare_rows`."""
    pairs = [(row, results.reference(row)) for row in results.rows if row.split == split]
    wanted = [(row, other) for row, other in pairs if other is not None and other != row]
    return {row: c for (row, _), c in compare_rows(results, split, wanted).items()}


def baseline_comparisons(results: Results, split: str) -> dict[tuple[Row, Row], dict[str, Any]]:
    """Each generator's arm with the most samples against each arm that needs no generator, see `compare_rows`.

    Those are classical augmentation, and pasted tumours (as many samples, or else the most).
    """
    arms, generators = results.settings["arms"], results.settings["generators"]

    def trained(row: Row) -> bool:
        pool = arms[row.arm].get("pool")
        return pool is not None and generators[pool]["bundle"] not in FROM_REAL

    rows = [row for row in results.rows if row.split == split]
    most: dict[tuple, Row] = {}
    for row in rows:
        if trained(row) and row.num_synthetic >= most.get(row[:4], row).num_synthetic:
            most[row[:4]] = row
    pairs = []
    for row in most.values():
        others = [r for r in rows if r[:3] == row[:3] and not trained(r) and r != results.reference(r)]
        others = [r for r in others if "epochs_factor" not in arms[r.arm]]  # real only of another length
        for arm in dict.fromkeys(r.arm for r in others):
            same = {r.num_synthetic: r for r in others if r.arm == arm}
            pairs.append((row, same.get(row.num_synthetic, same[max(same)])))
    return compare_rows(results, split, pairs)


def compare_rows(
    results: Results, split: str, pairs: Sequence[tuple[Row, Row]]
) -> dict[tuple[Row, Row], dict[str, Any]]:
    """Rows against others by Dice, over the folds and seeds that both have; pairs without any are left out.

    As `compare_paired`, patients being averaged over seeds (and folds) first, with "p_holm" (over all of these),
    "family" (how many), "runs" (folds and seeds), "had" (synthetic samples that the first had), "difference_by_seed",
    and "conclusion" by the adjusted p.
    """
    table = results.patients(PRIMARY, split)
    found: dict[tuple[Row, Row], dict[str, Any]] = {}
    for row, other in pairs:
        both = sorted(set(table[row]) & set(table[other]), key=str)
        if not both:
            continue
        first, second = ({run: side[run] for run in both} for side in (table[other], table[row]))
        compared = compare_paired({0: average_runs(first)}, {0: average_runs(second)}, (other.words, row.words), LEVEL)
        by: list[dict[Any, float]] = []
        for place in (1, 0):  # of the seed in a run, and of the fold
            by.append({})
            for value in sorted({run[place] for run in both}, key=str):
                sides = ({run: side[run] for run in both if run[place] == value} for side in (first, second))
                a, b = map(average_runs, sides)
                differences = np.array([b[patient] - a[patient] for patient in a])
                by[-1][value] = float("nan") if np.isnan(differences).all() else float(np.nanmean(differences))
        by_words = {"difference_by_seed": by[0], "difference_by_fold": by[1]}
        found[row, other] = {**compared, "runs": both, "family": 0, "had": num_samples(results, row), **by_words}
    tested = [c for c in found.values() if c["p"] is not None]
    for c, p in zip(tested, holm([c["p"] for c in tested]), strict=True):
        c |= {"p_holm": p, "family": len(tested)}
        if c["conclusion"] in ("higher", "lower") and p >= 1 - LEVEL:
            c["conclusion"] = "undecided"
    return found


def label_comparisons(results: Results, c: Mapping[str, Any], row: Row, other: Row) -> dict[str, dict[str, Any]]:
    """Each label's Dice of a compared pair, over the same trainings; not adjusted for the number of labels."""
    found = {}
    for label in results.labels:
        sides = [
            average_runs({
                run: {case: np.nan if (v := labels[label][PRIMARY]) is None else v for case, labels in cases.items()}
                for run, cases in results.rows[side].items() if run in c["runs"]
            })
            for side in (other, row)
        ]  # fmt: skip
        found[label] = compare_paired({0: sides[0]}, {0: sides[1]}, (other.words, row.words), LEVEL)
    return found


def seed_runs(runs: Mapping[Run, Mapping[str, float]], chosen: Sequence[Run]) -> dict[int, dict[str, float]]:
    """Each patient's value of each seed, over the folds of the chosen runs that evaluated it."""
    found = {run: runs[run] for run in chosen}
    return {seed: average_runs(_of_seed(found, seed)) for seed in sorted({seed for _, seed in found})}


def num_samples(results: Results, row: Row) -> list[int]:
    """Synthetic samples that the trainings of a row had: fewer than asked for where an audit left fewer."""
    found = set()
    for cell in results.cells("train"):
        s = cell["settings"]
        if (s["segmenter"], s["real"], s["arm"], s["num_synthetic"]) == tuple(row[1:]):
            if (values := results.values(cell["id"])) is not None:
                found.add(values["num_synthetic"])
    return sorted(found)


def steps(results: Results) -> dict[str, set[int]]:
    """Training steps that the arms of each segmenter had, but for those that have another length on purpose."""
    found: dict[str, set[int]] = {}
    for cell in results.cells("train"):
        if (values := results.values(cell["id"])) is not None and "epochs_factor" not in cell["settings"]:
            found.setdefault(cell["settings"]["segmenter"], set()).add(values["steps"])
    return found


def other_lengths(results: Results, segmenter: str) -> dict[str, tuple[float, set[int]]]:
    """Arms that were trained for another number of epochs on purpose: the factor, and their steps."""
    found: dict[str, tuple[float, set[int]]] = {}
    for cell in results.cells("train"):
        s, values = cell["settings"], results.values(cell["id"])
        if values is not None and s["segmenter"] == segmenter and "epochs_factor" in s:
            found.setdefault(s["arm"], (s["epochs_factor"], set()))[1].add(values["steps"])
    return found
