"""What a cell does: `python -m scripts.experiment.work RUN CELL`, a process of its own, wherever it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..data.provenance import code_revision, package_versions, read_provenance
from ..packaging.bundle_files import bundle_command, bundle_dir, known_settings
from ..pool.from_real import COPY_PASTE, FROM_REAL
from ..runtime.errors import InputError
from ..runtime.files import write_json
from ..runtime.kinds import WORDS
from .accepted import defaults
from .cells import Cell
from .parent import end_with_parent, timed
from .protocol import ADDED, NNUNET, SEGMENTATION
from .record import choose_device, device_words, num_parameters, num_processes
from .run_folder import RunFolder
from .stages import follow

DONE, FAILED, BUSY = 0, 1, 75


def run_cell(run_dir: str | Path, cell_id: str) -> int:
    """Do one cell, unless it is done or another process is at it; returns `DONE`, `FAILED` or `BUSY`."""
    run = RunFolder(run_dir)
    cell, folder = run.cells[cell_id], run.folder(cell_id)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", blocking=False):
            return DONE if run.has_files(cell_id) else _do(run, cell, folder)
    except Timeout:
        return BUSY


def _do(run: RunFolder, cell: Cell, folder: Path) -> int:
    sha256 = run.sha256[cell.id]
    begun = {"kind": cell.kind, "settings": cell.settings, "needs": cell.needs, "settings_sha256": sha256}
    write_json(folder / "settings.json", begun)
    (folder / "failure.json").unlink(missing_ok=True)
    start = time.time()
    try:
        with timed(folder) as time_before:
            values = WORK[cell.kind](cell, run, folder)
    except Exception as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        write_json(folder / "failure.json", {"error": str(error)[:2000], "finished": _now()})
        return FAILED
    write_json(folder / "result.json", {
        "cell": cell.id,
        "settings_sha256": sha256,
        "values": values,
        "files": [run.within(path) for path in _files(cell, run, folder, values)],
        "seconds": round(time_before["earlier"] + time.time() - start, 1),
        "finished": _now(),
        "device": device_words(choose_device()),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "versions": package_versions(),
        "code_revision": code_revision(),
    })  # fmt: skip
    return DONE


def _files(cell: Cell, run: RunFolder, folder: Path, values: dict[str, Any]) -> list[Path]:
    """What other cells read of a finished one besides its values."""
    if cell.kind in ("source", "data"):
        folders = [run.resolve(values[name]) for name in ("dataset_dir", "raw_dir") if name in values]
        return [folder / "dataset.json" for folder in folders]
    if cell.kind == "audit":
        return [_pool(cell, run) / "audit.json"]
    trained = "nnUNet_results" if cell.settings.get("bundle") == NNUNET else "models/model.pt"
    names = {"generator": "models/model.pt", "pool": "pool/pool.json", "train": trained}
    return [folder / names[cell.kind]] if cell.kind in names else []


def call(command: list[str], cwd: Path | None = None) -> None:
    """Run a command, its output being the cell's.

    Raises:
        InputError: it failed; holds its first error, or its last lines.
    """
    with subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    ) as process:
        try:
            tail = follow(process, sys.stdout)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        raise InputError(
            f"status {process.returncode}: " + "\n    ".join(tail),
            "a command that ends well",
            "mend the cause and give the same command again: finished cells are kept",
        )


def _run_bundle(bundle: str, files: tuple[str, ...], overrides: dict[str, Any], processes: int = 1) -> None:
    call(bundle_command(files, overrides, processes), bundle_dir(bundle))


def _place(cell: Cell, run: RunFolder) -> dict[str, Any]:
    """The overrides that say which cases a bundle reads."""
    s = cell.settings
    read = {key: s[key] for key in ("plans", "configuration", "fold", "seed")}
    return {"dataset_dir": str(_dataset(cell, run)), **read}


def _dataset(cell: Cell, run: RunFolder) -> Path:
    return run.resolve(run.needed(cell, "data")["dataset_dir"])


def _pool(cell: Cell, run: RunFolder) -> Path:
    return run.folder(cell.needs["pool"]) / "pool"


def _source(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    from .dataset import make_source  # imports MONAI, as do others; most cells need not wait for it

    return {name: run.within(path) for name, path in make_source(run.settings, folder, call).items()}


def _data(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    from .dataset import make_view

    s = cell.settings
    source = run.resolve(run.needed(cell, "source")["dataset_dir"])
    view, folds = make_view(source, folder, s["real"], s["plans"], s["configuration"], s.get("inner"))
    return {"dataset_dir": run.within(view), "folds": folds}


def _generator(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    s = cell.settings
    overrides = {"bundle_root": str(folder), **_place(cell, run), **s.get("settings", {})}
    _run_bundle(s["bundle"], ("train.json", *s.get("overlays", ())), overrides)
    models = folder / "models"
    provenance = read_provenance(models / "provenance.json", models / "model.pt")
    training = {key: provenance["training"][key] for key in ("iterations", "epochs")}
    return {"parameters": num_parameters(models / "model.pt"), "cases": len(provenance["cases"]), **training}


def _make_pool(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    from ..metrics.sharpness import pool_sharpness
    from ..pool.writing import read_pool
    from ..report.pool import pool_cases, pool_sheet
    from ..sampling.copy_paste import write_copy_paste
    from .repeats import write_repeats

    s, start = cell.settings, time.monotonic()
    if s["bundle"] in FROM_REAL:
        size = s.get("settings", {}).get("spatial_size")
        where = {
            "pool_dir": folder / "pool",
            "num_samples": s["num_samples"],
            "spatial_size": size,
            **_place(cell, run),
        }
        write_copy_paste(**where) if s["bundle"] == COPY_PASTE else write_repeats(s["bundle"], **where)
    else:
        known = known_settings(bundle_dir(s["bundle"]) / "configs", "inference.json")
        overrides = {
            "bundle_root": str(run.folder(cell.needs["generator"])),
            "output_dir": str(folder / "pool"),
            "dataset_dir": str(_dataset(cell, run)),  # which a painter of lesions paints into
            "num_samples": s["num_samples"],
            "seed": s["seed"],
            **{key: value for key, value in s.get("settings", {}).items() if key in known and value != WORDS.get(key)},
            **s.get("sampling", {}),
        }
        _run_bundle(s["bundle"], ("inference.json", *s.get("overlays", ())), overrides, num_processes(choose_device()))
    seconds = time.monotonic() - start
    cases = pool_cases(folder / "pool", _dataset(cell, run))
    pool_sheet(folder / "pool", cases)
    record = read_pool(folder / "pool")
    return {
        "samples": len(record["samples"]),
        "candidates": record["sampling"]["candidates"],
        "seconds_per_sample": seconds / len(record["samples"]),
        "sharpness": pool_sharpness(folder / "pool", cases),
    }


def _audit(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    from ..audit.agreement import SegmenterSettings
    from ..audit.audit import EXTRACTOR_STEPS, audit_pool
    from ..audit.usefulness import usefulness_settings, usefulness_words

    options = cell.settings["options"]
    names = (("folds", "segmenter_folds"), ("steps", "segmenter_steps"))
    segmenter = SegmenterSettings(**{name: options[key] for name, key in names if key in options})
    names = (("steps", "usefulness_steps"), ("threshold", "usefulness_threshold"))
    usefulness = usefulness_settings(**{name: options[key] for name, key in names if key in options})
    words = audit_pool(
        _pool(cell, run), _dataset(cell, run), options.get("thresholds"), seed=cell.settings["seed"],
        segmenter=segmenter, extractor_steps=options.get("extractor_steps", EXTRACTOR_STEPS),
        usefulness=usefulness,
    )  # fmt: skip
    print(words)
    record = json.loads((_pool(cell, run) / "audit.json").read_text())
    shares = {"dropped": record["decisions"]["share"], "real_dropped": record["real_dropped"]["share"]}
    copies = {key: record["memorisation"][key] for key in ("flagged", "n", "share", "interval")}
    found = {"words": words.splitlines(), "kept": _num_kept(_pool(cell, run)), **shares, "copies": copies}
    if record["usefulness"] is not None:
        found["usefulness"] = {**record["usefulness"], "words": usefulness_words(record["usefulness"])}
    return found


def _num_kept(pool: Path) -> int:
    from ..pool.writing import read_pool

    return sum(sample["decision"] == "keep" for sample in read_pool(pool)["samples"])


def _metrics(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    from ..metrics.evaluate_pool import EvaluationSettings
    from ..report.pool_metrics import write_pool_metrics

    options = dict(cell.settings["options"])
    chosen = {key: options.pop(key) for key in ("feature_steps", "resamples") if key in options}
    settings = EvaluationSettings(seed=cell.settings["seed"], **chosen)
    pool, data = _pool(cell, run), _dataset(cell, run)
    write_pool_metrics(pool, data, folder, settings=settings, **options)
    record = json.loads((folder / "metrics.json").read_text())
    return {key: record[key] for key in ("figures", "comparisons", "intervals", "held_out_cases", "training_cases")}


def _train(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    s = cell.settings
    pool = _pool(cell, run) if "pool" in cell.needs else None
    # An audit may leave fewer than were asked for; the report says how many there were.
    number = min(s["num_synthetic"], _num_kept(pool)) if pool else 0
    if s["bundle"] == NNUNET:
        from . import nnunet

        return nnunet.train(s, _dataset(cell, run), pool, number, folder, call)
    mixing = {key: None if value == ADDED else value for key, value in s["mixing"].items()}
    chosen = {"pool_dir": str(pool), "num_synthetic": number} if pool else {}
    settings = {**s["settings"], **length_of(s)}
    overrides = {"bundle_root": str(folder), **_place(cell, run), **settings, **mixing, **chosen}
    _run_bundle(s["bundle"], ("train.json", *s["overlays"]), overrides)
    provenance = read_provenance(folder / "models" / "provenance.json", folder / "models" / "model.pt")
    training = provenance["training"]
    return {
        "steps": training["iterations"],
        "parameters": num_parameters(folder / "models" / "model.pt"),
        "cases": len(provenance["cases"]),
        "num_synthetic": number,
        "share": training["mixing"]["share"],
        "plateau": training.get("plateau") or None,
    }


def length_of(s: dict[str, Any]) -> dict[str, int]:
    """The epochs of an arm of another length than the others."""
    if "epochs_factor" not in s:
        return {}
    epochs = {**defaults(s["bundle"], ["train.json", *s["overlays"]]), **s["settings"]}["max_epochs"]
    return {"max_epochs": max(1, round(s["epochs_factor"] * epochs))}


def _evaluate(cell: Cell, run: RunFolder, folder: Path) -> dict[str, Any]:
    s = cell.settings
    trained = run.folder(cell.needs["train"])
    raw = run.needed(cell, "source").get("raw_dir")
    raw_dir = None if raw is None else run.resolve(raw)
    if s["bundle"] == NNUNET:
        from . import nnunet

        return nnunet.evaluate(s, _dataset(cell, run), raw_dir, trained, folder, call)
    overrides = {"bundle_root": str(trained), **_place(cell, run), **s["settings"], "split": s["split"],
                 "output_dir": str(folder), "raw_dir": None if raw_dir is None else str(raw_dir)}  # fmt: skip
    _run_bundle(SEGMENTATION, ("train.json", *s["overlays"], "evaluate.json"), overrides)
    found = json.loads((folder / "metrics.json").read_text())
    return {key: found[key] for key in ("split", "cases", "summary", "surface_tolerance_mm", "grid")}


WORK: dict[str, Callable[[Cell, RunFolder, Path], dict[str, Any]]] = {
    "source": _source,
    "data": _data,
    "generator": _generator,
    "pool": _make_pool,
    "audit": _audit,
    "metrics": _metrics,
    "train": _train,
    "evaluate": _evaluate,
}


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    end_with_parent(int(sys.argv[3]))
    sys.exit(run_cell(sys.argv[1], sys.argv[2]))
