"""Pools as they lie on disk (format version 1): `pool.json` and NIfTI pairs, read and checked."""

import hashlib
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .errors import InputError

FORMAT = "synthaug-pool"
FORMAT_VERSION = 1
SPACES = ("nnunet_preprocessed", "raw")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "dimension": int,
    "dataset.name": str,
    "dataset.channel_names": dict,
    "dataset.labels": dict,
    "space.kind": str,
    "provenance.dataset": str,
    "provenance.cases": list,
    "samples": list,
}


@dataclass(frozen=True)
class Pool:
    """A checked pool: its folder, its `pool.json` and the ids of the samples that its audit keeps, sorted."""

    folder: Path
    content: dict[str, Any]
    sha256: str
    kept: tuple[str, ...]

    @property
    def dimension(self) -> int:
        """2 for slices, 3 for volumes."""
        return self.content["dimension"]

    @property
    def is_raw(self) -> bool:
        """Whether the samples are in the scanner's space rather than in nnU-Net's preprocessed one."""
        return self.content["space"]["kind"] == "raw"

    @property
    def num_channels(self) -> int:
        """Image channels of each sample."""
        return len(self.content["dataset"]["channel_names"])

    @property
    def generator_cases(self) -> tuple[str, ...]:
        """Ids of the real cases that the generator was trained on."""
        return case_ids(self.content["provenance"])

    def image_files(self, sample: str) -> list[Path]:
        """Return one file for each channel."""
        return [self.folder / "images" / f"{sample}_{c:04d}.nii.gz" for c in range(self.num_channels)]

    def label_file(self, sample: str) -> Path:
        """Return the file of the integer label map."""
        return self.folder / "labels" / f"{sample}.nii.gz"


def is_safe_name(name: str) -> bool:
    """Whether a name can be part of a file name (letters, digits, `_`, `.`, `-`)."""
    return bool(_SAFE_NAME.fullmatch(name))


def case_ids(provenance: dict) -> tuple[str, ...]:
    """Return the ids of the generator's training cases; `InputError` where none are named.

    None at all are allowed only where a user said so of a pool that another program made.
    """
    cases = provenance.get("cases")
    if cases == [] and isinstance(provenance.get("adopted"), dict) and provenance["adopted"].get("saw") == "none":
        return ()
    ids = [case.get("id") if isinstance(case, dict) else case for case in cases or ()]
    names = tuple(case for case in ids if isinstance(case, str))
    if not names or len(names) < len(ids):
        raise InputError(
            f"a provenance whose cases are {str(cases)[:100]}",
            "the ids of the real cases that the generator was trained on",
            "sample again from a checkpoint with its provenance.json: without it no leak can be excluded",
        )
    return names


def read_pool(folder: str | Path) -> Pool:
    """Read and check `pool.json` and that each kept sample has its files; the arrays are not read yet.

    Raises `InputError` on a pool that is missing, interrupted, corrupt, of a newer format or without samples.
    """
    folder = Path(folder)
    partial = folder if folder.name.endswith(".partial") else folder.with_name(folder.name + ".partial")
    if folder == partial or (partial.is_dir() and not folder.is_dir()):
        raise InputError(
            f"an interrupted pool: {partial}",
            "a finished pool (a folder with pool.json, its name without .partial)",
            "run the sampling command again, it continues where it stopped",
        )
    file = folder / "pool.json"
    if not file.is_file():
        raise InputError(f"no pool.json in {folder}", "a pool folder", "check the path, or sample a pool first")
    text = file.read_bytes()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _corrupt(file, f"not valid JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file} of another kind", f'"format": "{FORMAT}"', "give the folder of a synthaug pool")
    version = content.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"pool format version {version} in {file}",
            f"1 to {FORMAT_VERSION}",
            "upgrade synthaug, or sample the pool with this version",
        )
    _check_fields(file, content)
    kept = _kept_samples(file, content["samples"])
    pool = Pool(folder, content, hashlib.sha256(text).hexdigest(), kept)
    _check_files(pool)
    return pool


