"""Compare arms that were trained and evaluated with the bundle `segmentation`, patient by patient, over seeds.

    python benchmarks/compare_evaluations.py NAME "real=/runs/real-s*/test" "transplants=/runs/transplants-s*/test"

takes each folder's `metrics.json`, of which each says its seed, the first arm as the reference, and writes
`benchmarks/results/NAME.json`: every patient's figures, and for each measure the paired comparisons of all arms
(`scripts.metrics.comparison`), the p values of Dice also by Holm over them.
"""

from __future__ import annotations

import glob
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from scripts.metrics.comparison import compare_paired, holm, mean_over_labels
from scripts.runtime.errors import InputError
from scripts.runtime.files import write_json

RESULTS = Path(__file__).resolve().parent / "results"
MEASURES = ("dice", "hd95", "lesion_sensitivity", "false_positive_slices")
SAME = ("dataset", "fold", "split", "surface_tolerance_mm")  # of all evaluations that are compared


def read_arms(arms: dict[str, str]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return {arm: {seed: metrics.json}} of the folders that match the patterns."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for arm, pattern in arms.items():
        for folder in sorted(glob.glob(pattern)):
            record = json.loads((Path(folder) / "metrics.json").read_text())
            if record["seed"] in found.setdefault(arm, {}):
                raise InputError(f"{arm}: two evaluations of seed {record['seed']}", "one", f"mend {pattern}")
            found[arm][record["seed"]] = record
        if arm not in found:
            raise InputError(
                f"nothing at {pattern}", "folders with metrics.json", "evaluate the arm, or mend the pattern"
            )
    for key in SAME:
        values = {str(record[key]) for seeds in found.values() for record in seeds.values()}
        if len(values) > 1:
            raise InputError(f"{key}: {', '.join(sorted(values))}", "one", "compare evaluations of the same cases")
    return found


def of_measure(found: dict[str, dict[int, dict[str, Any]]], measure: str) -> dict[str, Any]:
    """Return {arm: {seed: {patient: value}}}, a patient's mean over labels."""
    arms: dict[str, dict[int, Any]] = {}
    for arm, seeds in found.items():
        for seed, record in seeds.items():
            cases = {case: {of: v[measure] for of, v in labels.items()} for case, labels in record["cases"].items()}
            arms.setdefault(arm, {})[seed] = cases
    return mean_over_labels(arms)


def main(name: str, *given: str) -> None:
    """Compare, write and print."""
    found = read_arms(dict(arm.split("=", 1) for arm in given))
    one = next(iter(next(iter(found.values())).values()))
    comparisons: dict[str, list[dict[str, Any]]] = {}
    for measure in MEASURES:
        runs = of_measure(found, measure)
        comparisons[measure] = [
            compare_paired(runs[first], runs[second], (first, second))
            for first, second in itertools.combinations(runs, 2)
        ]
    dice = comparisons["dice"]
    adjusted = iter(holm([row["p"] for row in dice if row["p"] is not None]))
    for row in dice:
        row["p_holm"] = None if row["p"] is None else next(adjusted)
    arms = {
        arm: {
            seed: {key: record[key] for key in ("weights_sha256", "training", "summary", "cases")}
            for seed, record in seeds.items()
        }
        for arm, seeds in found.items()
    }
    record = {**{key: one[key] for key in (*SAME, "network", "grid")}, "comparisons": comparisons, "arms": arms}
    write_json(RESULTS / f"{name}.json", record)
    for measure, rows in comparisons.items():
        for row in rows:
            first, second = row["reference"], row["other"]
            low, high = row["interval"] or (float("nan"), float("nan"))
            holms = f", Holm {row['p_holm']:.3f}" if "p_holm" in row else ""
            means = [[round(mean, 4) for mean in arm["seed_means"].values()] for arm in (first, second)]
            print(
                f"{measure}: {' -> '.join(row['names'])}: {first['mean']:.4f} -> {second['mean']:.4f}, "
                f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p {row['p']:.3f}{holms}, {row['better']} higher, "
                f"{row['worse']} lower of {row['n']}; seeds {means[0]} {means[1]}"
            )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
