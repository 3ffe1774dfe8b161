"""The data set that a run is given: whether it can be used, what it is called by, and that nobody is on both sides."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from nnunet_plugin.voxels import as_image, as_label, check_type

from ..data.description import DatasetDescription, read_description
from ..data.folds import NUM_FOLDS, crossval_folds, read_fold, read_splits
from ..data.raw_files import is_raw_dataset, lists_its_files, raw_files
from ..runtime.errors import InputError
from ..runtime.files import file_sha256, json_sha256, read_record
from .dataset import SPLITS, visible
from .nnunet_commands import dataset_number
from .protocol import NNUNET, SEGMENTATION
from .run_folder import absolute

# Voxels of an image by which it is known.
PROBES = 20_000
ALIKE, SIMILAR = 0.9995, 0.9
IN_COLOUR = (".png", ".bmp", ".tif")  # one file of which may hold all channels


def data_settings(
    settings: dict[str, Any], dataset_dir: Any, raw_dir: Any, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Where the data are, in which space they will be, and hashes that say what they are wherever they lie.

    `before` are settings that went through this: the voxels of the same data are not read again.

    Raises:
        InputError: the data cannot be used, or a test case is a training case.
    """
    known = before or {}
    given = {"dataset_dir": dataset_dir, "raw_dir": raw_dir}
    given = {name: None if value is None else str(absolute(value)) for name, value in given.items()}
    if dataset_dir is None:
        if raw_dir is not None:
            raise InputError(
                f"--raw_dir {raw_dir} without a data set", "both, or neither: a phantom", "give --dataset_dir"
            )
        return given
    folder = absolute(dataset_dir)
    description = read_description(folder)
    is_raw = is_raw_dataset(folder)
    space = settings["space"] if is_raw else "nnunet"
    if space == "nnunet":
        dataset_number(folder.name)
    if not is_raw and any(entry.get("bundle") == NNUNET for entry in settings["segmenters"].values()):
        if not (folder / "gt_segmentations").is_dir():
            raise InputError(
                f"{dataset_dir} without gt_segmentations", "a folder of nnUNet_preprocessed", "preprocess it again"
            )
    own = [name for name, one in settings["segmenters"].items() if one.get("bundle", SEGMENTATION) == SEGMENTATION]
    if own and description.file_ending.lower() in (*IN_COLOUR, ".tiff"):
        raise InputError(
            f"segmenter {own[0]!r} on {description.file_ending} images", "volumes in NIfTI, or the segmenter nnunet",
            "write the data set in NIfTI, or choose arms of nnU-Net, as `synthaug run` does",
        )  # fmt: skip
    found: dict[str, Any] = {**given, "space": space}
    raw = folder if is_raw else None if raw_dir is None else absolute(raw_dir)
    if "test" in settings["evaluate"] and settings["segmenters"]:
        if raw is None or not all((raw / name).is_dir() for name in ("imagesTs", "labelsTs")):
            raise InputError(
                f"no imagesTs and labelsTs in {raw or folder} for evaluation on test cases",
                "a raw data set with imagesTs and labelsTs to measure on",
                "keep some annotated patients apart as test cases" if is_raw else "give --raw_dir",
            )
        check_test_cases(raw, read_description(raw))
        test = {name: visible(raw / name, description.file_ending) for name in ("imagesTs", "labelsTs")}
        found["test_sha256"] = _identity(raw, test, ("dataset.json",))
        if found["test_sha256"] != known.get("test_sha256"):
            check_types(visible(raw / "imagesTs"), test["labelsTs"])
    segmentations = {"gt_segmentations": visible(folder / "gt_segmentations", description.file_ending)}
    files = training_files(folder, description) if is_raw else segmentations
    for name, paths in files.items():
        if not paths and is_raw:
            raise InputError(f"no {name} in {folder}", "imagesTr and labelsTr", "add the folder")
    labels = files["labelsTr" if is_raw else "gt_segmentations"]
    records = ("dataset.json", SPLITS, f"{settings['plans']}.json")
    found["data_sha256"] = _identity(folder, files, records)
    if found["data_sha256"] != known.get("data_sha256"):
        check_types(files.get("imagesTr", []), labels)
    inner = settings.get("inner")
    listed = is_raw and lists_its_files(folder)
    ids = (
        list(raw_files(folder, description))
        if listed
        else [path.name[: -len(description.file_ending)] for path in labels]
    )
    _check_folds(settings["folds"] if inner is None else [inner["fold"]], folder, ids)
    return found


def check_types(images: list[Path], labels: list[Path]) -> None:
    """See that no reader would take a part of an image, or round a label.

    Raises:
        InputError: names the first file whose voxels are no single numbers, or no labels.
    """
    for paths, are_labels in ((images, False), (labels, True)):
        for path in paths:
            if path.is_file() and (dtype := _of_file(path, stored_type)) is not None:
                check_type(dtype, path)
                if are_labels and dtype.kind == "f":
                    as_label(_voxels(path), path)
                elif dtype.kind in "iu" and dtype.itemsize > 4:
                    as_image(_voxels(path), path)


def stored_type(file: Path) -> np.dtype | None:
    """The type of the voxels of a NIfTI or TIFF file, without reading them; of others None, they tell when read."""
    if file.name.lower().endswith((".nii", ".nii.gz")):
        import nibabel as nib

        image = nib.Nifti1Image.from_filename(file)
        stored, proxy = image.get_data_dtype(), cast(nib.arrayproxy.ArrayProxy, image.dataobj)
        scaled = proxy.slope != 1 or proxy.inter != 0
        return np.dtype(np.float64) if scaled and stored.kind in "iu" else stored
    if file.name.lower().endswith((".tif", ".tiff")):
        import tifffile

        with tifffile.TiffFile(file) as content:
            return content.series[0].dtype
    return None


