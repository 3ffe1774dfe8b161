"""Keep what a run measured: `run.json` and each finished cell's `result.json`, without this machine's paths.

    python benchmarks/collect_run.py RUN_DIR NAME

writes `benchmarks/results/NAME`, small and without images: `synthaug report` makes a report of it, and a copy of it as
`--output_dir` of the same command goes on where the run was, on another machine, too. Give the command again while the
run goes on, to keep each cell as it ends.
"""

import json
import sys
from pathlib import Path
from typing import Any

from scripts.runtime.files import write_json

RESULTS = Path(__file__).resolve().parent / "results"


def without_paths(value: Any) -> Any:
    """Replace every absolute path in a record by its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str) and "/" in value:
        return " ".join(Path(word).name if word.startswith("/") else word for word in value.split(" "))
    return value


def collect(run_dir: Path, target: Path) -> int:
    """Copy the records; returns how many cells are finished."""
    content = json.loads((run_dir / "run.json").read_text())
    write_json(target / "run.json", without_paths(content))
    cells = [cell["id"] for cell in content["cells"] if (run_dir / "cells" / cell["id"] / "result.json").is_file()]
    for cell in cells:
        result = json.loads((run_dir / "cells" / cell / "result.json").read_text())
        write_json(target / "cells" / cell / "result.json", without_paths(result))
    return len(cells)


def main(run_dir: str, name: str) -> None:
    print(f"{collect(Path(run_dir), RESULTS / name)} finished cells in {RESULTS / name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
