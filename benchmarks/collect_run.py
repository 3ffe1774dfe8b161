"""Keep what a run of `synthaug run` measured, and leave out patients' images and this machine's paths.

    python benchmarks/collect_run.py RUN_DIR NAME

writes `benchmarks/results/NAME.json` (Dice per test patient, arm and seed; comparison; settings; versions; commit;
seconds) and `NAME.png` (Dice of each patient, real only against real + synthetic).
"""

import json
import sys
from pathlib import Path

from scripts.report.answer import answer, compare_arms
from scripts.report.figures import save_png
from scripts.report.plots import paired_dice_figure

RESULTS = Path(__file__).resolve().parent / "results"


def without_paths(value):
    """Replace every absolute path in a record by its last part, and drop the files that stay with the run."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items() if k not in ("losses_file", "shares_file", "pictures")}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and "/" in value:
        return " ".join(Path(word).name if word.startswith("/") else word for word in value.split(" "))
    return value


def main(run_dir: str, name: str) -> None:
    record = json.loads((Path(run_dir) / "run.json").read_text())
    compared = compare_arms(record)
    measure = next(iter(compared["values"]))  # the mean over labels where there are several
    (reference, first), (other, second) = compared["values"][measure].items()
    kept = without_paths(record)
    kept["answer"] = answer(record)
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    figure = paired_dice_figure(first, second, (reference, other), f"Dice, {measure}, {record['dataset']['name']}")
    save_png(figure, RESULTS / f"{name}.png")
    print(kept["answer"])


if __name__ == "__main__":
    main(*sys.argv[1:])
