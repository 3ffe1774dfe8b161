"""The tables of an experiment as CSV, for those who want to compute with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..runtime.files import write_text
from .experiment_pools import metric_rows
from .experiment_results import MEASURES, Results, Row, arm_summary, baseline_comparisons, comparisons
from .experiment_scorecard import cited_split, scorecard_text


def write_tables(results: Results, folder: Path) -> None:
    """Write arms.csv, comparisons.csv, patients.csv, pool_metrics.csv, cells.csv and, with pools, scorecard.md."""
    _write(folder / "arms.csv", _arms(results))
    _write(folder / "comparisons.csv", _comparisons(results))
    _write(folder / "patients.csv", _patients(results))
    _write(folder / "pool_metrics.csv", _metrics(results))
    _write(folder / "cells.csv", _cells(results))
    if results.cells("pool"):
        splits = _splits(results)
        compared = comparisons(results, cited_split(splits)) if splits else {}
        write_text(folder / "scorecard.md", scorecard_text(results, compared))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _place(row: Row) -> dict[str, Any]:
    return row._asdict()


def _splits(results: Results) -> list[str]:
    return list(dict.fromkeys(row.split for row in results.rows))


def _arms(results: Results) -> Iterable[dict[str, Any]]:
    for split in _splits(results):
        for measure in MEASURES:
            for row, runs in results.patients(measure, split).items():
                if not runs:
                    continue
                one = arm_summary(results, row, runs)
                low, high = one["interval"] or (None, None)
                yield {
                    **_place(row), "measure": measure, "mean": one["mean"], "sd": one["sd"], "low": low, "high": high,
                    "n": one["n"], "folds": len(one["folds"]), "seeds": len(one["seeds"]), "runs": one["runs"],
                    "planned": one["planned"], "sd_over_seeds": one["sd_over_seeds"],
                    "excluded": " ".join(one["excluded"]),
                }  # fmt: skip


def _comparisons(results: Results) -> Iterable[dict[str, Any]]:
    for split in _splits(results):
        pairs = [*comparisons(results, split).items()]
        pairs += [(row, c) for (row, _), c in baseline_comparisons(results, split).items()]
        for row, c in pairs:
            low, high = c["interval"] or (None, None)
            yield {
                **_place(row), "reference": c["names"][0], "reference_mean": c["reference"]["mean"],
                "mean": c["other"]["mean"], "difference": c["difference"], "sd_difference": c["sd_difference"],
                "low": low, "high": high, "level": c["level"], "p": c["p"], "p_holm": c.get("p_holm"),
                "family": c.get("family"), "n": c["n"], "better": c["better"], "worse": c["worse"],
                "equal": c["equal"], "runs": len(c["runs"]), "conclusion": c["conclusion"],
                **{f"difference_seed{seed}": value for seed, value in c["difference_by_seed"].items()},
            }  # fmt: skip


def _patients(results: Results) -> Iterable[dict[str, Any]]:
    for row, runs in results.rows.items():
        for (fold, seed), cases in runs.items():
            for patient, labels in cases.items():
                for label, values in labels.items():
                    place = {**_place(row), "fold": fold, "seed": seed, "patient": patient, "label": label}
                    yield {**place, **{measure: values.get(measure) for measure in MEASURES}}


def _metrics(results: Results) -> Iterable[dict[str, Any]]:
    for one in metric_rows(results):
        low, high = one["interval"] or (None, None)
        names = ("label", "real", "fold", "comparison", "name", "metric", "of", "pairing", "unit", "better", "value")
        n, groups = (dict(zip((f"{what}_candidates", f"{what}_reference"), one[what], strict=True)) for what in
                     ("n", "groups"))  # fmt: skip
        yield {**{name: one[name] for name in names}, "low": low, "high": high, **n, **groups}


def _cells(results: Results) -> Iterable[dict[str, Any]]:
    for cell in results.content["cells"]:
        result = results.results.get(cell["id"], {})
        state = "finished" if result else "failed" if cell["id"] in results.failures else "missing"
        yield {"cell": cell["id"], "state": state, "seconds": result.get("seconds"), "device": result.get("device"),
               "finished": result.get("finished"), "error": results.failures.get(cell["id"])}  # fmt: skip
