"""What the audit catches: copies, wrong masks and new patients planted in pools of real slices, fold by fold.

    python benchmarks/audit_rates.py $nnUNet_preprocessed/Dataset501_LGG   # writes benchmarks/results/audit_rates.*

Nothing here is synthetic, so that every sample's truth is known. In each fold, the audit is given the fold's training
cases alone: its thresholds come from these patients, each judged without their own, and the patients of the fold's
validation set are planted as new ones. So every patient of the data set is new once. Planted in each fold:

- new: every slice with foreground of the validation patients, as it is
- copy: training slices, flipped left to right, with noise of 2 % of the intensity range; and harder ones: blurred
  (standard deviation of one pixel of the generator's grid), shifted (two pixels), turned (3 degrees) and enlarged
  (3 %); `audit_copies.py` has more and larger changes
- blank, outside, swapped: slices of validation patients without mask, with their mask moved to the darkest corner,
  and with the mask of a slice of another validation patient

The rates, as JSON and Markdown, are of the checks that are meant for them, and of any check but duplicates, which see
the same slice more than once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.audit.audit import run_audit  # noqa: E402
from scripts.audit.result import AuditResult  # noqa: E402
from scripts.audit.thresholds import LEVELS, patient_interval, wilson_interval  # noqa: E402
from scripts.audit.usefulness import UsefulnessSettings  # noqa: E402
from scripts.data.cases import Case, open_cases  # noqa: E402
from scripts.data.provenance import build_provenance, code_revision, package_versions  # noqa: E402
from scripts.data.training_set import TrainingSet, load_training_set  # noqa: E402
from scripts.pool.writing import write_pool  # noqa: E402
from scripts.runtime.files import write_json  # noqa: E402
from scripts.sampling.sampler import Sampler  # noqa: E402

MEMORISATION = {key for key in LEVELS if key.startswith("memorisation")}
INTENDED = {
    "new": None,
    "copy": MEMORISATION,
    "copy, blurred": MEMORISATION,
    "copy, shifted": MEMORISATION,
    "copy, turned": MEMORISATION,
    "blank": {"empty"},
    "outside": {"outside_body"},
    "swapped": {"agreement"},
}


class PlantedSampler(Sampler):
    """Gives the pairs that it was given, image (channels, [depth,] height, width) and label, as they are."""

    def __init__(self, data: TrainingSet, pairs: list[tuple[np.ndarray, np.ndarray]]):
        self.pairs, self.description, self.dimension = pairs, data.cases.description, len(data.geometry.spatial_size)
        self.samples_per_pass, self.min_foreground, self.settings = 1, 0, {}
        record = build_provenance(data, {"name": "planted", "version": "0"}, 0, {}, {"background_share": 0.1})
        self.provenance = {**record, "weights_sha256": "none"}

    def check(self, condition):
        """Nothing is asked for."""

    def draw(self, candidates, seed, condition=None):
        """The pairs in their order."""
        record = {"condition": None, "scores": {}}
        return [
            {"image": self.pairs[i][0], "label": self.pairs[i][1], "record": {"seed": i, **record}} for i in candidates
        ]


def slices(cases: list[Case]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Patient, image and label of every slice with foreground."""
    return [
        (case.id, case.image[:, z], case.label[z])
        for case in cases
        for z in range(len(case.label))
        if case.label[z].any()
    ]


