"""A pool: synthetic image and label pairs as NIfTI, with one record a sample in `pool.json`.

A pool grows in `POOL.partial` and is renamed when it is whole, so that an interrupted one is never mistaken for a
finished one, and the same command finishes it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.data.description import DatasetDescription
from scripts.data.files import write_json
from scripts.data.mask_features import mask_features
from scripts.errors import InputError

FORMAT = "synthaug-pool"
FORMAT_VERSION = 1
RECORDS = "records.jsonl"
SETTINGS = "settings.json"


def read_pool(pool_dir: str | Path) -> dict:
    """The record of a finished pool.

    Raises:
        InputError: the folder holds no finished pool of this format.
    """
    folder = Path(pool_dir)
    path = folder / "pool.json"
    if not path.is_file():
        partial = partial_dir(folder)
        if partial.is_dir():
            raise InputError(
                f"{folder} is not finished ({partial.name} holds what was made)",
                "a finished pool",
                "run the same sampling command again: it goes on where it stopped",
            )
        raise InputError(f"no pool.json in {folder}", "a pool folder", "sample a pool with configs/inference.json")
    record = json.loads(path.read_text())
    if record.get("format") != FORMAT or record.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} is of format {record.get('format')} {record.get('format_version')}",
            f"{FORMAT} {FORMAT_VERSION}",
            "sample the pool again with this version",
        )
    return record


def partial_dir(pool_dir: str | Path) -> Path:
    """Where a pool lies while it grows."""
    folder = Path(pool_dir)
    return folder.with_name(folder.name + ".partial")


def load_sample(pool_dir: str | Path, sample_id: str, num_image_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Image `(channel, depth, height, width)` float32 and label `(depth, height, width)` uint8 of one sample."""
    folder = Path(pool_dir)
    paths = [folder / "images" / f"{sample_id}_{channel:04d}.nii.gz" for channel in range(num_image_channels)]
    image = np.stack([np.asarray(nib.load(path).dataobj, np.float32).T for path in paths])  # type: ignore[attr-defined]
    label = np.asarray(nib.load(folder / "labels" / f"{sample_id}.nii.gz").dataobj).T  # type: ignore[attr-defined]
    return image, label.astype(np.uint8)


def write_pool(
    sampler: Callable[..., Iterator[dict]],
    pool_dir: str | Path,
    num_samples: int,
    seed: int = 0,
    batch_size: int = 16,
    condition: dict | None = None,
    progress: bool = True,
) -> Path:
    """Draw samples until the pool holds `num_samples`, and store them as they come.

    A pool that exists with the same generator and seed grows to `num_samples`; an interrupted one is finished.
    Sample `i` depends on (generator, seed, i) alone.

    Args:
        sampler: a bundle's sampler (see `scripts.sampling`), with attributes `provenance` and `description`.
        pool_dir: the pool's folder.
        num_samples: size of the finished pool, at least 1.
        seed: of the samples.
        batch_size: how many are made at once; it does not change them.
        condition: passed to the sampler.
        progress: show a bar with the time left.

    Raises:
        InputError: a setting cannot be used, or the folder holds something else.
    """
    if int(num_samples) < 1 or int(batch_size) < 1 or int(seed) < 0:
        raise InputError(
            f"num_samples {num_samples}, batch_size {batch_size}, seed {seed}",
            "num_samples and batch_size at least 1, seed at least 0",
            "mend the setting",
        )
    folder = Path(pool_dir)
    partial = partial_dir(folder)
    description: DatasetDescription = sampler.description  # type: ignore[attr-defined]
    provenance: dict = sampler.provenance  # type: ignore[attr-defined]
    settings = {"seed": int(seed), "condition": condition, "weights_sha256": provenance["weights_sha256"],
                **sampler.settings}  # type: ignore[attr-defined]  # fmt: skip
    sampler.check(condition)  # type: ignore[attr-defined]
    records = _reopen(folder, partial, settings, int(num_samples))
    if len(records) == num_samples and folder.exists():
        return folder

    from tqdm import tqdm

    start = records[-1]["seed"] + 1 if records else 0
    batches = sampler(num_samples - len(records), seed=seed, batch_size=batch_size, condition=condition, start=start)
    spacing = [float(value or 1.0) for value in provenance["space"]["spacing"]]
    with (
        open(partial / RECORDS, "a") as log,
        tqdm(total=num_samples, initial=len(records), unit="sample", desc="sampling", disable=not progress) as bar,
        _removed_when_empty(partial, records),
    ):
        for batch in batches:
            for image, label, drawn in zip(batch["image"], batch["label"], batch["record"], strict=True):
                record = _store(partial, len(records), image, label, drawn, description, spacing)
                log.write(json.dumps(record) + "\n")
                records.append(record)
                bar.update()
            log.flush()
            os.fsync(log.fileno())
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dimension": sampler.dimension,  # type: ignore[attr-defined]
        "dataset": description.as_record(),
        "space": provenance["space"],
        "provenance": provenance,
        "sampling": {**settings, "num_samples": len(records), "candidates": records[-1]["seed"] + 1},
        "samples": records,
    }
    write_json(partial / "pool.json", content)
    (partial / RECORDS).unlink()
    partial.rename(folder)
    (folder / SETTINGS).unlink()
    return folder


