"""Reading what a challenge hands out with a name in every error, and writing voxels and affine unchanged."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nnunet_plugin.voxels import check_type

from ..runtime.errors import InputError


def named_files(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder by name without ending; hidden ones (`._name`, `_name`) are no data."""
    files = sorted(folder.glob("*.nii.gz")) if folder.is_dir() else []
    return {path.name.removesuffix(".nii.gz"): path for path in files if path.name[0] not in "._"}


def refuse_missing(case_id: str, paths: list[Path]) -> None:
    """Raise `InputError` when a file of a case is not there, with what is there."""
    for path in paths:
        if not path.is_file():
            found = sorted(p.name for p in path.parent.glob("*"))[:6] if path.parent.is_dir() else []
            raise InputError(
                f"case {case_id}: no file {path} (found there: {', '.join(found) or 'nothing'})",
                f"a file {path.name}",
                "unpack the data set again, or move the case out of the folder",
            )


def open_nifti(case_id: str, path: Path) -> Any:
    """Open a NIfTI file; its voxels are read when they are asked for."""
    try:
        return nib.load(path)
    except Exception as error:  # readers raise many kinds
        raise _unreadable(case_id, path, error) from error


def read_voxels(case_id: str, path: Path, scaled: bool = True) -> np.ndarray:
    """Voxels `(x, y, z[, channel])`, all finite; with `scaled` False as stored, before slope and intercept."""
    proxy = open_nifti(case_id, path).dataobj
    try:
        array = np.asanyarray(proxy) if scaled else proxy.get_unscaled()
    except Exception as error:  # readers raise many kinds
        raise _unreadable(case_id, path, error) from error
    check_type(array.dtype, f"case {case_id}: {path}")
    if not np.isfinite(array).all():
        raise InputError(f"case {case_id}: {path} holds NaN or infinite voxels", "finite values", "mend the file")
    return array


def refuse_other_grids(case_id: str, paths: list[Path]) -> None:
    """Raise `InputError` unless all files have the shape and affine (within 0.001 mm) of the first."""
    first = open_nifti(case_id, paths[0])
    for path in paths[1:]:
        other = open_nifti(case_id, path)
        if other.shape[:3] != first.shape[:3] or not np.allclose(other.affine, first.affine, rtol=0, atol=1e-3):
            raise InputError(
                f"case {case_id}: {path} has another grid than {paths[0].name}: shape {other.shape[:3]} and "
                f"{first.shape[:3]}, affine {other.affine[:3].tolist()} and {first.affine[:3].tolist()}",
                "one shape and affine for all files of a case",
                "mend the header or resample the file, or move the case out of the folder",
            )


def refuse_labels(case_id: str, path: Path, values: np.ndarray, known: set[int], hint: str = "") -> None:
    """Raise `InputError` for voxel values of a label that are no integers, or not `known`."""
    found = np.unique(values)
    unknown = [value.item() for value in found if value not in known]
    if unknown:
        shown = ", ".join(str(value) for value in unknown[:5])
        raise InputError(
            f"case {case_id}: {path} holds {shown}{' ...' if len(unknown) > 5 else ''}",
            f"the integers {sorted(known)}",
            hint or "mend the label, or move the case out of the folder",
        )


def copy_checked(case_id: str, source: Path, target: Path) -> None:
    """Copy a file byte by byte after all of it could be read."""
    read_voxels(case_id, source, scaled=False)
    shutil.copyfile(source, target)


def write_like(original: Any, array: np.ndarray, target: Path, scaling: tuple[float, float] = (1.0, 0.0)) -> None:
    """Write voxels as stored `(x, y, z)` with the geometry of an opened file, unchanged to the bit."""
    header = original.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    image = type(original)(array, None, header)
    image.header.set_slope_inter(*scaling)
    # gzip keeps the time of writing and the file's name unless told otherwise.
    target.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _unreadable(case_id: str, path: Path, error: Exception) -> InputError:
    return InputError(
        f"case {case_id}: {path} cannot be read ({type(error).__name__}: {error})",
        "a whole NIfTI file",
        "unpack or download it again, or move the case out of the folder",
    )