def moved_outside(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The mask, moved to the corner where the image is darkest, and cut to a quarter of the sides."""
    rows, columns = np.nonzero(label)
    piece = label[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = (min(part, side // 8) for part, side in zip(piece.shape, label.shape, strict=True))
    piece = piece[:height, :width]
    piece = piece if piece.any() else np.full_like(piece, label.max())
    corners = [(top, left) for top in (0, label.shape[0] - height) for left in (0, label.shape[1] - width)]
    top, left = min(corners, key=lambda c: float(image[0, c[0] : c[0] + height, c[1] : c[1] + width].mean()))
    result = np.zeros_like(label)
    result[top : top + height, left : left + width] = piece
    return result


def centred(label: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The label on a grid of another size, middle on middle."""
    result = np.zeros(shape, label.dtype)
    kept = [min(a, b) for a, b in zip(label.shape, shape, strict=True)]
    here, there = (
        tuple(slice((size - part) // 2, (size - part) // 2 + part) for size, part in zip(sizes, kept, strict=True))
        for sizes in (label.shape, shape)
    )
    result[there] = label[here]
    return result


def plant(data: TrainingSet, count: int, rng: np.random.Generator) -> list[dict]:
    """Everything that one fold's pool holds."""
    new = slices(list(data.cases.validation()))
    seen = slices(list(data.cases.training()))
    step = data.geometry.canvas[0] / data.geometry.spatial_size[0]  # samples' pixels in one of the grid
    span = np.subtract(data.scaling.high, data.scaling.low).reshape(-1, 1, 1)
    planted = [{"kind": "new", "patient": p, "image": x, "label": m} for p, x, m in new]
    for kind in [name for name in INTENDED if name.startswith("copy")]:
        for index in rng.permutation(len(seen))[:count]:
            patient, x, m = seen[index]
            noise = 0.02 * span * rng.normal(size=x.shape)
            if kind == "copy":
                x, m = x[:, :, ::-1] + noise, m[:, ::-1]
            elif kind == "copy, blurred":
                x = ndimage.gaussian_filter(x, (0, step, step))
            elif kind == "copy, shifted":
                x, m = np.roll(x, (2, -2), (1, 2)), np.roll(m, (2, -2), (0, 1))
            else:
                angle, zoom = np.deg2rad(3), 1 / 1.03
                matrix = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
                centre = (np.array(m.shape) - 1) / 2
                more = {"offset": centre - matrix @ centre, "mode": "nearest"}
                x = np.stack([ndimage.affine_transform(channel, matrix, order=1, **more) for channel in x])
                m = ndimage.affine_transform(m, matrix, order=0, **more)
            planted.append({"kind": kind, "patient": patient, "image": x, "label": m})
    for kind in ("blank", "outside", "swapped"):
        for index in rng.permutation(len(new))[:count]:
            patient, x, m = new[index]
            entry = {"kind": kind, "patient": patient, "image": x}
            if kind == "swapped":
                others = [i for i, (p, *_) in enumerate(new) if p != patient]
                other = centred(new[rng.choice(others)][2], m.shape)
                shared, both = ((m > 0) & (other > 0)).sum(), (m > 0).sum() + (other > 0).sum()
                planted.append({**entry, "label": other, "overlap": float(2 * shared / max(1, both))})
            else:
                label = np.zeros_like(m) if kind == "blank" else moved_outside(x, m)
                planted.append({**entry, "label": label})
    return planted


def only_training(dataset_dir: Path, fold: int, folder: Path) -> Path:
    """The data set with a split whose only fold has this fold's training cases and nobody held out."""
    target = folder / dataset_dir.resolve().name
    target.mkdir()
    for path in dataset_dir.resolve().iterdir():
        if path.name != "splits_final.json":
            (target / path.name).symlink_to(path)
    train = open_cases(dataset_dir, fold).fold.train
    write_json(target / "splits_final.json", [{"train": train, "val": []}])
    return target


def audit_fold(dataset_dir: Path, fold: int, grid: int, count: int, seed: int) -> tuple[list[dict], AuditResult, float]:
    """Plant and audit; every planted entry gets the checks that flag it. CPU seconds are of the whole audit."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = load_training_set(open_cases(dataset_dir, fold), (grid, grid))
        planted = plant(data, count, np.random.default_rng([seed, fold]))
        alone = load_training_set(open_cases(only_training(dataset_dir, fold, folder), 0), (grid, grid))
        pairs = [(np.ascontiguousarray(e.pop("image"), np.float32), e.pop("label").astype(np.uint8)) for e in planted]
        pool = write_pool(PlantedSampler(alone, pairs), folder / "pool", len(pairs), progress=False)
        started = time.process_time()
        result = run_audit(pool, alone.cases.folder.parent, seed=seed, usefulness=UsefulnessSettings())
        used = time.process_time() - started
    flags = {check.key: check.flagged for check in result.checks if check.key != "duplicates"}
    flags["empty"] = result.empty
    flags["agreement, level 0.1"] = dataclasses.replace(result.agreement.check, level=0.1).flagged
    for index, entry in enumerate(planted):
        entry |= {"fold": fold, "flags": [key for key, flagged in flags.items() if flagged[index]]}
        if "copy" in entry["kind"]:
            entry["named"] = result.memorisation.copied(index)["case"] == entry["patient"]
    return planted, result, used


def rate(values: list[bool], patients: list[str]) -> dict:
    """Share with both intervals: items as if independent, and patients resampled whole."""
    return {
        "rate": float(np.mean(values)),
        "n": len(values),
        "patients": len(set(patients)),
        "wilson": wilson_interval(int(np.sum(values)), len(values)),
        "bootstrap_patients": patient_interval(np.array(values), np.array(patients)),
    }


def summarise(planted: list[dict]) -> dict:
    """Rates by kind."""
    summary = {}
    for kind, checks in INTENDED.items():
        entries = [entry for entry in planted if entry["kind"] == kind]
        patients = [entry["patient"] for entry in entries]

        def of(condition, entries=entries, patients=patients) -> dict:
            return rate([bool(condition(entry)) for entry in entries], patients)

        found = {"any check": of(lambda e: set(e["flags"]) - {"agreement, level 0.1"})}
        if checks is None:
            names = sorted({flag for entry in planted for flag in entry["flags"]})
            found |= {name: of(lambda e, name=name: name in e["flags"]) for name in names}
            found["called a copy"] = of(lambda e: MEMORISATION & set(e["flags"]))
        else:
            found["intended check"] = of(lambda e, checks=checks: checks & set(e["flags"]))
        if kind.startswith("copy"):
            found["named its patient"] = of(lambda e: e["named"])
        if kind == "swapped":
            found["intended check, level 0.1"] = of(lambda e: "agreement, level 0.1" in e["flags"])
            apart = [entry for entry in entries if entry["overlap"] < 0.1]
            found["intended check, masks that overlap by a Dice below 0.1"] = rate(
                ["agreement" in e["flags"] for e in apart], [e["patient"] for e in apart]
            )
        summary[kind] = found
    return summary


def as_markdown(record: dict) -> str:
    """The rates as a table."""

    def percent(values: list[float] | None) -> str:
        return "none" if values is None else " to ".join(f"{100 * value:.1f}" for value in values)

    lines = [
        f"# What the audit catches on {record['data']}",
        "",
        f"`{record['command']}`, {record['seconds'] / 60:.0f} minutes of wall clock, {record['threads']} thread(s); "
        f"grid {' x '.join(map(str, record['grid']))}, {len(record['folds'])} folds. No sample is synthetic; the audit "
        "knows the training cases of the fold alone. Thresholds are quantiles of these, at the levels "
        + ", ".join(f"{key} {level:g}" for key, level in record["levels"].items())
        + ".",
        "",
        "| planted | flagged by | % | n | patients | 95 % interval, slices independent | 95 % interval over patients |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, rates in record["rates"].items():
        for name, rate in rates.items():
            lines.append(
                f"| {kind} | {name} | {100 * rate['rate']:.1f} | {rate['n']} | {rate['patients']} "
                f"| {percent(rate['wilson'])} | {percent(rate['bootstrap_patients'])} |"
            )
    called = ", ".join(f"{name} ({count})" for name, count in record["new_patients_called_copies"].items())
    lines += ["", f"New patients with slices called copies: {called or 'none'}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path, help="nnU-Net preprocessed data set, configuration 2d")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--count", type=int, default=40, help="planted of each kind and fold, but for new ones: all")
    parser.add_argument("--grid", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/audit_rates.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    planted: list[dict] = []
    folds = {}
    for fold in arguments.folds:
        entries, result, used = audit_fold(arguments.dataset_dir, fold, arguments.grid, arguments.count, arguments.seed)
        planted += entries
        record = result.as_record()
        folds[str(fold)] = {
            "samples": len(entries),
            "cpu_seconds": used,
            "real": record["real"],
            "thresholds": {key: check["threshold"] for key, check in record["checks"].items()},
            "real_dropped": record["real_dropped"],
            "median_dice": record["agreement"]["median_dice"],
            "closest_real": record["memorisation"]["closest_real"],
            "rates": summarise(entries),
        }
        found = {
            kind: rates.get("intended check", rates["any check"])["rate"] for kind, rates in summarise(entries).items()
        }
        print(f"fold {fold}: {found}", file=sys.stderr)
    copied = [e for e in planted if e["kind"] == "new" and MEMORISATION & set(e["flags"])]
    record = {
        "command": " ".join(["python", "benchmarks/audit_rates.py", arguments.dataset_dir.name, *sys.argv[2:]]),
        "data": arguments.dataset_dir.resolve().name,
        "grid": [arguments.grid, arguments.grid],
        "seed": arguments.seed,
        "device": "CPU",
        "threads": arguments.threads,
        "seconds": time.perf_counter() - started,
        "commit": code_revision(),
        "packages": package_versions(),
        "cpus": os.cpu_count(),
        "levels": result.levels,
        "rates": summarise(planted),
        "new_patients_called_copies": {
            p: sum(e["patient"] == p for e in copied) for p in sorted({e["patient"] for e in copied})
        },
        "folds": folds,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(as_markdown(record))
    print(as_markdown(record))


if __name__ == "__main__":
    main()