@contextmanager
def _removed_when_empty(partial: Path, records: list[dict]) -> Iterator[None]:
    """A pool that could not make a single sample leaves no folder behind: its settings are what must change."""
    try:
        yield
    except InputError:
        if not records:
            shutil.rmtree(partial)
        raise


def _reopen(folder: Path, partial: Path, settings: dict, num_samples: int) -> list[dict]:
    """Records of what is already there; leaves `partial` ready to be written to, unless the pool is whole."""
    if folder.exists() and partial.exists():
        raise InputError(f"{folder} and {partial}", "one of the two", "remove the one that you do not want")
    if folder.exists():
        (folder / SETTINGS).unlink(missing_ok=True)  # stopped between the rename and this
        found = read_pool(folder)
        same = {key: found["sampling"].get(key) for key in settings} == settings
        if not same or len(found["samples"]) > num_samples:
            raise InputError(
                f"{folder} holds {len(found['samples'])} samples drawn with "
                f"{ {key: found['sampling'].get(key) for key in settings} }",
                f"a new folder, or at most {num_samples} samples drawn with {settings}",
                "choose another --output_dir, or remove the pool",
            )
        if len(found["samples"]) == num_samples:
            return found["samples"]
        write_json(folder / SETTINGS, settings)
        folder.rename(partial)
        (partial / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in found["samples"]))
        (partial / "pool.json").unlink()
        return found["samples"]
    if (partial / SETTINGS).is_file():
        if json.loads((partial / SETTINGS).read_text()) != settings:
            raise InputError(
                f"{partial} is an interrupted pool with other settings",
                f"{settings}",
                f"finish it with its own settings ({(partial / SETTINGS).read_text().strip()}) or remove it",
            )
        whole = (partial / "pool.json").is_file()  # stopped between the last record and the rename
        records = json.loads((partial / "pool.json").read_text())["samples"] if whole else _read_records(partial)
        if len(records) > num_samples:
            raise InputError(
                f"{partial} is an interrupted pool of {len(records)} samples already",
                f"at least as many (num_samples is {num_samples})",
                "give a larger --num_samples, or remove it",
            )
        (partial / RECORDS).write_text("".join(json.dumps(record) + "\n" for record in records))
        (partial / "pool.json").unlink(missing_ok=True)
        return records
    if partial.exists():
        raise InputError(f"{partial}, which is no pool", "a name that is free", "choose another folder, or remove it")
    for name in ("images", "labels"):
        (partial / name).mkdir(parents=True, exist_ok=True)
    write_json(partial / SETTINGS, settings)
    return []


def _read_records(partial: Path) -> list[dict]:
    """Whole lines of the log; a line that a stop cut short is drawn again."""
    records: list[dict] = []
    if (partial / RECORDS).is_file():
        for line in (partial / RECORDS).read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


def _store(
    folder: Path, number: int, image: np.ndarray, label: np.ndarray, drawn: dict, description: DatasetDescription,
    spacing: list[float],
) -> dict:  # fmt: skip
    """Write one pair; arrays are `(channel, [depth,] height, width)` and `([depth,] height, width)`."""
    name = f"syn_{number:06d}"
    affine = np.diag([*spacing[::-1], 1.0])
    volume = label if label.ndim == 3 else label[None]
    for channel, values in enumerate(image):
        values = values if values.ndim == 3 else values[None]
        _save(
            np.ascontiguousarray(values.T, np.float32),
            affine,
            folder / "images" / f"{name}_{channel:04d}.nii.gz",
        )
    _save(np.ascontiguousarray(volume.T, np.uint8), affine, folder / "labels" / f"{name}.nii.gz")
    foreground = np.asarray(description.to_channels(label).any(axis=0))
    return {
        "id": name,
        **drawn,
        "features": mask_features(foreground, spacing[-label.ndim :]),
        "decision": "keep",
        "reason": None,
    }


def _save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)  # type: ignore[attr-defined]
