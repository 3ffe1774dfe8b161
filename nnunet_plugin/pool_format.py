"""Pools as they lie on disk (format version 2): `pool.json` and NIfTI pairs, read and checked.

A pool of format 2 holds a hash of every sample's files, so that no other image takes a sample's place.
"""

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .errors import InputError
from .preprocessed import write_json, wrong_field
from .voxels import as_image, as_label

FORMAT = "synthaug-pool"
FORMAT_VERSION = 2
SPACES = ("nnunet_preprocessed", "raw")
AUDITED = "audit: "  # how the reasons of an audit begin; decisions of others are left as they are
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DEFLATE_RATIO = 1100  # gzip shrinks nothing further than 1032 times
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

    @cached_property
    def sample_hashes(self) -> dict[str, Any]:
        """Hash of each kept sample's files, see `files_sha256`."""
        kept = set(self.kept)
        return {sample["id"]: sample.get("sha256") for sample in self.content["samples"] if sample["id"] in kept}

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

    def files(self, sample: str) -> list[Path]:
        """Return all files of a sample, in the order of its hash."""
        return [*self.image_files(sample), self.label_file(sample)]


def is_safe_name(name: str) -> bool:
    """Whether a name can be part of a file name (letters, digits, `_`, `.`, `-`)."""
    return bool(_SAFE_NAME.fullmatch(name))


def is_sha256(value: object) -> bool:
    """Whether a value is a hash as pools and provenances hold them."""
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def files_sha256(files: Iterable[Path]) -> str:
    """Return one hash for the bytes of several files, in their order; where one ends and the next begins counts."""
    return contents_sha256(path.read_bytes() for path in files)


