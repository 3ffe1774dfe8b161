"""A pool: synthetic image and label pairs as NIfTI, with one record a sample in `pool.json`.

A pool grows in `POOL.partial` and is renamed when it is whole, so that an interrupted one is never mistaken for a
finished one, and the same command finishes it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nnunet_plugin.pool_format import FORMAT, FORMAT_VERSION, contents_sha256
from torch.utils.data import IterableDataset

from ..data.cases import array_axes
from ..data.mask_features import mask_features
from ..runtime.errors import InputError
from ..runtime.files import read_record, write_json, write_text
from ..runtime.ranks import PeerError, Ranks

FIELDS: dict[str, type | tuple[type, ...]] = {
    "dimension": int, "dataset": dict, "space": dict, "provenance": dict, "samples": list,
}  # fmt: skip
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
    record = read_record(path, {}, "restore it, or sample the pool again")
    if record.get("format") != FORMAT or record.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} is of format {record.get('format')} {record.get('format_version')}",
            f"{FORMAT} {FORMAT_VERSION}",
            f"run: synthaug hash-pool {folder}" if record.get("format_version") == 1 else "sample the pool again",
        )
    read_record(path, FIELDS, "restore it, or sample the pool again")
    if not all(isinstance(sample, dict) and isinstance(sample.get("id"), str) for sample in record["samples"]):
        raise InputError(f"{path} with samples that have no id", "a record a sample", "sample the pool again")
    return record


def partial_dir(pool_dir: str | Path) -> Path:
    """Where a pool lies while it grows."""
    folder = Path(pool_dir).absolute()  # "." has no name
    return folder.parent / f"{folder.name}.partial"


def load_sample(pool_dir: str | Path, sample_id: str, num_image_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Image `(channel, depth, height, width)` float32 and label `(depth, height, width)` uint8 of one sample.

    The axes are the generator's, also where the files have those of raw volumes.

    Raises:
        InputError: a file cannot be read, or they are of several shapes.
    """
    folder = Path(pool_dir)
    paths = [folder / "images" / f"{sample_id}_{channel:04d}.nii.gz" for channel in range(num_image_channels)]
    channels = [_load(path).astype(np.float32) for path in paths]
    label = _load(folder / "labels" / f"{sample_id}.nii.gz").astype(np.uint8)
    if len({label.shape, *(channel.shape for channel in channels)}) > 1:
        got = f"sample {sample_id}: image {channels[0].shape} and label {label.shape} (depth, height, width)"
        raise InputError(got, "one shape", "sample the pool again")
    return np.stack(channels), label


def sample_shape(pool_dir: str | Path, sample_id: str) -> tuple[int, ...]:
    """`(depth, height, width)` of one sample, of which no voxel is read."""
    with _readable(path := Path(pool_dir) / "labels" / f"{sample_id}.nii.gz"):
        image, axes = _opened(path)
        return tuple(image.shape[axis] for axis in axes)


def write_pool(
    sampler: Any,
    pool_dir: str | Path,
    num_samples: int,
    seed: int = 0,
    batch_size: int = 16,
    condition: dict | None = None,
    progress: bool = True,
) -> Path:
    """Draw samples until the pool holds `num_samples`, and store them as they come; see `PoolRounds`."""
    rounds = PoolRounds(sampler, pool_dir, num_samples, seed, batch_size, condition, progress)
    for candidates in rounds:
        rounds.make(candidates)
    return rounds.folder


