"""Preprocessed cases as plain arrays, to be read where nnU-Net is not: on a machine that only trains generators."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..runtime.errors import InputError
from ..runtime.files import read_record, replacing, write_json

MANIFEST = "prepared.json"  # written last: a folder without it is not finished


class PlainArrays:
    """Reader of `CASE.npz`, with `data` float32 (channel, depth, height, width) and `seg` int16 of the same grid."""

    def __init__(self, folder: Path):
        self.folder = folder

    def identifiers(self) -> list[str]:
        """Every case of the folder."""
        return sorted(path.stem for path in self.folder.glob("*.npz"))

    def load(self, case_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Image and segmentation of a case; -1 where nnU-Net saw nothing."""
        with np.load(self.folder / f"{case_id}.npz", allow_pickle=False) as arrays:
            return arrays["data"], arrays["seg"]


def write_prepared(
    dataset_dir: str, output_dir: str, configurations: list[str] | None = None, plans: str = "nnUNetPlans"
) -> Path:
    """Copy a preprocessed data set as plain arrays, for machines without nnU-Net, blosc2 and SimpleITK.

    Plans, folds and dataset.json come along, so that trainings give the same files, and their pools may come back and
    enter nnU-Net here. Cases that are there are not written again. Prints the new folder.

    Args:
        dataset_dir: nnU-Net's preprocessed data set, such as nnUNet_preprocessed/Dataset501_LGG.
        output_dir: Where a folder of the same name is made.
        configurations: Of the plans, such as '["2d"]'; by default 2d and 3d_fullres where both are there.
        plans: The name of the plans.

    Example:
        synthaug prepare /data/nnUNet_preprocessed/Dataset501_LGG prepared
    """
    from .cases import PreprocessedCases

    source, target = Path(dataset_dir), Path(output_dir) / Path(dataset_dir).absolute().name
    if target.absolute() == source.absolute():
        raise InputError(f"output_dir {output_dir}, which holds {source.name}", "another folder", "give another one")
    chosen = _configurations(source, plans) if configurations is None else list(configurations)
    if not chosen:
        raise InputError("no configurations", "one or more of the plans", "such as --configurations '[\"2d\"]'")
    opened = {name: PreprocessedCases(source, 0, plans, name) for name in chosen}  # writes the folds where none are
    target.mkdir(parents=True, exist_ok=True)
    (target / MANIFEST).unlink(missing_ok=True)
    for name in ("dataset.json", "splits_final.json", f"{plans}.json"):
        with replacing(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
    for cases in opened.values():
        folder = target / cases.space["data_identifier"]
        for case_id in cases.identifiers():
            path = folder / f"{case_id}.npz"
            if not path.is_file():
                image, label = cases.arrays(case_id)
                with replacing(path) as temporary, open(temporary, "wb") as file:
                    np.savez_compressed(file, data=image.astype(np.float32), seg=label.astype(np.int16))
    write_json(target / MANIFEST, {"configurations": chosen, "plans": plans})
    return target


def plain_arrays(dataset_dir: Path, folder: Path) -> PlainArrays | None:
    """The reader of a folder of plain arrays; None where nnU-Net wrote it.

    Raises:
        InputError: the copy was interrupted.
    """
    if not any(folder.glob("*.npz")) or any(folder.glob("*.pkl")):
        return None
    if not (dataset_dir / MANIFEST).is_file():
        raise InputError(
            f"{dataset_dir} holds no {MANIFEST}", "a whole copy by synthaug prepare", "give that command again"
        )
    return PlainArrays(folder)


def _configurations(source: Path, plans: str) -> Sequence[str]:
    path = source / f"{plans}.json"
    required: dict[str, type | tuple[type, ...]] = {"configurations": dict}
    known = read_record(path, required, "restore the plans")["configurations"] if path.is_file() else {"2d": {}}
    there = [name for name in ("2d", "3d_fullres") if name in known]
    return [name for name in there if (source / known[name].get("data_identifier", "")).is_dir()] or ["2d"]
