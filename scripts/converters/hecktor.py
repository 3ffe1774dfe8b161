"""HECKTOR 2022: head and neck PET (and CT) with GTVp and GTVn, to 1 mm and a cube around the tumour."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..runtime.errors import InputError
from .nifti import named_files, read_voxels, refuse_labels, refuse_missing
from .raw_dataset import Conversion, SourceCase, is_whole

TARGETS: dict[str, dict[str, int | list[int]]] = {
    "GTVp": {"background": 0, "GTVp": 1},
    "both": {"background": 0, "GTVp": 1, "GTVn": 2},
}


def plan_hecktor(
    source: Path, target: str | None = None, ct: bool | None = None, crop: int | None = None
) -> Conversion:
    """Find and check the training cases of HECKTOR 2022.

    Every case is resampled once, linearly (labels: nearest), to voxels of 1 mm along the PET's axes: a cube whose
    centre is that of the box around the target, on the lattice of the PET's first voxel. Beyond an image's field
    of view stands its minimum. PET stays in SUV and CT in HU, float32. A patient without the target (after surgery
    or with an unknown primary tumour) has no place to crop at: left out and listed. `imagesTs` of the challenge is
    not annotated and left out too.

    Args:
        source: the folder with imagesTr (CHUM-001__PT.nii.gz, CHUM-001__CT.nii.gz) and labelsTr (CHUM-001.nii.gz).
        target: GTVp (default), or both: 1 GTVp, 2 GTVn.
        ct: CT as the second channel.
        crop: side of the cube in mm, 256 by default, as in the dHVAE paper.

    Raises:
        InputError: a file is missing or cannot be read, labels are unknown, or a target does not fit.
    """
    target = "GTVp" if target is None else target
    ct = False if ct is None else ct
    crop = 256 if crop is None else crop
    if not isinstance(target, str) or target not in TARGETS:
        raise InputError(f"target {target!r}", ", ".join(TARGETS), "choose one of the targets")
    if not isinstance(ct, bool):
        raise InputError(f"ct {ct!r}", "True or False", "write --ct True")
    if not is_whole(crop) or not 16 <= crop <= 512:
        raise InputError(f"crop {crop!r}", "a whole number of mm from 16 to 512", "leave it out for 256")
    kept = [value for value in TARGETS[target].values() if value]
    cases, skipped = [], {}
    for case in tqdm(_cases(source, ct), desc="checking", unit="case"):
        label = _read_target(case, kept)
        if not _voxels(label).any():
            skipped[case.id] = f"no {' or '.join(list(TARGETS[target])[1:])}"
            continue
        _refuse_misfit(case, label, crop)
        cases.append(case)
    if not cases:
        raise InputError(f"no case with {target} in {source}", "annotated cases", "check --target and labelsTr")

    def write(case: SourceCase, image_paths: list[Path], label_path: Path | None) -> None:
        import SimpleITK as sitk

        label = _read_target(case, kept)
        grid = _crop_grid(_read(case, case.images[0]), label, crop)
        for path, place in zip(case.images, image_paths, strict=True):
            image = _read(case, path)
            minimum = float(_voxels(image).min())
            sitk.WriteImage(_resample(image, grid, sitk.sitkLinear, minimum, sitk.sitkFloat32), str(place), True)
        cropped = _resample(label, grid, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
        sitk.WriteImage(cropped, str(label_path), True)

    return Conversion(
        cases=cases,
        channel_names=["PET", "CT"] if ct else ["PET"],
        labels=dict(TARGETS[target]),
        settings={"format": "hecktor", "target": target, "crop": int(crop)},
        write=write,
        skipped=skipped,
    )


def _cases(source: Path, ct: bool) -> list[SourceCase]:
    images, labels = named_files(source / "imagesTr"), named_files(source / "labelsTr")
    pets = {name.removesuffix("__PT") for name in images if name.endswith("__PT")}
    if not labels and not pets:
        raise InputError(
            f"{source} holds {', '.join(sorted(path.name for path in source.iterdir())[:6]) or 'nothing'}",
            "imagesTr with CHUM-001__PT.nii.gz and labelsTr with CHUM-001.nii.gz",
            "give the folder hecktor2022_training",
        )
    cases = []
    for name in sorted({*labels, *pets}):
        paths = [source / "imagesTr" / f"{name}__{kind}.nii.gz" for kind in (("PT", "CT") if ct else ("PT",))]
        label = source / "labelsTr" / f"{name}.nii.gz"
        refuse_missing(name, [*paths, label])
        cases.append(SourceCase(name, name, tuple(paths), label))
    return cases


def _read(case: SourceCase, path: Path) -> Any:
    """A volume as SimpleITK image, all voxels finite."""
    import SimpleITK as sitk

    # Voxels through nibabel: SimpleITK turns NaN and infinite ones into 0 and says nothing.
    array = read_voxels(case.id, path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        problem = "" if array.ndim == 3 else f"{array.ndim} axes"
    except RuntimeError as error:
        problem = str(error).strip().splitlines()[-1]
    if problem:
        raise InputError(
            f"case {case.id}: {path} cannot be used ({problem})",
            "a NIfTI volume with three orthogonal axes",
            "mend the file, or move the case out of the folder",
        )
    image = sitk.GetImageFromArray(array.T.astype(array.dtype.newbyteorder("=")))
    image.SetOrigin(reader.GetOrigin()[:3])
    image.SetSpacing(reader.GetSpacing()[:3])
    image.SetDirection(reader.GetDirection())
    return image


def _voxels(image: Any) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayViewFromImage(image)


def _read_target(case: SourceCase, kept: list) -> Any:
    """The label map with the kept integers alone, on its own grid."""
    import SimpleITK as sitk

    assert case.label is not None  # HECKTOR's training cases are annotated
    label = _read(case, case.label)
    values = _voxels(label)
    refuse_labels(case.id, case.label, values, {0, 1, 2})
    target = sitk.GetImageFromArray(np.where(np.isin(values, kept), values, 0).astype(np.uint8))
    target.CopyInformation(label)
    return target


def _box(label: Any) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel (x, y, z) of the box around the foreground."""
    voxels = np.argwhere(_voxels(label))[:, ::-1]
    return voxels.min(axis=0), voxels.max(axis=0)