def read_sample(pool: Pool, sample: str, labels: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return image (channel Z Y X) float32 and label (1 Z Y X) int16 of a sample, Z = 1 for slices.

    Raises `InputError` when channels and label differ in shape or affine, on values that are not finite, on a
    channel that is constant, and on labels other than `labels`.
    """
    image_files, label_file = pool.image_files(sample), pool.label_file(sample)
    try:
        # Not SimpleITK: its NIfTI reader silently turns NaN into 0.
        images = [nib.Nifti1Image.from_filename(file) for file in image_files]
        label = nib.Nifti1Image.from_filename(label_file)
        data = np.stack([np.asarray(image.dataobj, np.float32).T for image in images])
        segmentation = np.asarray(label.dataobj).T[None]
    except (OSError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"sample {sample}: {error}", "NIfTI files of one shape", "sample the pool again") from None
    for file, image in zip(image_files, images, strict=True):
        if image.shape != label.shape or not np.allclose(image.affine, label.affine, rtol=1e-4, atol=1e-4):
            raise InputError(
                f"{file.name} and {label_file.name} with different grids: {_grid(image)} and {_grid(label)}",
                "the same shape and affine for all channels and the label",
                "sample the pool again, or drop the sample in pool.json",
            )
    _check_shape(pool, sample, data, label)
    for file, channel in zip(image_files, data, strict=True):
        if not np.isfinite(channel).all() or channel.min() == channel.max():
            what = "is constant" if np.isfinite(channel).all() else "holds NaN or infinite values"
            raise InputError(
                f"{file} {what}",
                "finite images with a content",
                'audit the pool, or set the decision of the sample to "drop" in pool.json',
            )
    unknown = sorted(set(np.unique(segmentation).tolist()) - set(labels))
    if unknown:
        raise InputError(
            f"{label_file} with the labels {unknown}",
            f"the labels of dataset.json: {sorted(labels)}",
            "sample the pool from a generator of this data set",
        )
    return data, segmentation.astype(np.int16)


def _check_shape(pool: Pool, sample: str, data: np.ndarray, label: nib.Nifti1Image) -> None:
    if data.ndim != 4 or (pool.dimension == 2 and data.shape[1] != 1):
        raise InputError(
            f"sample {sample} of shape {label.shape} (x y z) in a pool of dimension {pool.dimension}",
            "slices as NIfTI of shape (width, height, 1), volumes of three axes",
            "sample the pool again",
        )
    expected = (pool.content["space"].get("spacing") or [])[::-1]
    spacing = nib.affines.voxel_sizes(label.affine)
    for axis in range(min(pool.dimension, len(expected))):
        wanted = expected[axis]
        if wanted is not None and not pool.is_raw and not np.isclose(wanted, spacing[axis], rtol=1e-3):
            raise InputError(
                f"sample {sample} with the spacing {spacing.tolist()} (x y z)",
                f"the spacing of its pool, {expected} (x y z)",
                "sample the pool again; its affines must be those of its space",
            )


def _grid(image: nib.Nifti1Image) -> str:
    return f"shape {image.shape} affine {np.round(image.affine, 4).tolist()}"


def _check_fields(file: Path, content: dict) -> None:
    for path, kind in _REQUIRED.items():
        value: Any = content
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise _corrupt(file, f"`{path}` is {value!r}")
    if content["dimension"] not in (2, 3):
        raise _corrupt(file, f"`dimension` is {content['dimension']}")
    if content["space"]["kind"] not in SPACES:
        raise _corrupt(file, f"`space.kind` is {content['space']['kind']!r}")
    case_ids(content["provenance"])


def _kept_samples(file: Path, samples: list) -> tuple[str, ...]:
    for sample in samples:
        name = sample.get("id") if isinstance(sample, dict) else None
        if not isinstance(name, str) or not is_safe_name(name) or sample.get("decision") not in ("keep", "drop"):
            raise _corrupt(file, f"the sample record {str(sample)[:100]} has no usable id and decision")
    names = [sample["id"] for sample in samples]
    if len(set(names)) < len(names):
        raise _corrupt(file, "sample ids occur twice")
    kept = tuple(sorted(sample["id"] for sample in samples if sample["decision"] == "keep"))
    if not kept:
        raise InputError(
            f'{file} with no sample to keep ({len(samples)} with the decision "drop")',
            'samples with the decision "keep"',
            "sample more, or audit with other thresholds",
        )
    return kept


def _check_files(pool: Pool) -> None:
    for sample in pool.kept:
        for file in [*pool.image_files(sample), pool.label_file(sample)]:
            if not file.is_file():
                raise InputError(
                    f"sample {sample} without {file.relative_to(pool.folder)}",
                    "an image file for each channel and a label file for every kept sample",
                    "sample the pool again, or drop the sample in pool.json",
                )


def _corrupt(file: Path, why: str) -> InputError:
    return InputError(f"a corrupt {file}: {why}", "a pool.json as sampling writes it", "sample the pool again")
