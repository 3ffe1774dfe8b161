"""Imported pools: samples as nnU-Net's preprocessing writes cases, and `import.json`, which holds their hashes."""

import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes
from tqdm import tqdm

from .errors import InputError
from .identity import Identity
from .leakage import seen_cases
from .pool_format import Pool, files_sha256, is_sha256, read_sample
from .preprocessed import PreprocessedDataset, json_sha256, read_json, write_json

IMPORT_RECORD = "import.json"
IMPORT_FORMAT = "synthaug-import"
FORMAT_VERSION = 2
_ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")


def read_import(dataset: PreprocessedDataset, pool: str, fold: int | str) -> dict[str, Any]:
    """Read the record of an imported pool and check that its samples are those that were imported.

    `samples` are sorted ids, `sha256` is of what was imported; `seen` are the identities of the cases that the
    generator saw, by id, as they were in the preprocessed data.
    """
    folder = dataset.pool_folder(pool, fold)
    remedy = f"run add-pool for the pool {pool} and fold {fold}"
    if not folder.is_dir():
        present = sorted(path.parent.name for path in folder.parent.glob(f"fold_*/{IMPORT_RECORD}")) or ["none"]
        raise InputError(f"no imported pool {folder}", f"an imported fold, there is: {', '.join(present)}", remedy)
    record = read_json(folder / IMPORT_RECORD, remedy)
    if not _is_record(record):
        raise InputError(f"an unknown {folder / IMPORT_RECORD}", f"{IMPORT_FORMAT}, version {FORMAT_VERSION}", remedy)
    _check_samples(folder, record["samples"], remedy)
    seen = seen_cases(record["provenance"])
    if seen.keys() != record["seen"].keys():
        changed = ", ".join(sorted(seen.keys() ^ record["seen"].keys()))
        raise InputError(
            f"{folder / IMPORT_RECORD}, whose lists of the cases that the generator saw differ ({changed})",
            "the record that add-pool wrote", remedy,
        )  # fmt: skip
    return {
        **record,
        "samples": sorted(record["samples"]),
        "sha256": json_sha256({sample: pair[0] for sample, pair in record["samples"].items()}),
        "seen": {name: Identity(*identity) for name, identity in record["seen"].items()},
    }


def import_record(
    pool: Pool, pool_name: str, fold: int | str, configuration: dict[str, Any], seen: Mapping[str, Identity]
) -> dict[str, Any]:
    """Return what is recorded of an import, but for its samples.

    Args:
        pool: what is imported.
        pool_name, fold: where to.
        configuration: for which, resolved.
        seen: the generator's cases as they are in the preprocessed data.
    """
    return {
        "format": IMPORT_FORMAT,
        "format_version": FORMAT_VERSION,
        "pool": pool_name,
        "pool_sha256": pool.sha256,
        "fold": fold,
        "data_identifier": configuration["data_identifier"],
        "dimension": pool.dimension,
        "dataset": pool.content["dataset"],
        "space": pool.content["space"],
        "provenance": pool.content["provenance"],
        "seen": {name: list(identity) for name, identity in sorted(seen.items())},
    }


def needs_import(folder: Path, record: dict[str, Any], samples: Iterable[str], overwrite: bool) -> bool:
    """Whether samples must be written: nothing is there, or this pool's import is damaged, or `overwrite`.

    Raises `InputError` where another pool is there, or files that no import wrote.
    """
    if not folder.exists():
        return True
    foreign = sorted(path.name for path in folder.iterdir() if path.name != IMPORT_RECORD and not _is_sample(path))
    if foreign:
        raise InputError(
            f"{folder} with files that add-pool did not write: {', '.join(foreign[:5])}",
            "an imported pool, or a name that is free",
            "choose another pool_name, or move them away",
        )
    try:
        existing = read_json(folder / IMPORT_RECORD, "")
    except InputError:
        return True  # nobody can use it, and only add-pool writes such files
    # What the cases looked like may differ in rounding; that they are the same has been checked. The pool.json of an
    # import of format 1 has been hashed since.
    free = {"format_version", "seen"} | ({"pool_sha256"} if existing.get("format_version") == 1 else set())
    if different := [key for key in record if key not in free and existing.get(key) != record[key]]:
        if not overwrite:
            raise InputError(
                f"another pool in {folder} (different: {', '.join(different)})",
                "the same pool, or a name that is free",
                "choose another pool_name, or overwrite",
            )
        return True
    try:
        _check_samples(folder, existing["samples"] if _is_record(existing) else {}, "")
    except InputError:
        return True
    is_whole = _is_record(existing) and {*existing["samples"]} == {*samples}
    return overwrite or not is_whole or existing["seen"].keys() != record["seen"].keys()


