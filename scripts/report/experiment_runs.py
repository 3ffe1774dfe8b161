"""What was run: settings, versions, devices, times, and what failed or is missing."""

from __future__ import annotations

from typing import Any

from .experiment_results import Results
from .html import escaped, html_table, setting_rows

FEW_PATIENTS = 20
LIMITS = (
    "Intervals and p values cover the choice of patients. They do not cover the choice of training seeds (see the "
    "columns by seed), and each pool comes from one training of its generator.",
    "Patients of one data set: nothing is said about other scanners or hospitals.",
)


def unfinished_section(results: Results) -> list[str]:
    """What is missing, and what failed; nothing when the experiment is finished."""
    missing = results.missing
    if not missing:
        return []
    total = len(results.content["cells"])
    kinds: dict[str, int] = {}
    for cell in missing:
        kind = cell.partition("/")[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    words = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    parts = [
        f"<h2>Unfinished: {len(missing)} of {total} cells are missing</h2>",
        f"<p>{escaped(words)}. Every figure below is of the cells that are finished, and may change.</p>",
        "<ul>" + "".join(f"<li>{escaped(cell)}</li>" for cell in missing[:30]) + "</ul>",
    ]
    if len(missing) > 30:
        parts.append(f"<p>and {len(missing) - 30} more, see cells.csv</p>")
    if results.failures:
        rows = [[cell, error] for cell, error in results.failures.items()]
        parts.append(html_table(["failed", "error"], rows, "Cells that failed; their log.txt says more."))
    return parts


def run_section(results: Results) -> list[str]:
    """Command, limits, times, settings and versions."""
    limits = list(LIMITS)
    if results.settings["dataset_dir"] is None:
        limits.insert(0, "The data are a phantom: figures on it say that the chain works, not that a method helps.")
    seeds = len(results.settings["seeds"])
    if seeds < 3 and results.settings["segmenters"]:
        plural = "" if seeds == 1 else "s"
        limits.append(f"{seeds} training seed{plural} in an arm: the spread over seeds is hardly known.")
    limits += _limits(results)
    parts = ["<h2>Limits</h2>", "<ul>" + "".join(f"<li>{escaped(words)}</li>" for words in limits) + "</ul>"]
    parts += ["<h2>What was run</h2>", f"<pre>{escaped(results.content['command'])}</pre>", _time_table(results)]
    phantom = ["dataset"] if results.settings["dataset_dir"] else []  # of which nothing was used
    hidden = ("name", "title", "question", *phantom)
    shown = {key: value for key, value in results.settings.items() if key not in hidden}
    parts += ["<h3>Settings</h3>", html_table([], setting_rows(shown))]
    return [*parts, "<h3>Versions</h3>", html_table([], setting_rows(_versions(results)))]


def _limits(results: Results) -> list[str]:
    """What follows from the results themselves."""
    limits = []
    patients = [len(set().union(*runs.values())) for runs in results.rows.values() if runs]
    if few := [n for n in patients if n < FEW_PATIENTS]:
        limits.append(
            f"n = {max(few)} patients: with so few, bootstrap percentile intervals are shorter than they say (a "
            "nominal 95 % covers about 89 % for 8 normal values); a difference is named only where the rank test "
            "agrees."
        )
    if any(
        one.get("bundle") == "nnunet" and not one.get("settings", {}).get("full_plans")
        for one in results.settings["segmenters"].values()
    ):
        limits.append("The sizes are a CPU preset: a small nnU-Net, AdamW, and a short training, without mirroring.")
    return limits


def _time_table(results: Results) -> str:
    rows, total = [], 0.0
    for kind in dict.fromkeys(cell["kind"] for cell in results.content["cells"]):
        cells = [cell["id"] for cell in results.cells(kind)]
        seconds = [results.results[cell]["seconds"] for cell in cells if cell in results.results]
        total += sum(seconds)
        mean = f"{sum(seconds) / len(seconds):,.1f}" if seconds else "–"
        rows.append([kind, f"{len(seconds)} of {len(cells)}", mean, f"{sum(seconds):,.0f}"])
    rows.append(["all", f"{len(results.results)} of {len(results.content['cells'])}", "", f"{total:,.0f}"])
    caption = (
        f"Wall-clock seconds of the finished cells, on {'; '.join(_facts(results, 'device')) or 'no device yet'}; of a "
        "cell that was interrupted, those since it went on."
    )
    return html_table(["cells", "finished", "mean s", "total s"], rows, caption, numbers=(1, 2, 3))


def _facts(results: Results, key: str) -> list[str]:
    return list(dict.fromkeys(str(result[key]) for result in results.results.values()))


def _versions(results: Results) -> dict[str, Any]:
    """Every value that occurred: a run that went on after an update has two."""
    versions: dict[str, list[str]] = {}
    for result in results.results.values():
        for package, version in {**result["versions"], "code": result["code_revision"]}.items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
    return {**versions, "threads": _facts(results, "threads")}
