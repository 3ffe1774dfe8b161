"""Real training items and those of a pool, mixed as the nnU-Net plugin mixes them and refused where it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunet_plugin.identity import Identity
from nnunet_plugin.leakage import check_split, check_voxels, seen_cases
from nnunet_plugin.pool_format import Pool, read_pool, read_sample
from nnunet_plugin.preprocessed import check_leakage, check_space

from ..data.cases import Case, Cases, array_axes
from ..data.scaling import sample_scaling
from ..data.training_set import TrainingSet, _on_grid
from ..runtime.errors import InputError
from .augmentation import augmentation_factor


def first_cases(cases: Cases, num_real_cases: int | None, seed: int = 0) -> Cases:
    """The same cases with only the first `num_real_cases` of the fold's training cases, in a seeded order.

    Fewer are a part of more, so that arms with 10, 20, ... patients compare. None: all of them.

    Raises:
        InputError: the fold does not have so many.
    """
    train = cases.fold.train
    if num_real_cases is None:
        return cases
    if not 1 <= num_real_cases <= len(train):
        raise InputError(
            f"num_real_cases {num_real_cases}", f"1 to {len(train)}, the training cases of the fold", "set it, or null"
        )
    chosen = np.random.default_rng(seed).permutation(len(train))[:num_real_cases]
    fewer = copy(cases)
    fewer.fold = replace(cases.fold, train=[train[i] for i in sorted(chosen)])
    return fewer


@dataclass(frozen=True)
class PoolItems:
    """The samples of a pool on the grid of a training set.

    Attributes:
        items: `{"image": (channels + labels, *spatial_size) float32, "case": sample id}`.
        record: which pool it is: name, sha256 of `pool.json`, number of samples, cases that its generator saw; None
            without a pool.
    """

    items: list[dict[str, Any]]
    record: dict[str, Any] | None


def load_pool(
    pool_dir: str | Path | None, cases: Cases, data: TrainingSet, num_synthetic: int | None = None
) -> PoolItems:
    """Bring a pool's first `num_synthetic` samples with the decision "keep" to the grid of the real ones.

    Args:
        pool_dir: a finished pool, or None for real items alone.
        cases: all cases of the fold.
        data: the real items; a pool must be of their data set, space and dimension.
        num_synthetic: how many samples, 0 or more; None: all that are kept.

    Raises:
        InputError: the pool cannot be read, does not fit, has too few samples, or its generator saw a case that this
            fold is validated on.
    """
    if pool_dir is None:
        if num_synthetic:
            raise InputError(f"num_synthetic {num_synthetic} without a pool", "a pool", "set pool_dir")
        return PoolItems([], None)
    pool = read_pool(pool_dir)
    check_pool(pool, data.cases, len(data.geometry.spatial_size))
    check_cases(pool, cases, data.seen)
    wanted = len(pool.kept) if num_synthetic is None else num_synthetic
    if not 0 <= wanted <= len(pool.kept):
        raise InputError(
            f"num_synthetic {wanted}", f"0 to {len(pool.kept)}, the kept samples of {pool_dir}", "sample more"
        )
    items = [{"image": _read_on_grid(pool, sample, data), "case": sample} for sample in pool.kept[:wanted]]
    record = {
        "name": pool.folder.name,
        "sha256": pool.sha256,
        "samples": wanted,
        "generator_cases": list(pool.generator_cases),
    }
    return PoolItems(items, record if wanted else None)


def mixed_items(data: TrainingSet, pool: PoolItems, augmentation: str = "none") -> list[dict[str, Any]]:
    """Real items, their augmented copies, then synthetic items, for `ClassicalAugmentation`."""
    copies = range(augmentation_factor(augmentation))
    channels = data.num_image_channels
    numbered = [
        (i, {**item, "item": i, "foreground": bool(item["image"][channels:].any())})
        for i, item in enumerate(data.training)
    ]
    real = [{**item, "copy": copy, "synthetic": False} for copy in copies for _, item in numbered]
    return real + [{**item, "item": i, "copy": 0, "synthetic": True} for i, item in enumerate(pool.items)]


def check_pool(pool: Pool, cases: Cases, dimension: int) -> None:
    """Raise `InputError` when a pool is of another data set, dimension or space than the cases."""
    described, ours = pool.content["dataset"], cases.description.as_record()
    if different := sorted(key for key in ours if described.get(key) != ours[key]):
        raise InputError(
            f"a pool with {', '.join(f'{key} = {described.get(key)}' for key in different)}",
            ", ".join(f"{key} = {ours[key]}" for key in different),
            "use a pool of a generator trained on this data set",
        )
    if pool.dimension != dimension:
        raise InputError(
            f"a pool of dimension {pool.dimension}",
            f"a pool of dimension {dimension}, as spatial_size",
            "train on slices with a pool of slices, on volumes with a pool of volumes",
        )
    space = pool.content["space"]
    if pool.is_raw or cases.space["kind"] == "raw":
        if space.get("sha256") != cases.space["sha256"]:
            raise InputError(
                f"a pool in the {space['kind']} space {space.get('spacing')}",
                f"the {cases.space['kind']} space {cases.space['spacing']} of the cases",
                "train segmenter and generator on the same folder",
            )
    else:
        spacing = cases.space["spacing"][0 if cases.is_3d else 1 :]  # 2d does not resample the slices
        check_space(space, pool.dimension, cases.space, {**cases.space, "spacing": spacing})


def check_cases(pool: Pool, cases: Cases, read: Iterable[Mapping[str, Any]] = ()) -> None:
    """Raise `InputError` when the generator saw a validation case of the fold, or cases that nobody knows.

    Names can lie, so the voxels are compared, by the plugin's rule.

    Args:
        pool: whose generator it is.
        cases: all cases of the fold, in the space of the pool.
        read: those that have been read, `{"id", "sha256", "fingerprint"}`; the others that matter are read here.
    """
    provenance, fold = pool.content["provenance"], cases.fold
    seen, identifiers = seen_cases(provenance), {*fold.train, *fold.val}
    check_leakage(seen, fold.train, fold.val, fold.name)
    if unknown := sorted(set(seen) - identifiers):
        raise InputError(
            f"a generator trained on cases that the data set does not have: {', '.join(unknown)}",
            "cases of the data set, so that a leak can be excluded",
            "use the data set as it was when the generator was trained",
        )
    # Records without their validation cases are compared with the one split that is known here.
    others: list[dict[str, list[str]]] = [{"train": [], "val": []}] * (fold.name if isinstance(fold.name, int) else 0)
    check_split(provenance, [*others, {"train": fold.train, "val": fold.val}], identifiers)
    present = {case["id"]: Identity(case["sha256"], case["fingerprint"]) for case in read}
    present |= {name: cases.load(name).identity for name in sorted({*seen, *fold.val} - {*present})}
    check_voxels(seen, present, fold.val, fold.name)


def _read_on_grid(pool: Pool, sample: str, data: TrainingSet) -> torch.Tensor:
    """Image and mask channels of a sample `(channels + labels, *spatial_size)`, as those of the real items."""
    cases, scaling = data.cases, data.scaling
    image, label = read_sample(pool, sample, cases.description.known_integers)
    if pool.is_raw:
        # Samples came to the scanner's units by this one map; a case of its own would be scaled by its extremes.
        scaling = sample_scaling(pool.content["provenance"], pool.dimension)
        if pool.dimension == 3:  # raw volumes have the axes of the raw files
            order = [2 - axis for axis in array_axes(cases.space["slice_axis"])]
            image, label = (array.transpose(0, *(1 + axis for axis in order)) for array in (image, label))
    inside = (image != 0).any(axis=0) if cases.masked else np.ones(image.shape[1:], bool)
    with_mask, without = _on_grid(Case(sample, image, label[0], inside), cases, scaling, data.geometry)
    (item,) = with_mask + without
    return item["image"]