def import_samples(
    pool: Pool, dataset: PreprocessedDataset, plans: dict[str, Any], configuration: dict[str, Any], folder: Path,
    record: dict[str, Any],
) -> None:  # fmt: skip
    """Write the kept samples as nnU-Net's preprocessing would, to a temporary folder that then takes its place."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    manager, config = PlansManager(plans), ConfigurationManager(configuration)
    label_manager = manager.get_label_manager(dataset.dataset_json)
    labels = set(map(int, label_manager.all_labels))
    if label_manager.has_ignore_label:
        labels.add(int(label_manager.ignore_label))
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.partial"):  # of a process that was killed: the lock is ours
        shutil.rmtree(stale)
    temporary, former = (folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial") for _ in range(2))
    temporary.mkdir()
    try:
        hashes = {}
        for sample in tqdm(pool.kept, desc=f"importing {record['pool']}", unit="sample", mininterval=1.0):
            image, label = read_sample(pool, sample, labels)
            target = str(temporary / sample)
            if pool.is_raw:
                files = [str(file) for file in pool.image_files(sample)]
                preprocessor = config.preprocessor_class(verbose=False)
                preprocessor.run_case_save(
                    target, files, str(pool.label_file(sample)), manager, config, dataset.dataset_json
                )
            else:
                _save_preprocessed(target, image, label, config, label_manager, record["space"]["spacing"])
            hashes[sample] = [pool.sample_hashes[sample], files_sha256(_sample_files(temporary, sample))]
        write_json(temporary / IMPORT_RECORD, {**record, "samples": hashes})
        if folder.exists():
            folder.rename(former)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _is_record(record: dict[str, Any]) -> bool:
    """Whether an import.json is of this format, with all that is read of it."""
    samples, seen = record.get("samples"), record.get("seen")
    return (
        (record.get("format"), record.get("format_version")) == (IMPORT_FORMAT, FORMAT_VERSION)
        and isinstance(samples, dict)
        and bool(samples)
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(is_sha256, pair)) for pair in samples.values())
        and isinstance(seen, dict)
        and bool(seen)
        and all(isinstance(pair, list) and len(pair) == 2 and is_sha256(pair[0]) for pair in seen.values())
        and all(isinstance(record.get(key), dict) for key in ("dataset", "space", "provenance"))
        and all(key in record for key in ("data_identifier", "dimension"))
    )


def _check_samples(folder: Path, samples: Mapping[str, Any], remedy: str) -> None:
    present = set(os.listdir(folder))
    known = {file.name for sample in samples for file in _sample_files(folder, sample)}
    if unknown := sorted(name for name in present - known if _is_sample(folder / name)):
        raise InputError(
            f"{folder / unknown[0]}, of which import.json says nothing", "the samples of import.json", remedy
        )
    for sample, (_, sha256) in samples.items():
        files = _sample_files(folder, sample)
        if not {file.name for file in files} <= present:
            raise InputError(f"sample {sample} missing in {folder}", "all samples of import.json", remedy)
        if files_sha256(files) != sha256:
            raise InputError(
                f"sample {sample} in {folder}, whose files are not those that were imported",
                "the files that import.json holds the hash of",
                remedy,
            )


def _sample_files(folder: Path, sample: str) -> list[Path]:
    return [folder / f"{sample}{ending}" for ending in _ENDINGS]


def _is_sample(path: Path) -> bool:
    return path.is_file() and path.name.endswith((".b2nd", ".pkl"))


def _save_preprocessed(
    target: str, image: np.ndarray, label: np.ndarray, config: Any, label_manager: Any, spacing: list
) -> None:
    """Save arrays (channel Z Y X), normalised and resampled already, as `run_case_save` does."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    masked = [channel for channel, uses_mask in enumerate(config.use_mask_for_norm) if uses_mask]
    if masked:
        # nnU-Net marks what lies outside the nonzero mask with -1 and sets the image to 0 there.
        nonzero = np.asarray(image[masked].any(axis=0))
        is_slice = image.shape[1] == 1
        inside = binary_fill_holes(nonzero[0] if is_slice else nonzero).reshape(label.shape)
        label[(label == 0) & ~inside] = -1
    has_regions = label_manager.has_regions
    classes = list(label_manager.foreground_regions if has_regions else label_manager.foreground_labels)
    if label_manager.has_ignore_label:
        classes.append([-1, *label_manager.all_labels])
    locations = DefaultPreprocessor._sample_foreground_locations(label, classes)
    blocks, chunks = comp_blosc2_params(image.shape, tuple(config.patch_size), image.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(label.shape, tuple(config.patch_size), label.itemsize)
    nnUNetDatasetBlosc2.save_case(
        image,
        label,
        {"class_locations": locations, "spacing": spacing},
        target,
        chunks=chunks,
        blocks=blocks,
        chunks_seg=chunks_seg,
        blocks_seg=blocks_seg,
    )
