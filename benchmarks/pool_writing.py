"""CPU seconds of a pool of slices, drawn and written: the shipped dHVAE of the CPU preset, one thread.

    python benchmarks/pool_writing.py              # under a minute; writes benchmarks/results/pool_writing.json

300 samples are made for each setting, in turn, and the figure is CPU time, so that other work beside it matters little.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.data.provenance import code_revision, package_versions, read_provenance  # noqa: E402
from scripts.networks.hvae import HVAE  # noqa: E402
from scripts.pool.writing import write_pool  # noqa: E402
from scripts.sampling.latent import LatentSampler  # noqa: E402

SAMPLES, ROUNDS, PASSES = 300, 2, (1, 16)


def cpu_seconds(sampler: LatentSampler, folder: Path) -> float:
    """Of `SAMPLES` samples, after a few that are not counted."""
    write_pool(sampler, folder / "first", 16, progress=False)
    start = time.process_time()
    write_pool(sampler, folder / "pool", SAMPLES, progress=False)
    return time.process_time() - start


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    models = ROOT / "bundles/dhvae/models"
    files = models / "model.pt", models / "provenance.json"
    settings = read_provenance(files[1])["network"]
    settings.pop("step_size_mode", None)  # a setting of earlier versions
    rows: dict[int, list[float]] = {size: [] for size in PASSES}
    for _ in range(ROUNDS):
        for size in PASSES:
            with tempfile.TemporaryDirectory() as folder:
                sampler = LatentSampler(HVAE(**settings), *files, samples_per_pass=size)
                rows[size].append(cpu_seconds(sampler, Path(folder)) / SAMPLES)
    record = {
        "command": "python benchmarks/pool_writing.py",
        "what": f"dHVAE, CPU preset, phantom weights, {SAMPLES} samples of one channel and one label, 1 thread",
        "commit": code_revision(),
        "packages": package_versions(),
        "cpu_seconds_a_sample": {f"samples_per_pass {size}": values for size, values in rows.items()},
        "cpu_seconds_of_20000": {f"samples_per_pass {size}": 20_000 * min(values) for size, values in rows.items()},
    }
    path = ROOT / "benchmarks/results/pool_writing.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
