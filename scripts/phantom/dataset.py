"""Phantom data sets in nnU-Net's raw format: brains with glioma or head-and-neck PET, no patient data."""

from __future__ import annotations

import gzip
import json
import tempfile
from numbers import Integral
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ..runtime.errors import InputError
from . import flair, pet
from .fields import Case

_SMALLEST, _LARGEST = (32, 32, 8), 512
_DATASETS = {
    ("flair", 1): {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "tumor": 1}},
    ("flair", 4): {
        "channel_names": {str(i): name for i, name in enumerate(flair.SEQUENCES)},
        "labels": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": [3]},
        # What a region leaves when the next is drawn over it: oedema, necrosis, enhancing tumour.
        "regions_class_order": [1, 2, 3],
    },
    ("pet", 1): {"channel_names": {"0": "PET"}, "labels": {"background": 0, "GTVp": 1}},
}


def write_phantom(
    output_dir: str | Path,
    modality: str = "flair",
    cases: int = 30,
    test_cases: int | None = None,
    seed: int = 0,
    channels: int = 1,
    shape: tuple[int, int, int] | None = None,
) -> Path:
    """Write an nnU-Net raw data set of phantom patients with their masks, and return its folder.

    `modality` "flair": skull-stripped brains with a glioma, int16, 0 outside the brain; one channel with the
    label "tumor" (FLAIR abnormality), or four (T1, T1c, T2, FLAIR) with the BraTS regions. "pet": head and
    neck in SUV (float32) with the label "GTVp". `test_cases` is a third of `cases` unless given. `shape` is a
    grid (x, y, z) over the same field of view; without it every case has its own, near 96 x 96 x 21.

    A case depends on (seed, split, index), modality, channels and shape alone, and its files are the same to
    the byte each time. The folder appears once it is complete. Raises InputError before any work.
    """
    target = Path(output_dir).expanduser().absolute()
    _check(target, modality, cases, test_cases, seed, channels, shape)
    grid = None if shape is None else tuple(int(n) for n in shape)
    test_cases = max(1, cases // 3) if test_cases is None else test_cases
    jobs = [("Tr", i) for i in range(cases)] + [("Ts", i) for i in range(test_cases)]

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.partial-", dir=target.parent) as temporary:
        draft = Path(temporary) / target.name
        for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (draft / folder).mkdir(parents=True)
        for split, index in tqdm(jobs, desc=f"phantom {modality}", unit="case"):
            stream = np.random.SeedSequence(int(seed), spawn_key=(int(split == "Ts"), index))
            rng = np.random.default_rng(stream)
            if modality == "flair":
                case = flair.make_case(rng, grid, channels)
            else:
                case = pet.make_case(rng, grid)
            name = f"{modality}_{index:03d}" if split == "Tr" else f"{modality}_test_{index:03d}"
            _write_case(draft, split, name, case)
        description = {
            **_DATASETS[modality, channels],
            "numTraining": int(cases),
            "file_ending": ".nii.gz",
            "description": "Phantom made by synthaug; no patient data.",
            "phantom": {"modality": modality, "seed": int(seed), "channels": int(channels), "shape": grid},
        }
        (draft / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            target.rmdir()
        draft.rename(target)
    return target


def _write_case(folder: Path, split: str, name: str, case: Case) -> None:
    for channel, image in enumerate(case.images):
        _write_nifti(folder / f"images{split}" / f"{name}_{channel:04d}.nii.gz", image, case.affine)
    _write_nifti(folder / f"labels{split}" / f"{name}.nii.gz", case.label, case.affine)


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    # gzip keeps the time of writing and the file's name unless told otherwise.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check(target: Path, modality, cases, test_cases, seed, channels, shape) -> None:
    if modality not in ("flair", "pet"):
        raise InputError(f"modality {modality!r}", "flair, pet", "choose one of the two modalities")
    if not _whole(channels) or (modality, channels) not in _DATASETS:
        allowed = ", ".join(str(c) for m, c in _DATASETS if m == modality)
        raise InputError(
            f"channels {channels!r} for modality {modality}",
            allowed,
            "4 channels (T1, T1c, T2, FLAIR) come with modality flair",
        )
    if not _whole(cases) or cases < 1:
        raise InputError(f"cases {cases!r}", "a whole number, at least 1", "ask for one training case or more")
    if test_cases is not None and (not _whole(test_cases) or test_cases < 0):
        raise InputError(
            f"test_cases {test_cases!r}", "a whole number, at least 0", "leave it out for a third of cases"
        )
    if not _whole(seed) or seed < 0:
        raise InputError(f"seed {seed!r}", "a whole number, at least 0", "choose a seed such as 0")
    if shape is not None:
        sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
        fits = len(sizes) == 3 and all(
            _whole(n) and low <= n <= _LARGEST for n, low in zip(sizes, _SMALLEST, strict=True)
        )
        if not fits:
            raise InputError(
                f"shape {shape!r}",
                f"three whole numbers x, y, z from {_SMALLEST} to {(_LARGEST,) * 3}",
                "give a grid such as (128, 128, 24), or leave it out",
            )
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file", "a new or empty folder", "choose another output folder")
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target} is not empty", "a new or empty folder", "choose another folder or remove this one")
