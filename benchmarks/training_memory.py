"""Peak of resident memory of a training's data, with few and with ten times as many cases.

    python benchmarks/training_memory.py           # 5 minutes of CPU; writes benchmarks/results/training_memory.json
    python benchmarks/training_memory.py --what windows             # of one of them, the others stay as they are

Phantom volumes of 48 x 48 x 12 voxels, raw, their slices on a grid of 64 x 64; the larger number of cases are the
others under ten names each, which makes no difference to memory, and all of them are learnt from (fold all). In a fresh
process for each number of cases and each cache, what a generator learns from (`items`), the windows of a painter of
lesions, and the transplants of a segmenter are loaded, and every item comes once in a batch of 16, as in an epoch; of
transplants 200 are made. The network is left out: its memory does not depend on the cases.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# To look for places of lesions takes far longer than to read them.
CASES = {"items": (100, 1000), "windows": (20, 200), "transplants": (20, 200)}
CACHES = {"items": (0.02, 4.0), "windows": (0.02,), "transplants": (0.02,)}


def resident(key: str) -> float:
    """Resident size of this process in MiB: `VmRSS` now, `VmHWM` at its largest."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def measure(what: str, folder: str, cache_gb: float) -> dict:
    """In a fresh process."""
    import torch
    from monai.data import DataLoader, Dataset

    from scripts.data.cases import open_cases
    from scripts.data.lesion_crops import load_lesion_crops
    from scripts.data.training_set import load_training_set
    from scripts.segmentation.transplants import Transplants, TransplantSettings

    torch.set_num_threads(1)
    before = resident("VmRSS")
    load = load_lesion_crops if what == "windows" else load_training_set
    data = load(
        open_cases(folder, "all"), (32, 32) if what == "windows" else (64, 64), cache_gb=cache_gb, cache_dir=folder
    )
    total = sum(float(batch["image"].sum()) for batch in DataLoader(Dataset(data.training), batch_size=16))
    if what == "transplants":
        transplants = Transplants(data, TransplantSettings(), 0, cache_gb, folder)
        total = sum(float(transplants.make(1, place)["image"].sum()) for place in range(200))
    image = data.training[0]["image"]
    return {
        "training_cases": len(data.seen),
        "items": len(data.training),
        "items_mib": len(data.training) * image.nbytes / 2**20,
        "checksum": total,
        "before_mib": before,
        "peak_mib": resident("VmHWM"),
    }


def repeat(source: Path, target: Path, times: int) -> None:
    """The same cases under so many names each."""
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir(parents=True)
        for file in (source / folder).iterdir():
            for number in range(times):
                os.link(file, target / folder / f"copy{number}_{file.name}")
    description = json.loads((source / "dataset.json").read_text())
    description["numTraining"] *= times
    (target / "dataset.json").write_text(json.dumps(description))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=CASES, help="measure this alone")
    parser.add_argument("--alone", nargs=2, metavar=("FOLDER", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.what, arguments.alone[0], float(arguments.alone[1]))))
        return
    from scripts.data.provenance import code_revision, package_versions
    from scripts.phantom.dataset import write_phantom

    path = ROOT / "benchmarks/results/training_memory.json"
    record = json.loads(path.read_text())
    for what in [arguments.what] if arguments.what else CASES:
        few, many = CASES[what]
        with tempfile.TemporaryDirectory() as temporary:
            first = write_phantom(Path(temporary) / "Dataset800_Phantom", cases=few, test_cases=0, shape=(48, 48, 12))
            for cases in (few, many):
                folder = Path(temporary) / f"Dataset{cases}_Phantom"
                repeat(first, folder, cases // few)
                for cache in CACHES[what]:
                    words = [sys.executable, __file__, "--what", what, "--alone", str(folder), str(cache)]
                    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                    setting = {"what": what, "cases": cases, "cache_gb": cache}
                    row = {**setting, "commit": code_revision(), **json.loads(done.stdout.splitlines()[-1])}
                    record["rows"] = [r for r in record["rows"] if {**r, **setting} != r] + [row]
                    print(row, file=sys.stderr)
    path.write_text(json.dumps({**record, "packages": package_versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