def contents_sha256(contents: Iterable[bytes]) -> str:
    """Return the hash that `files_sha256` finds for files of these bytes."""
    whole = hashlib.sha256()
    for content in contents:
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()


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

    Raises `InputError` on a pool that is missing, interrupted, corrupt, of another format or without samples.
    """
    pool = _read(folder)
    if pool.content["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"pool format version 1 in {pool.folder}, which ties no sample to its files",
            f"pool format version {FORMAT_VERSION}, which holds a hash of every sample",
            f"make sure that nobody changed its files, then run: synthaug hash-pool {pool.folder}",
        )
    for sample, sha256 in pool.sample_hashes.items():
        if not is_sha256(sha256):
            raise _corrupt(pool.folder / "pool.json", f"the sample {sample} has no usable sha256")
    return pool


def hash_pool(pool: str | Path) -> Path:
    """Take a pool of format 1 to format 2: write the hash of every sample's files to its pool.json.

    From then on a file of it that changes is refused. A pool of format 2 stays as it is. Returns the folder.

    Args:
        pool: The folder of a finished pool, as it was sampled.

    Example:
        synthaug hash-pool pool_fold0
    """
    read = _read(pool)
    if read.content["format_version"] == FORMAT_VERSION:
        return read.folder
    _check_painting(read)
    for sample in read.content["samples"]:
        files = read.files(sample["id"])
        if all(file.is_file() for file in files):  # what was dropped may be gone
            sample["sha256"] = files_sha256(files)
    write_json(read.folder / "pool.json", {**read.content, "format_version": FORMAT_VERSION})
    return read.folder


def _check_painting(pool: Pool) -> None:
    """Refuse a pool whose regions were painted by `regions_class_order` alone, as format 1 did, where that is wrong."""
    labels, order = pool.content["dataset"]["labels"], pool.content["dataset"].get("regions_class_order")
    regions = [set(value if isinstance(value, list) else [value]) for key, value in labels.items() if key != "ignore"]
    regions = [region for region in regions if region != {0}]
    if order is None:
        return
    for value in set().union(*regions):
        inside = [value in region for region in regions]
        painted = [number for number, is_inside in zip(order, inside, strict=False) if is_inside][-1]
        if [painted in region for region in regions] != inside:
            raise InputError(
                f"a pool whose label {value} was painted as {painted}, which is of other labels or regions "
                f"(regions_class_order {order} of {labels})",
                "label maps that mean what nnU-Net reads in them",
                "sample the pool again with this version",
            )


def _read(folder: str | Path) -> Pool:
    """Read a pool of any format version that is known."""
    folder = Path(folder)
    whole = folder.absolute()  # "." has no name
    partial = folder if whole.name.endswith(".partial") else whole.parent / f"{whole.name}.partial"
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
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, f"not valid JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{file} of another kind", f'"format": "{FORMAT}"', "give the folder of a synthaug pool")
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
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
        if files_sha256(pool.files(sample)) != pool.sample_hashes[sample]:
            raise InputError(
                f"sample {sample}, whose files are not those that its pool holds the hash of",
                "the files as they were sampled",
                'restore them, or sample the pool again, or set the decision of the sample to "drop" in pool.json',
            )
        # Not SimpleITK: its NIfTI reader silently turns NaN into 0.
        images = [_open_nifti(file) for file in image_files]
        label = _open_nifti(label_file)
        _check_grids(pool, sample, images, label)
        data = np.stack([as_image(np.asarray(i.dataobj), f).T for i, f in zip(images, image_files, strict=True)])
        segmentation = as_label(np.asarray(label.dataobj), label_file).T[None]
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"sample {sample}: {error}", "NIfTI files of one shape", "sample the pool again") from None
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
    return data, segmentation


_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
)


def _open_nifti(file: Path) -> nib.Nifti1Image:
    """Open a file whose header asks for no more than its bytes can hold, so that no memory is taken for what is not."""
    image = nib.Nifti1Image.from_filename(file)
    wanted = math.prod(int(size) for size in image.shape) * image.get_data_dtype().itemsize
    if wanted > _DEFLATE_RATIO * file.stat().st_size:
        raise ValueError(f"{file.name} asks for {wanted:.3g} bytes (shape {image.shape}), which it cannot hold")
    return image


def _check_grids(pool: Pool, sample: str, images: list[nib.Nifti1Image], label: nib.Nifti1Image) -> None:
    for file, image in zip(pool.image_files(sample), images, strict=True):
        if image.shape != label.shape or not np.allclose(image.affine, label.affine, rtol=1e-4, atol=1e-4):
            raise InputError(
                f"{file.name} and {sample}.nii.gz with different grids: {_grid(image)} and {_grid(label)}",
                "the same shape and affine for all channels and the label",
                "sample the pool again, or drop the sample in pool.json",
            )
    if len(label.shape) != 3 or (pool.dimension == 2 and label.shape[2] != 1):
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
    if wrong := wrong_field(content, _REQUIRED):
        raise _corrupt(file, wrong)
    if content["dimension"] not in (2, 3):
        raise _corrupt(file, f"`dimension` is {content['dimension']}")
    if content["space"]["kind"] not in SPACES:
        raise _corrupt(file, f"`space.kind` is {content['space']['kind']!r}")
    spacing = content["space"].get("spacing")
    if not isinstance(spacing, (list, type(None))):
        raise _corrupt(file, f"`space.spacing` is {spacing!r}")
    for path, numbers in (
        ("dataset.labels", [*content["dataset"]["labels"].values()]),
        ("dataset.regions_class_order", content["dataset"].get("regions_class_order") or []),
        ("space.spacing", [value or 1.0 for value in spacing or []]),
    ):
        if not all(isinstance(value, (int, float)) for part in _list(numbers) for value in _list(part)):
            raise _corrupt(file, f"`{path}` is {str(numbers)[:100]}")
    case_ids(content["provenance"])


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _kept_samples(file: Path, samples: list) -> tuple[str, ...]:
    for sample in samples:
        name = sample.get("id") if isinstance(sample, dict) else None
        if not isinstance(name, str) or not is_safe_name(name) or sample.get("decision") not in ("keep", "drop"):
            raise _corrupt(file, f"the sample record {str(sample)[:100]} has no usable id and decision")
        if sample["decision"] == "keep" and str(sample.get("reason")).startswith(AUDITED):
            raise InputError(
                f"{file}: the sample {name}, to be kept, with the reason for which an audit dropped it "
                f"({str(sample['reason'])[:100]})",
                "decisions as the audit wrote them, or of somebody with a reason of their own",
                'set its decision to "drop", or write why you keep it as its reason',
            )
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
        for file in pool.files(sample):
            if not file.is_file():
                raise InputError(
                    f"sample {sample} without {file.relative_to(pool.folder)}",
                    "an image file for each channel and a label file for every kept sample",
                    "sample the pool again, or drop the sample in pool.json",
                )


def _corrupt(file: Path, why: str) -> InputError:
    return InputError(f"a corrupt {file}: {why}", "a pool.json as sampling writes it", "sample the pool again")
