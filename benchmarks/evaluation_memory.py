"""Peak of resident memory of evaluate-pool's figures, by the number of samples.

    python benchmarks/evaluation_memory.py 10000 30000     # writes benchmarks/results/evaluation_memory.json

Random slices of 64 x 64 pixels with masks and features of the own extractor's length, against 2,000 slices of 40
patients: memory does not depend on the values, and somewhat on `--resamples` (10,000 samples: 1,458 MiB with 2, 1,521
with 100). In a fresh process for each number; reading a pool, and the network of the perceptual distance, which looks
at 64 pairs at once, are left out. With 500 resamples 100,000 samples take about an hour of CPU.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PATIENTS, SLICES, SIDE, FEATURES = 40, 50, 64, 112


def resident(key: str) -> float:
    """Resident size of this process in MiB: `VmRSS` now, `VmHWM` at its largest."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def items(name: str, groups: int, each: int):
    """A set of random slices."""
    import numpy as np
    import torch

    from scripts.metrics.item_sets import IMAGE_ROOM, ItemSet
    from scripts.runtime.tensor_store import TensorStore

    count, rng = groups * each, np.random.default_rng(0)
    images, labels = TensorStore(IMAGE_ROOM), TensorStore(IMAGE_ROOM / 4)
    for _ in range(count):
        images.append(torch.from_numpy(rng.random((1, SIDE, SIDE), np.float32)))
        labels.append(torch.from_numpy((rng.random((SIDE, SIDE), np.float32) < 0.1).astype(np.uint8)))
    group = np.repeat(np.arange(groups), each)
    pooled = {"own(random)": rng.normal(size=(count, FEATURES)).astype(np.float32)}
    tumours, ids = {"volume": rng.random(count)}, [str(i) for i in range(groups)]
    return ItemSet(name, ids, images.rows(), labels.rows(), group, labels.rows(), group, tumours, pooled)


def measure(samples: int, resamples: int) -> dict:
    """In a fresh process."""
    import torch

    from scripts.metrics.evaluate_pool import Comparison, EvaluationSettings, _figures, _Progress
    from scripts.metrics.fidelity import psnr

    torch.set_num_threads(1)
    before, start = resident("VmRSS"), time.process_time()
    comparison = Comparison("random", items("synthetic", samples, 1), items("training", PATIENTS, SLICES), "")
    pool = SimpleNamespace(dimension=2, classes=[0, 1])
    settings = EvaluationSettings(resamples=resamples)
    extractors = [SimpleNamespace(name="own(random)")]
    figures = list(_figures(comparison, pool, {"psnr": psnr}, extractors, settings, _Progress(False)))  # type: ignore[arg-type]
    return {
        "samples": samples,
        "resamples": resamples,
        "figures": len(figures),
        "before_mib": before,
        "peak_mib": resident("VmHWM"),
        "cpu_seconds": time.process_time() - start,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", nargs="+", type=int)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.samples[0], arguments.resamples)))
        return
    from scripts.data.provenance import code_revision, package_versions

    rows = []
    for samples in arguments.samples:
        words = [sys.executable, __file__, str(samples), "--resamples", str(arguments.resamples), "--alone"]
        rows.append(json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout))
        print(rows[-1], file=sys.stderr)
    record = {
        "command": " ".join(["python benchmarks/evaluation_memory.py", *sys.argv[1:]]),
        "commit": code_revision(),
        "packages": package_versions(),
        "rows": rows,
    }
    (ROOT / "benchmarks/results/evaluation_memory.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
