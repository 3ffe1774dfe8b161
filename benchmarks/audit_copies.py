"""Which copies of training slices the audit finds, by the kind and size of what was done to them, fold by fold.

    python benchmarks/audit_copies.py $nnUNet_preprocessed/Dataset501_LGG   # writes benchmarks/results/audit_copies.*
    python benchmarks/audit_copies.py Dataset802_Phantom3D --depth 12 --folds 0 1 2  # volumes, of a raw data set

As in `audit_rates.py` nothing is synthetic: the audit is given the training cases of a fold alone, and gets slices of
these, changed, and slices of the fold's validation patients, who are new. Only the checks for copies run. A slice is
changed on the grid of the data set, and then written into a pool as any sample. `TUNED_ON` is what the checks were
looked at with while they were written; all else was measured afterwards, once. A fold that was measured stays in the
JSON, and more folds are added to it.

The volumes are made by `synthaug phantom Dataset802_Phantom3D --cases 30 --test_cases 0 --shape '(48,48,12)'`. All
slices of one are changed in the same way, and noise is drawn for each. Nothing was looked at before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from audit_rates import ROOT, PlantedSampler, centred, only_training, rate, slices
from scipy import ndimage

from scripts.audit.audit import EXTRACTOR_SEED, EXTRACTOR_STEPS
from scripts.audit.items import load_audit_data
from scripts.audit.memorisation import find_copies
from scripts.audit.thresholds import LEVELS, Check, check_levels
from scripts.data.cases import Case, open_cases
from scripts.data.provenance import code_revision
from scripts.data.scaling import Scaling
from scripts.data.training_set import load_training_set
from scripts.networks.features import train_segmentation_features
from scripts.pool.writing import write_pool


def moved(x: np.ndarray, turn: float = 0, zoom: float = 1, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """An image (channels, height, width) turned by degrees, enlarged, and shifted by shares of its sides."""
    angle = np.deg2rad(turn)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    sides = np.array(x.shape[1:])
    offset = (sides - 1) / 2 - matrix @ ((sides - 1) / 2 + np.array(shift) * sides)
    return np.stack([ndimage.affine_transform(c, matrix, offset, order=1, cval=float(c.min())) for c in x])


def elastic(x: np.ndarray, pixels: float, smooth: float, rng: np.random.Generator) -> np.ndarray:
    """Every pixel moved by up to so many pixels, along noise that a Gaussian has smoothed."""
    move = np.stack([ndimage.gaussian_filter(rng.normal(size=x.shape[1:]), smooth) for _ in range(2)])
    move *= pixels / np.hypot(*move).max()
    places = np.indices(x.shape[1:]) + move
    return np.stack([ndimage.map_coordinates(channel, places, order=1, mode="nearest") for channel in x])


def change(kind: str, x: np.ndarray, other: np.ndarray, span: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A training slice after what `kind` says; `other` is one of another patient, on the same grid."""
    name, *words = kind.split()
    sizes = [float(word) for word in words if word.replace(".", "").isdigit()]
    sign = rng.choice([-1, 1])
    low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
    if name == "exact":
        return x
    if name == "flipped":
        return x[:, :, ::-1]
    if name == "noise":
        return x + sizes[0] / 100 * span * rng.normal(size=x.shape)
    if name == "shifted":
        return moved(x, shift=tuple(sizes[0] / 100 * rng.choice([-1, 1], 2)))
    if name == "turned":
        return moved(x, turn=sign * sizes[0])
    if name == "scaled":
        return moved(x, zoom=sizes[0])
    if name == "gamma":
        return low + (high - low) * ((x - low) / np.maximum(high - low, 1e-9)) ** sizes[0]
    if name == "inverted":
        return high + low - x
    if name == "mosaic":
        axis = 1 if "rows" in words else 2
        result = np.moveaxis(x.copy(), axis, 0)
        cut = round(sizes[0] / 100 * len(result))
        result[cut:] = np.moveaxis(other, axis, 0)[cut:]
        return np.moveaxis(result, 0, axis)
    if name == "elastic":
        return elastic(x, sizes[0], sizes[1], rng)
    if name == "blend":
        return sizes[0] / 100 * x + (1 - sizes[0] / 100) * other
    assert name == "together"
    return change(
        "noise 3", moved(change("gamma 1.3", x, other, span, rng), sign * 20, 0.85, (0.05, -0.05)), other, span, rng
    )


