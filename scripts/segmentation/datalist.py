"""`synthaug datalist`: real cases of a fold and samples of a pool as a data list that MONAI's own programs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
from nnunet_plugin.mixing import draw
from nnunet_plugin.pool_format import Pool, read_pool

from ..data.cases import RawCases, open_cases
from ..pool.adopt import user_word
from ..runtime.errors import InputError
from ..runtime.files import refuse_foreign, write_json
from .mixing import check_cases, check_pool


def write_datalist(
    pool_dir: str | Path,
    dataset_dir: str | Path,
    output: str | Path,
    fold: int | str = 0,
    share: float = 0.5,
    seed: int = 0,
) -> str:
    """Write real cases and samples as a data list of MONAI, for Auto3DSeg and the model zoo's bundles.

    The format is that of the Medical Segmentation Decathlon, with absolute paths. `training` holds every real training
    case of the fold and as many kept samples as make `share` of all items: drawn by the seed, none twice while the pool
    lasts. `validation` holds the fold's validation cases, all real. No training item has a fold: the pool serves one
    alone, and Auto3DSeg takes `validation` as its only fold.

    Args:
        pool_dir: A finished pool of raw volumes.
        dataset_dir: The raw data set that it is for.
        output: The JSON file.
        fold: A number, or all (no validation); a pool whose generator saw the fold's validation is refused.
        share: Synthetic part of the training items, from 0 and below 1.
        seed: The seed of the draw.

    Returns:
        What was written, in words.

    Example:
        synthaug datalist pool_fold0 /data/nnUNet_raw/Dataset501_LGG list.json --fold 0 --share 0.5

    Raises:
        InputError: pool, data set and fold do not fit together, or the generator saw a validation case.
    """
    refuse_foreign(output, '"nnunet_fold"')
    both = FoldAndPool.open(pool_dir, dataset_dir, fold, share)
    cases, pool, train, wanted = both.cases, both.pool, both.train, both.places
    synthetic = [both.samples[i] for i in sorted(draw(len(pool.kept), wanted, seed, 0).tolist())]
    word = user_word(pool.content)
    description = cases.description
    content = {
        "name": description.name,
        "description": f"Fold {cases.fold.name} of {description.name} with samples of the pool {pool.folder.name}."
        + (f" {word}" if word else ""),
        "modality": description.channel_names,
        "labels": _labels(description.labels),
        "tensorImageSize": "3D",
        "numTraining": len(train) + wanted,
        "numTest": 0,
        "pool": {"name": pool.folder.resolve().name, "sha256": pool.sha256, "cases": list(pool.generator_cases)},
        "nnunet_fold": cases.fold.name,
        "share": share,
        "seed": seed,
        "training": train + synthetic,
        "validation": [{**item, "fold": 0} for item in both.val],
        "test": [],
    }
    path = write_json(output, content)
    times = f", drawn from {len(pool.kept)}" + (" more than once" if wanted > len(pool.kept) else "")
    said = (
        f"{len(train)} real and {wanted} synthetic cases{times} to train on, {len(both.val)} real ones to validate on."
    )
    return "\n".join(filter(None, (said, word, str(path))))


@dataclass(frozen=True)
class FoldAndPool:
    """Files of a fold's cases and of the kept samples of a pool that fits them, as items of MONAI's data lists.

    `places` synthetic items beside `train` are `share` of all.
    """

    cases: RawCases
    pool: Pool
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    places: int

    @classmethod
    def open(cls, pool_dir: str | Path, dataset_dir: str | Path, fold: int | str, share: float) -> FoldAndPool:
        """Read both.

        Raises:
            InputError: pool, data set, fold and share do not fit together, or the generator saw a validation case.
        """
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise InputError(f"share {share!r}", "a number from 0 and below 1", "mend the share")
        cases = open_cases(dataset_dir, fold)
        pool = read_pool(pool_dir)
        if not isinstance(cases, RawCases) or not pool.is_raw or pool.dimension == 2:
            kind = "slices" if pool.dimension == 2 else "volumes"
            raise InputError(
                f"a pool of {kind} in the {pool.content['space']['kind']} space for {dataset_dir}",
                "raw volumes and their raw data set (imagesTr), which other programs can read",
                "train the generator of volumes on the raw data set, or adopt volumes for it",
            )
        check_pool(pool, cases, 3)
        check_cases(pool, cases)
        _check_directions(pool, cases)
        train, val = (
            [_item(*cases.files_of(name), False) for name in names] for names in (cases.fold.train, cases.fold.val)
        )
        samples = [_item(pool.image_files(name), pool.label_file(name), True) for name in pool.kept]
        return cls(cases, pool, train, val, samples, round(share / (1 - share) * len(train)))


def _item(images: list[Path], label: Path, is_synthetic: bool) -> dict[str, Any]:
    """One path of an image of one channel, a list of paths of several, as MONAI's `LoadImaged` takes them."""
    paths = [str(path.absolute()) for path in images]
    return {"image": paths if len(paths) > 1 else paths[0], "label": str(label.absolute()), "synthetic": is_synthetic}


def _labels(labels: dict[str, int | list[int]]) -> dict[str, str]:
    """`dataset.json` names integers; the Decathlon numbers names. A label in several regions is named after them."""
    numbers: dict[int, list[str]] = {}
    for name, value in labels.items():
        for number in value if isinstance(value, list) else [value]:
            numbers.setdefault(number, []).append(name)
    return {str(number): ", ".join(names) for number, names in sorted(numbers.items())}


def _check_directions(pool: Pool, cases: RawCases) -> None:
    """Other programs turn images to one orientation by their affines, so those must say of both what they are."""
    real = "".join(nib.aff2axcodes(cases.affine_of(cases.fold.train[0])))
    got = "".join(nib.aff2axcodes(nib.Nifti1Image.from_filename(pool.label_file(pool.kept[0])).affine))
    if got != real:
        raise InputError(
            f"a pool whose files say that their axes point to {got}",
            f"{real}, as the real cases, whose arrays the samples follow",
            "sample the pool again with this version, or set the affines of its files",
        )