def training_files(folder: Path, description: DatasetDescription) -> dict[str, list[Path]]:
    """Images and labels of a raw data set, in its folders or where dataset.json lists them."""
    if not lists_its_files(folder):
        return {name: visible(folder / name, description.file_ending) for name in ("imagesTr", "labelsTr")}
    listed = raw_files(folder, description).values()
    return {"imagesTr": [path for images, _ in listed for path in images], "labelsTr": [label for _, label in listed]}


def _identity(folder: Path, files: Mapping[str, list[Path]], records: tuple[str, ...]) -> str:
    """What the files of a data set are: labels by their content, images by name and size, which takes no time."""
    content: list[Any] = [
        read_splits(folder / name) if name == SPLITS else read_record(folder / name, {}, "restore the file")
        for name in records
        if (folder / name).is_file()
    ]
    for name, paths in files.items():
        for path in paths:
            content.append([name, path.name, path.stat().st_size if "image" in name else file_sha256(path)])
    return json_sha256(content)


def _check_folds(folds: list[Any], folder: Path, case_ids: list[str]) -> None:
    file = folder / SPLITS
    count = len(read_splits(file) if file.is_file() else crossval_folds(case_ids) if case_ids else range(NUM_FOLDS))
    if wrong := [fold for fold in folds if fold != "all" and fold >= count]:
        raise InputError(f"fold {wrong[0]} of {folder}", f"0 to {count - 1}, or all", "choose one of its folds")
    for fold in folds if case_ids else ():
        read_fold(folder, case_ids, fold, store=False)


class Probe(NamedTuple):
    """An image by some of its voxels: where it lies, its shape, and `values` (PROBES,) float64."""

    path: Path
    shape: tuple[int, ...]
    values: np.ndarray


def check_test_cases(raw: Path, description: DatasetDescription) -> None:
    """See that every label of labelsTs has its images, and that no test case is a training case.

    Images are the same where one is the other after a linear map and the rounding of its type, whatever their names,
    headers and compression. An image of one value everywhere, such as a modality that is missing, says nothing.

    Args:
        raw: data set with imagesTr, imagesTs and labelsTs.
        description: of it.

    Raises:
        InputError: names the files.
    """
    ending, channels = description.file_ending, range(description.num_image_channels)
    ids = [path.name[: -len(ending)] for path in visible(raw / "labelsTs", ending)]
    if ending in IN_COLOUR and not any((raw / "imagesTs").glob(f"*_0001{ending}")):
        channels = range(1)
    test = [raw / "imagesTs" / f"{name}_{channel:04d}{ending}" for name in ids for channel in channels]
    if not ids or (absent := [path.name for path in test if not path.is_file()]):
        raise InputError(
            f"labelsTs without images: {', '.join(absent[:5]) if ids else 'no label at all'}",
            "an image in imagesTs for every label of labelsTs",
            "restore the files",
        )
    shapes = {_shape(path) for path in test}
    training = [path for path in training_files(raw, description)["imagesTr"] if _shape(path) in shapes]
    held = list(_probes(test))
    both = [
        f"{one.path.name} ({other.path.name})"
        for other in _probes(training) for one in held
        if one.shape == other.shape and same_image(one.values, other.values)
    ]  # fmt: skip
    if both:
        raise InputError(
            f"test images that are training images: {', '.join(both[:5])}",
            "test patients that nobody trains on",
            "remove them from imagesTs and labelsTs",
        )


def same_image(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether one image is the other after a linear map, with the rounding or cutting of whole steps.

    Args:
        a, b: values at the same voxels, not all equal.
    """
    correlation = abs(float(np.corrcoef(a, b)[0, 1]))
    if correlation >= ALIKE:
        return True
    if correlation < SIMILAR:
        return False
    for x, y in ((a, b), (b, a)):  # y in steps, such as an integer type has
        levels = np.unique(y)
        slope, offset = np.polyfit(x, y, 1)
        step = float(np.diff(levels).min())
        if len(levels) > 8 and np.mean(np.abs(slope * x + offset - y) <= step) > 0.999:
            return True
    return False


def _probes(paths: list[Path]) -> Iterator[Probe]:
    """Images that are not the same value everywhere."""
    for path in paths:
        array = _voxels(path)
        places = np.linspace(0, array.size - 1, PROBES).astype(int) if array.size > PROBES else slice(None)
        values = np.nan_to_num(array.ravel(order="F")[places].astype(np.float64))
        if values.min() < values.max():
            yield Probe(path, array.shape, values)


def _shape(path: Path) -> tuple[int, ...]:
    """Of a NIfTI file by its header alone; of others empty, so that they are read."""
    import nibabel as nib

    if path.name.endswith((".nii", ".nii.gz")):
        return tuple(_of_file(path, nib.Nifti1Image.from_filename).shape)
    return ()


def _voxels(path: Path) -> np.ndarray:
    """The array of an image file as it lies there."""
    return _of_file(path, _read)


def _read(path: Path) -> np.ndarray:
    if path.name.lower().endswith((".nii", ".nii.gz")):
        import nibabel as nib

        return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints what other readers say of the file
        reader = determine_reader_writer_from_file_ending(path.suffix, str(path), verbose=False)
        return np.asarray(reader().read_images((str(path),))[0])


def _of_file(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except Exception as error:  # readers raise many kinds
        raise InputError(f"{path} cannot be read ({error})", "a readable image", "restore the file") from error