def change_masked(
    kind: str, x: np.ndarray, other: np.ndarray, span: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The same in a space whose background is 0 and no intensity, as every sample's is there: it stays 0."""
    floor = np.minimum(x.min(axis=(1, 2), keepdims=True), other.min(axis=(1, 2), keepdims=True)) - 0.05 * span
    body, of_other = (np.where(values != 0, values - floor, 0) for values in (x, other))
    result = change(kind, body, of_other, span, rng)
    if kind.split()[0] in ("noise", "inverted"):
        inside = body > 0
    else:
        inside = (
            ndimage.gaussian_filter(result, (0, 1, 1)) > 0.05 * span if kind == "together" else result > 0.025 * span
        )
    return np.where(inside.any(axis=0), result + floor, 0)


# What the issue asks for, none of it among what was looked at before, but for the kinds without a size.
GOAL = [
    "exact", "flipped", "noise 10 %", "shifted 3 %", "shifted 10 %", "turned 15 degrees", "turned 90 degrees",
    "gamma 1.5", "inverted", "scaled 0.7", "scaled 1.15", "mosaic 50 % columns", "elastic 5 pixels, smooth 10",
    "blend 70 %",
]  # fmt: skip
VOLUMES = [
    "exact", "flipped", "noise 10 %", "shifted 3 %", "shifted 10 %", "turned 15 degrees", "scaled 0.7",
    "mosaic 50 % columns", "blend 70 %",
]  # fmt: skip
# Larger, to see where it ends; and all at once.
FURTHER = [
    "blend 50 %", "noise 20 %", "shifted 15 %", "turned 37 degrees", "gamma 2.5", "scaled 0.55", "scaled 1.5",
    "mosaic 35 % rows", "elastic 10 pixels, smooth 10", "blend 60 %", "together",
]  # fmt: skip
BACKGROUND = ", changed with its background"
TUNED_ON = [
    "noise 6 %", "shifted 6 %", "turned 25 degrees", "turned 160 degrees", "gamma 0.65", "scaled 0.8", "scaled 1.25",
    "mosaic 50 % rows", "elastic 5 pixels, smooth 8", "elastic 7 pixels, smooth 12", "blend 75 %", "blend 65 %",
    "turned 10 degrees, scaled 0.9, gamma 1.3, noise 3 %",
]  # fmt: skip


def slice_by_slice(
    kind: str, x: np.ndarray, other: np.ndarray, span: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A volume (channels, depth, height, width) whose slices are all changed in the same way."""
    stacked = change(
        kind, x.reshape(-1, *x.shape[2:]), other.reshape(-1, *x.shape[2:]), np.repeat(span, x.shape[1], 0), rng
    )
    return stacked.reshape(x.shape)


def volumes(cases: list[Case], scaling: Scaling) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Patient, image and label of every case, in the units of a generator's samples: raw cases have each their own."""
    return [(case.id, scaling.invert(scaling.apply(case))[0], case.label) for case in cases]


def measure(
    dataset_dir: Path, fold: int, grid: int, count: int, further: int, seed: int, background: bool, depth: int | None
) -> dict:
    """Plant and compare; what flags each planted item. `background`: it is changed as well, also where it is 0."""
    size = (grid, grid) if depth is None else (grid, grid, depth)
    kinds = [*GOAL, *FURTHER] if depth is None else VOLUMES
    rng = np.random.default_rng([seed, fold])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = load_training_set(open_cases(dataset_dir, fold), size)
        known = only_training(dataset_dir, fold, folder)
        alone = load_training_set(open_cases(known, 0), size)
        both = list(data.cases.training()), list(data.cases.validation())
        seen, new = (volumes(cases, data.scaling) if depth else slices(cases) for cases in both)
        new = new if depth else new[::2]
        span = np.subtract(data.scaling.high, data.scaling.low).reshape(-1, 1, 1)
        masked = data.scaling.masked
        planted = [("new", patient, "", x, m) for patient, x, m in new]
        for kind in kinds:
            for index in rng.permutation(len(seen))[: further if kind in FURTHER and not depth else count]:
                patient, x, m = seen[index]
                other, y, _ = seen[rng.choice([i for i, (p, *_) in enumerate(seen) if p != patient])]
                fill = 0 if masked else y.min()
                y = np.stack([centred(channel - fill, m.shape) + fill for channel in y])
                way = slice_by_slice if depth else change_masked if masked and not background else change
                planted.append((kind, patient, other, way(kind, x, y, span, rng), m))
        pairs = [(np.ascontiguousarray(x, np.float32), m.astype(np.uint8)) for *_, x, m in planted]
        pool = write_pool(PlantedSampler(alone, pairs), folder / "pool", len(pairs), progress=False)
        started = time.process_time()
        audit = load_audit_data(pool, known, lambda items, title: items)
        training = audit.real.subset(~audit.held_out)
        images, masks = training.images.float(), training.masks.float()
        if depth:  # as the audit shows them to its extractor
            images, masks = (values.movedim(4, 1).flatten(0, 1) for values in (images, masks))
            images, masks = (values[masks.flatten(1).any(dim=1)] for values in (images, masks))
        extractor = train_segmentation_features(
            images, masks, steps=EXTRACTOR_STEPS, seed=EXTRACTOR_SEED + seed, device="cpu"
        )
        found = find_copies(audit, extractor.cpu(), check_levels(None), lambda items, title: items)
    entries = []
    for index, (kind, patient, other, *_) in enumerate(planted):
        scores = {check.key: round(float(check.samples[index]), 4) for check in found.checks}
        named = found.copied(index)["case"] in (patient, other)
        entries.append({"kind": kind, "patient": patient, "named": named, "scores": scores})
    real = {check.key: np.round(check.real[audit.judged], 4).tolist() for check in found.checks}
    return {
        "entries": entries,
        "real": {"patients": audit.real.groups[audit.judged].tolist(), "scores": real},
        "cpu_seconds": time.process_time() - started,
        "commit": code_revision(),
    }


def judge(fold: dict) -> int:
    """Write to every entry which checks flag it; the number of real items that thresholds of other patients flag."""
    patients = np.array(fold["real"]["patients"])
    flagged = np.zeros(len(patients), bool)
    for entry in fold["entries"]:
        entry["flags"] = []
    for key, real in fold["real"]["scores"].items():
        samples = np.array([entry["scores"][key] for entry in fold["entries"]])
        check = Check(key, "", True, LEVELS[key], np.array(real), samples, patients, np.zeros(len(real), bool))
        flagged |= check.real_flagged
        for entry in np.array(fold["entries"])[check.flagged]:
            entry["flags"].append(key)
    return int(flagged.sum())


def as_markdown(data: dict) -> str:
    """A table a data set."""
    lines = ["# Copies that the audit finds", ""]
    for name, record in data.items():
        folds = record["folds"]
        commits = sorted({fold["commit"][:7] for fold in folds.values()})
        entries = [entry for fold in folds.values() for entry in fold["entries"]]
        checks = list(entries[0]["scores"])
        flagged = sum(judge(fold) for fold in folds.values())
        seconds = sum(fold["cpu_seconds"] for fold in folds.values())
        real = sum(len(fold["real"]["patients"]) for fold in folds.values())
        lines += [
            f"## {name}",
            "",
            f"`{record['command']}`; folds {', '.join(folds)}, seed {record['seed']}, CPU, commits "
            f"{', '.join(commits)}. Caught: called a copy by any check. "
            f"Named: the nearest case is one that it was made of. The checks took {seconds / len(entries):.2f} CPU "
            f"seconds a planted one, reading and the extractor with them. Of {real} real training "
            f"{'volumes' if record.get('depth') else 'slices'}, each without its own patient, {flagged} were called "
            "copies by thresholds of the others.",
            "",
            "| planted | caught | of | 95 % interval (Wilson) | named | "
            + " | ".join(key.removeprefix("memorisation_") for key in checks)
            + " |",
            "|---|---|---|---|---|" + "---|" * len(checks),
        ]
        for kind in ["new", *GOAL, *FURTHER]:
            chosen = [entry for entry in entries if entry["kind"] == kind]
            if not chosen:
                continue
            found = rate([bool(e["flags"]) for e in chosen], [e["patient"] for e in chosen])
            low, high = (f"{100 * value:.0f}" for value in found["wilson"])
            title = f"**unseen patients ({found['patients']})**" if kind == "new" else kind
            of_checks = " | ".join(str(sum(check in e["flags"] for e in chosen)) for check in checks)
            named = "" if kind == "new" else str(sum(e["named"] for e in chosen))
            count = sum(bool(e["flags"]) for e in chosen)
            lines.append(f"| {title} | {count} | {len(chosen)} | {low} to {high} % | {named} | {of_checks} |")
        lines.append("")
    lines += [
        "Sizes that the checks were looked at with while they were written, on fold 0 of Dataset501_LGG and the "
        "phantom: "
        + "; ".join(TUNED_ON)
        + ". Pixels are those of the data set; smooth is the standard deviation of the Gaussian in pixels, and the "
        "size the largest displacement. Shifts go along both axes. Together: gamma 1.3, turned by 20 degrees, scaled "
        "by 0.85, shifted by 5 % and 3 % of noise.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure folds and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path, help="nnU-Net preprocessed data set, configuration 2d")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--count", type=int, default=10, help="planted of each kind of the goal and fold")
    parser.add_argument("--further", type=int, default=5, help="the same of the further ones")
    parser.add_argument("--grid", type=int, default=64)
    parser.add_argument("--depth", type=int, help="of the grid: volumes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--background", action="store_true", help="change it as well where it is 0 and no intensity")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/audit_copies.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    name = arguments.dataset_dir.name + (BACKGROUND if arguments.background else "")
    record = data.setdefault(name, {"folds": {}})
    record |= {"grid": arguments.grid, "seed": arguments.seed, "depth": arguments.depth}
    record["command"] = (
        f"python benchmarks/audit_copies.py {arguments.dataset_dir.name} --folds "
        f"{' '.join(map(str, arguments.folds))} --count {arguments.count} --further "
        f"{arguments.further}{' --background' * arguments.background}"
        + (f" --depth {arguments.depth} --grid {arguments.grid}" if arguments.depth else "")
    )
    for fold in arguments.folds:
        record["folds"][str(fold)] = measure(
            arguments.dataset_dir,
            fold,
            arguments.grid,
            arguments.count,
            arguments.further,
            arguments.seed,
            arguments.background,
            arguments.depth,
        )
        arguments.output.write_text(json.dumps(data) + "\n")
        arguments.output.with_suffix(".md").write_text(as_markdown(data))
        print(f"fold {fold}: {record['folds'][str(fold)]['cpu_seconds']:.0f} CPU seconds", file=sys.stderr)
    print(as_markdown(data))


if __name__ == "__main__":
    main()