def _place(image: Any, voxel: Any) -> tuple[float, ...]:
    """Physical point of a (fractional) voxel (x, y, z)."""
    return image.TransformContinuousIndexToPhysicalPoint([float(i) for i in voxel])


def _crop_grid(pet: Any, label: Any, size: int) -> Any:
    """An empty image: the cube of 1 mm voxels along the PET's axes about the centre of the foreground's box."""
    import SimpleITK as sitk

    centre = _place(label, np.add(*_box(label)) / 2)
    axes = np.array(pet.GetDirection()).reshape(3, 3)
    # Whole millimetres from the PET's first voxel, so that all crops of a patient share one lattice.
    start = np.round(axes.T @ np.subtract(centre, pet.GetOrigin()) - (size - 1) / 2)
    grid = sitk.Image([size] * 3, sitk.sitkUInt8)
    grid.SetDirection(pet.GetDirection())
    grid.SetOrigin((np.array(pet.GetOrigin()) + axes @ start).tolist())
    return grid


def _resample(image: Any, grid: Any, interpolator: int, outside: float, pixel_type: int) -> Any:
    import SimpleITK as sitk

    return sitk.Resample(image, grid, sitk.Transform(), interpolator, outside, pixel_type)


def _refuse_misfit(case: SourceCase, label: Any, size: int) -> None:
    """Refuse a target outside the PET, larger than the cube, or too small for 1 mm voxels."""
    import SimpleITK as sitk

    pet = _read(case, case.images[0])
    first, last = _box(label)
    position = pet.TransformPhysicalPointToContinuousIndex(_place(label, (first + last) / 2))
    if not all(-0.5 <= i <= n - 0.5 for i, n in zip(position, pet.GetSize(), strict=True)):
        raise InputError(
            f"case {case.id}: the target of {case.label} lies outside {case.images[0]}",
            "label and PET in one frame",
            "mend the origin of one of them, or move the case out of the folder",
        )
    grid = _crop_grid(pet, label, size)
    corners = [
        grid.TransformPhysicalPointToContinuousIndex(_place(label, c)) for c in product(*zip(first, last, strict=True))
    ]
    if np.min(corners) < -0.5 or np.max(corners) > size - 0.5:
        extent = np.ptp(corners, axis=0).max()
        raise InputError(
            f"case {case.id}: the target of {case.label} extends over {extent:.0f} mm",
            f"a target that fits the crop of {size} mm",
            f"give --crop {int(np.ceil(extent - 1e-3)) + 1} or more, or move the case out of the folder",
        )
    cropped = _resample(label, grid, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    lost = set(np.unique(_voxels(label)).tolist()) - set(np.unique(_voxels(cropped)).tolist())
    if lost:
        raise InputError(
            f"case {case.id}: label {sorted(lost)} of {case.label} is lost at 1 mm",
            "targets larger than a voxel of 1 mm",
            "mend the label, or move the case out of the folder",
        )