class PoolRounds(IterableDataset):
    """What a pool still lacks, as ranges of candidates: iterate, and give each range to `make` before the next.

    In a MONAI evaluator it is both the data and the `iteration_update`. A pool that exists with the same generator and
    settings grows to `num_samples`; an interrupted one is finished. Sample `i` depends on (generator, settings, seed,
    i) alone. Under `torchrun` all processes draw and write, and the pool is the same whatever their number.

    Args:
        sampler: a bundle's sampler (see `scripts.sampling.sampler.Sampler`).
        pool_dir: the pool's folder.
        num_samples: size of the finished pool, at least 1.
        seed: of the samples.
        batch_size: how many each process makes before they are stored; it does not change them.
        condition: passed to the sampler.
        progress: show a bar with the time left.

    Raises:
        InputError: a setting cannot be used; while iterating also: the folder holds something else, or another process
            writes to it.
    """

    def __init__(
        self,
        sampler: Any,
        pool_dir: str | Path,
        num_samples: int,
        seed: int = 0,
        batch_size: int = 16,
        condition: dict | None = None,
        progress: bool = True,
    ):
        if int(num_samples) < 1 or int(batch_size) < 1 or int(seed) < 0:
            raise InputError(
                f"num_samples {num_samples}, batch_size {batch_size}, seed {seed}",
                "num_samples and batch_size at least 1, seed at least 0",
                "mend the setting",
            )
        sampler.check(condition)
        self.sampler, self.folder, self.partial = sampler, Path(pool_dir), partial_dir(pool_dir)
        self.num_samples, self.seed, self.batch_size = int(num_samples), int(seed), int(batch_size)
        self.condition, self.progress = condition, progress
        weights = sampler.provenance["weights_sha256"]
        settings = {"seed": self.seed, "condition": condition, "weights_sha256": weights, **sampler.settings}
        self.settings = json.loads(json.dumps(settings))  # as it will be read again

    def __iter__(self) -> Iterator[range]:
        """Yield the candidates that this process makes next, until the pool is whole, and finish it."""
        with ExitStack() as self.held:
            self.ranks = self.held.enter_context(Ranks())
            if self._open():
                return
            while self.made < self.num_samples:
                count = min(self.batch_size * self.ranks.size, self.num_samples - self.made)
                self.candidates = self.sampler.next_candidates(self.candidate, count)
                yield _share(self.candidates, self.sampler.samples_per_pass, self.ranks)
            with self.ranks.together():
                if self.ranks.is_first:
                    self.log.close()
                    _finish(self.folder, self.partial, self.records, self.settings, self.sampler)

    def __call__(self, engine: Any, candidates: range) -> dict[str, int]:
        """Make a round, as the `iteration_update` of a MONAI evaluator; the output says how far the pool is."""
        self.make(candidates)
        return {"made": self.made, "candidates": self.candidate}

    def make(self, candidates: range) -> None:
        """Draw what `__iter__` gave this process, and store it, together with the other processes."""
        try:
            self._make(candidates)
        except BaseException:
            self.held.__exit__(*sys.exc_info())
            raise

    def _open(self) -> bool:
        """Find out where the pool stands, and get ready to go on; True if there is nothing left to do."""
        self.records: list[dict] = []  # on the first rank alone
        start = None
        with self.ranks.together():
            if self.ranks.is_first:
                self.held.enter_context(_only_writer(self.folder))
                self.records = _reopen(self.folder, self.partial, self.settings, self.num_samples)
                start = (len(self.records), _next_candidate(self.records), self.folder.exists())
        self.made, self.candidate, finished = self.ranks.gather(start)[0]
        if not finished and self.ranks.is_first:
            self.held.enter_context(_removed_when_empty(self.partial, self.records))
            self.log = self.held.enter_context(open(self.partial / RECORDS, "a"))
            self.bar = self.held.enter_context(_bar(self.num_samples, self.made, self.progress))
        return finished

    def _make(self, candidates: range) -> None:
        ranks, sampler = self.ranks, self.sampler
        with ranks.together():
            drawn = [item for item in sampler.draw(candidates, self.seed, self.condition) if item is not None]
        kept = ranks.gather(len(drawn))
        first = self.made + sum(kept[: ranks.rank])
        with ranks.together():
            drawn = drawn[: max(0, self.num_samples - first)]
            stored = [_store(self.partial, first + i, item, sampler) for i, item in enumerate(drawn)]
            del drawn  # before the next are made
        new = [record for part in ranks.gather(stored) for record in part]
        with ranks.together():
            if ranks.is_first:
                # Only now: a record that stands in the log has its files.
                self.log.write("".join(json.dumps(record) + "\n" for record in new))
                self.log.flush()
                os.fsync(self.log.fileno())
                self.records += new
                self.bar.update(len(new))
        self.made, self.candidate = self.made + len(new), self.candidates.stop
        sampler.check_yield(self.candidate, self.made)


def _finish(folder: Path, partial: Path, records: list[dict], settings: dict, sampler: Any) -> None:
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dimension": sampler.dimension,
        "dataset": sampler.description.as_record(),
        "space": sampler.provenance["space"],
        "real_anatomy": sampler.real_anatomy,
        "provenance": sampler.provenance,
        "sampling": {**settings, "num_samples": len(records), "candidates": _next_candidate(records)},
        "samples": records,
    }
    write_record(partial / "pool.json", content)
    (partial / RECORDS).unlink()
    (partial / SETTINGS).unlink()
    partial.rename(folder)


def write_record(path: Path, record: dict) -> None:
    """Write the record of a pool whole or not at all, a sample a line."""
    rest = {key: value for key, value in record.items() if key != "samples"}
    head = json.dumps({**rest, "samples": []}, indent=1).removesuffix("[]\n}")
    write_text(path, head + "[\n  " + ",\n  ".join(map(json.dumps, record["samples"])) + "\n ]\n}\n")


def _next_candidate(records: list[dict]) -> int:
    return records[-1]["seed"] + 1 if records else 0


def _share(candidates: range, samples_per_pass: int, ranks: Ranks) -> range:
    """The whole passes that this rank makes, in the order of the ranks."""
    first, last = candidates.start // samples_per_pass, -(-candidates.stop // samples_per_pass)
    start, stop = (first + (last - first) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    return range(max(start * samples_per_pass, candidates.start), min(stop * samples_per_pass, candidates.stop))


def _bar(total: int, initial: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, unit="sample", desc="sampling", disable=not progress)


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Refuse to write where another process does; the lock ends with the process that holds it."""
    from filelock import FileLock, Timeout

    path = partial_dir(folder).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}, which another process is writing", "one command at a time", "wait for the other, or end it"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # where a file in use cannot be removed, the release removes it
            path.unlink()
        lock.release()


@contextmanager
def _removed_when_empty(partial: Path, records: list[dict]) -> Iterator[None]:
    """A pool that could not make a single sample leaves no folder behind: its settings are what must change."""
    try:
        yield
    except PeerError:  # another rank may still be writing
        raise
    except InputError:
        if not records:
            shutil.rmtree(partial)
        raise


def _reopen(folder: Path, partial: Path, settings: dict, num_samples: int) -> list[dict]:
    """Records of what is already there; leaves `partial` ready to be written to, unless the pool is whole."""
    if folder.exists() and not (folder / "pool.json").exists():
        if not folder.is_dir() or any(folder.iterdir()) or folder.samefile("."):
            raise InputError(f"{folder}, which is no pool", "a name that is free", "give another --output_dir")
        folder.rmdir()
    if folder.exists() and partial.exists():
        raise InputError(f"{folder} and {partial}", "one of the two", "remove the one that you do not want")
    if folder.exists():
        before, records = _whole_pool(folder, settings)
        if before != settings or len(records) > num_samples:
            raise InputError(
                f"{folder} holds {len(records)} samples drawn with {before}",
                f"a new folder, or at most {num_samples} samples drawn with {settings}",
                "choose another --output_dir, or remove the pool",
            )
        if len(records) == num_samples:
            return records
        folder.rename(partial)
    elif (partial / "pool.json").is_file():  # stopped around the rename
        before, records = _whole_pool(partial, settings)
    elif (partial / SETTINGS).is_file():
        before, records = read_record(partial / SETTINGS, {}, f"remove {partial}"), _read_records(partial)
    elif any(path.is_file() and path.suffix != ".tmp" for path in partial.rglob("*")):
        raise InputError(f"{partial}, which is no pool", "a name that is free", "choose another folder, or remove it")
    else:
        before, records = settings, []
        for name in ("images", "labels"):
            (partial / name).mkdir(parents=True, exist_ok=True)
    if before != settings:
        raise InputError(
            f"{partial} is an interrupted pool with other settings",
            f"{settings}",
            f"finish it with its own settings ({before}) or remove it",
        )
    if len(records) > num_samples:
        raise InputError(
            f"{partial} is an interrupted pool of {len(records)} samples already",
            f"at least as many (num_samples is {num_samples})",
            "give a larger --num_samples, or remove it",
        )
    _remove_unrecorded(partial, {record["id"] for record in records})
    write_json(partial / SETTINGS, settings)
    write_text(partial / RECORDS, "".join(json.dumps(record) + "\n" for record in records))
    (partial / "pool.json").unlink(missing_ok=True)
    return records


def _whole_pool(folder: Path, settings: dict) -> tuple[dict, list[dict]]:
    """How a pool was drawn, in the words of `settings`, and its records."""
    found = read_pool(folder)
    return {key: found["sampling"].get(key) for key in settings}, found["samples"]


def _remove_unrecorded(partial: Path, known: set[str]) -> None:
    """Remove what a stop left half-written: the pool must be the one that an uninterrupted run makes."""
    for path in [*partial.glob("images/*"), *partial.glob("labels/*"), *partial.glob(".*.tmp")]:
        name = path.name.removesuffix(".nii.gz")
        if (name.rsplit("_", 1)[0] if path.parent.name == "images" else name) not in known:
            path.unlink()


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


def _store(folder: Path, number: int, item: dict, sampler: Any) -> dict:
    """Write one pair `(channel, [depth,] height, width)`, `([depth,] height, width)`, and return its record."""
    name = f"syn_{number:06d}"
    image, label, space = item["image"], item["label"], sampler.provenance["space"]
    spacing = [float(value or 1.0) for value in space["spacing"]]
    # Raw volumes get the axes of the raw files back, which nnU-Net's preprocessor expects.
    axis = space["slice_axis"] if space["kind"] == "raw" and label.ndim == 3 else None
    grid = spacing, axis, None if axis is None else sampler.provenance.get("directions")
    contents = {
        f"images/{name}_{channel:04d}.nii.gz": _nifti(np.asarray(values, np.float32), *grid)
        for channel, values in enumerate(image)
    }
    contents[f"labels/{name}.nii.gz"] = _nifti(np.asarray(label, np.uint8), *grid)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    foreground = np.asarray(sampler.description.to_channels(label).any(axis=0))
    return {
        "id": name,
        **item["record"],
        "sha256": contents_sha256(contents.values()),
        "features": mask_features(foreground, spacing[-label.ndim :]),
        "decision": "keep",
        "reason": None,
    }


def _nifti(array: np.ndarray, spacing: list[float], slice_axis: int | None, directions: Sequence | None) -> bytes:
    """The file of `([depth,] height, width)`; the header names the slice axis where it need not be the last.

    Programs that turn images must turn samples as the raw cases: `directions`, of older weights three signs. It is
    compressed at once and by runs alone: nibabel compresses each row on its own, and zlib's search for longer matches
    takes twice the time and finds none in floating-point noise.
    """
    order = np.argsort(array_axes(2 if slice_axis is None else slice_axis))  # to (x, y, z)
    volume = (array if array.ndim == 3 else array[None]).transpose(order)
    signs = (1, 1, 1) if directions is None else directions
    places = np.diag([*signs, 1.0]) if np.ndim(signs) == 1 else np.array([*signs, [0, 0, 0, 1]], float)
    affine = tuple((places * [*np.array(spacing)[order], 1]).ravel())
    content = _header(volume.shape, volume.dtype.str, affine, slice_axis) + volume.tobytes("F")
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    return packer.compress(content) + packer.flush()


@lru_cache(maxsize=32)
def _header(shape: tuple[int, ...], dtype: str, affine: tuple[float, ...], slice_axis: int | None) -> bytes:
    """What stands before the voxels of a file of this affine, row by row."""
    image = nib.Nifti1Image(np.zeros(shape, dtype), np.reshape(affine, (4, 4)))
    if slice_axis is not None:
        image.header.set_dim_info(slice=slice_axis)
    return image.to_bytes()[: -math.prod(shape) * np.dtype(dtype).itemsize]


def _load(path: Path) -> np.ndarray:
    """Read `(depth, height, width)`."""
    with _readable(path):
        image, axes = _opened(path)
        return np.asarray(image.dataobj).transpose(axes)


def _opened(path: Path) -> tuple[nib.Nifti1Image, tuple[int, int, int]]:
    """A file, and which of its axes are depth, height and width."""
    image = nib.Nifti1Image.from_filename(path)
    slice_axis = image.header.get_dim_info()[2]
    return image, array_axes(2 if slice_axis is None else slice_axis)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # readers raise many kinds
        raise InputError(f"{path} cannot be read ({error})", "the pool as it was sampled", "sample it again") from error
