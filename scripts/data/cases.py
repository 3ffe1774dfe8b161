"""The real cases that a generator may learn from: nnU-Net preprocessed arrays, or raw NIfTI through MONAI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nnunet_plugin.identity import Identity, identify
from nnunet_plugin.preprocessed import wrong_field
from nnunet_plugin.voxels import as_label

from ..runtime.errors import InputError
from ..runtime.files import json_sha256, read_record
from ..runtime.running import checkpoint_being_loaded
from .description import DatasetDescription, read_description
from .folds import Fold, read_fold
from .prepared import plain_arrays
from .provenance import read_provenance
from .raw_files import is_raw_dataset, raw_files

PHANTOM_NAME = "Dataset801_PhantomFLAIR"
PREPROCESS = "run nnUNetv2_plan_and_preprocess again"
PLANS: dict[str, type | tuple[type, ...]] = {
    "configurations": dict, "original_median_spacing_after_transp": list, "transpose_forward": list,
    "foreground_intensity_properties_per_channel": dict,
}  # fmt: skip
CONFIGURATION: dict[str, type | tuple[type, ...]] = {
    "data_identifier": str, "spacing": list, "normalization_schemes": list, "use_mask_for_norm": list,
}  # fmt: skip


def array_axes(slice_axis: int) -> tuple[int, int, int]:
    """Order that turns an `(x, y, z)` file into a `(depth, height, width)` array whose depth is `slice_axis`."""
    height, width = (axis for axis in (2, 1, 0) if axis != slice_axis)
    return slice_axis, height, width


@dataclass(frozen=True)
class Case:
    """One annotated volume.

    Attributes:
        id: case identifier.
        image: float32 `(channel, depth, height, width)` in the space's intensities.
        label: int16 `(depth, height, width)`, integers of `dataset.json`.
        inside: bool `(depth, height, width)`; False where nnU-Net masked the normalisation (data exactly 0 there),
            True everywhere in a space without such a mask.
    """

    id: str
    image: np.ndarray
    label: np.ndarray
    inside: np.ndarray

    @property
    def identity(self) -> Identity:
        """Hash and fingerprint of the voxels that the generator sees."""
        return identify(self.image, self.label)


class Cases:
    """The cases of one data set in one space, split into folds.

    Attributes:
        description: channels and labels.
        fold: training and validation ids.
        space: record of axes, spacing and normalisation; `space["sha256"]` names it.
        is_3d: the space is that of a 3D configuration, which is resampled along depth too.
        plans: nnU-Net's plans of the space where no folder holds them.
        directions: of raw cases, where the voxel axes x, y, z of the first file point, a column each of R, A, S, and
            last where its first voxel lies, in mm.
    """

    description: DatasetDescription
    fold: Fold
    space: dict
    is_3d: bool = False
    plans: dict | None = None
    directions: list | None = None

    def load(self, case_id: str) -> Case:
        """Read and check one case."""
        case = self._read(case_id)
        check_case(case, self.description)
        return case

    def training(self) -> Iterator[Case]:
        """The fold's training cases, one at a time."""
        return (self.load(case_id) for case_id in self.fold.train)

    def validation(self) -> Iterator[Case]:
        """The fold's validation cases, one at a time; the generator never learns from them."""
        return (self.load(case_id) for case_id in self.fold.val)

    @property
    def masked(self) -> bool:
        """Whether voxels outside the nonzero mask are exactly 0 (nnU-Net's `use_mask_for_norm`)."""
        return bool(any(self.space["use_mask_for_norm"] or []))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel along depth, height, width; 1 where the space does not say."""
        depth, height, width = (float(value or 1.0) for value in self.space["spacing"])
        return depth, height, width

    def _read(self, case_id: str) -> Case:
        raise NotImplementedError


def check_case(case: Case, description: DatasetDescription) -> None:
    """Raise `InputError` for what `dataset.json` contradicts, and for voxels that are no image."""
    if case.image.shape[0] != description.num_image_channels:
        raise InputError(
            f"case {case.id} has {case.image.shape[0]} image channels",
            f"{description.num_image_channels}, as dataset.json says ({description.channel_names})",
            "mend dataset.json or the case",
        )
    if case.image.shape[1:] != case.label.shape:
        raise InputError(
            f"case {case.id}: image {case.image.shape[1:]} and label {case.label.shape} (depth, height, width)",
            "the same shape",
            "resample the label to its image",
        )
    if not np.isfinite(case.image).all():
        raise InputError(f"case {case.id} holds NaN or infinite voxels", "finite intensities", "mend the image")
    for channel, image in enumerate(case.image):
        if not case.inside.any() or float(np.ptp(image[case.inside])) == 0:
            raise InputError(
                f"case {case.id}, channel {channel} is empty (every voxel is the same)",
                "an image",
                "mend or remove the case",
            )
    unknown = sorted({int(value) for value in np.unique(case.label)} - description.known_integers)
    if unknown:
        raise InputError(
            f"case {case.id} holds the labels {unknown}",
            f"{sorted(description.known_integers)}, as dataset.json says",
            "mend the label or dataset.json",
        )


class PreprocessedCases(Cases):
    """Cases as nnU-Net's own preprocessor left them: its axes, spacing, crop and normalisation."""

    def __init__(self, dataset_dir: Path, fold: int | str, plans: str, configuration: str):
        self.description = read_description(dataset_dir)
        self.space, self.is_3d = self._configuration(dataset_dir, plans, configuration)
        self.folder = dataset_dir / self.space["data_identifier"]
        if not self.folder.is_dir():
            number = dataset_dir.absolute().name.removeprefix("Dataset").partition("_")[0]
            raise InputError(
                f"no preprocessed cases in {self.folder}",
                "the folder that nnUNetv2_preprocess writes",
                f"run nnUNetv2_plan_and_preprocess -d {number} -c {configuration}",
            )
        self._plain = plain_arrays(dataset_dir, self.folder)
        if self._plain is None:
            from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

            self._reader = infer_dataset_class(str(self.folder))
        ids = self.identifiers()
        expected = read_record(dataset_dir / "dataset.json", {}, "restore it").get("numTraining")
        if expected is not None and str(len(ids)) != str(expected):
            raise InputError(
                f"{len(ids)} preprocessed cases in {self.folder}",
                f"{expected}, as numTraining of dataset.json says",
                "preprocessing was interrupted, or cases were added: run nnUNetv2_plan_and_preprocess again",
            )
        self.fold = read_fold(dataset_dir, ids, fold, store=True)

    @staticmethod
    def _configuration(dataset_dir: Path, plans: str, configuration: str) -> tuple[dict, bool]:
        """The space, and whether the configuration is 3D."""
        path = dataset_dir / f"{plans}.json"
        if not path.is_file():
            found = sorted(p.stem for p in dataset_dir.glob("*Plans*.json"))
            raise InputError(
                f"no plans file {path}", f"one of {found}", "give --plans, or run nnUNetv2_plan_and_preprocess"
            )
        content = read_record(path, PLANS, PREPROCESS)
        if configuration not in content["configurations"]:
            raise InputError(
                f"configuration {configuration!r} is not in {path.name}",
                f"one of {sorted(content['configurations'])}",
                "give --configuration",
            )
        chosen = _resolve(content["configurations"], configuration, path)
        wrong, spacing = wrong_field(chosen, CONFIGURATION), chosen.get("spacing") or []
        is_3d = len(spacing) == 3
        if not is_3d:  # a 2d configuration does not resample the slice axis
            spacing = [*content["original_median_spacing_after_transp"][:1], *spacing]
        if wrong or len(spacing) != 3 or not all(type(value) in (int, float) for value in spacing):
            wrong = wrong or f"the spacing {spacing}"
            raise InputError(f"configuration {configuration} of {path}: {wrong}", "nnU-Net's plans", PREPROCESS)
        spacing = [float(value) for value in spacing]
        space = {
            "kind": "nnunet_preprocessed",
            "plans_name": plans,
            "configuration": configuration,
            "data_identifier": chosen["data_identifier"],
            "spacing": spacing,
            "transpose_forward": content["transpose_forward"],
            "normalization_schemes": chosen["normalization_schemes"],
            "use_mask_for_norm": chosen["use_mask_for_norm"],
            "foreground_intensity_properties_per_channel": content["foreground_intensity_properties_per_channel"],
        }
        return {**space, "sha256": json_sha256(space)}, is_3d

    def identifiers(self) -> list[str]:
        """Every case of the folder, whatever its fold."""
        return self._plain.identifiers() if self._plain else self._reader.get_identifiers(str(self.folder))

    def arrays(self, case_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Image `(channel, depth, height, width)` and segmentation of the same grid, -1 where nnU-Net saw nothing.

        Raises:
            InputError: they cannot be read.
        """
        try:
            if self._plain:
                return self._plain.load(case_id)
            data, seg, _, _ = self._reader(str(self.folder), [case_id]).load_case(case_id)
            return np.asarray(data[:], np.float32), np.asarray(seg[:])[0].astype(np.int16)
        except Exception as error:  # blosc2 and pickle raise many kinds
            raise InputError(
                f"case {case_id} in {self.folder} cannot be read ({error})",
                "the arrays that nnUNetv2_preprocess writes",
                "run nnUNetv2_plan_and_preprocess again",
            ) from error

    def _read(self, case_id: str) -> Case:
        image, label = self.arrays(case_id)
        # nnU-Net writes -1 outside the nonzero mask always; only a masked normalisation zeroes the data there
        inside = label >= 0 if self.masked else np.ones(label.shape, bool)
        return Case(case_id, image, np.maximum(label, 0), inside)


def _resolve(configurations: dict, name: str, path: Path) -> dict:
    """A configuration with what it inherits."""
    chosen: dict = {}
    seen: list[str] = []
    while name is not None:
        if name in seen or not isinstance(configurations.get(name), dict):
            raise InputError(
                f"configuration {name!r} in the chain {seen} of {path.name}",
                "configurations that exist",
                "mend the plans",
            )
        seen.append(name)
        chosen = {**configurations[name], **chosen}
        name = configurations[name].get("inherits_from")
    return chosen


NIFTI_ENDINGS = (".nii.gz", ".nii", ".NII.GZ", ".NII")  # as nibabel takes them


class RawCases(Cases):
    """Raw volumes in the scanner's units, read through MONAI; the slice axis is the one with the largest spacing.

    Files of several voxel orders are turned to that of the first.

    Attributes:
        axes: that order, such as "LPS".
    """

    axes: str | None = None

    def __init__(self, dataset_dir: Path, fold: int | str):
        self.description = read_description(dataset_dir)
        if (ending := self.description.file_ending) not in NIFTI_ENDINGS:
            raise InputError(
                f"file_ending {ending} of {dataset_dir / 'dataset.json'}",
                f"{NIFTI_ENDINGS[0]} or {NIFTI_ENDINGS[1]} where raw volumes are read",
                "let nnU-Net preprocess the data set, whatever its format, and give its folder in nnUNet_preprocessed",
            )
        self.dataset_dir = Path(dataset_dir)
        self._files = raw_files(dataset_dir, self.description)
        labels = list(self._files)
        self.fold = read_fold(dataset_dir, labels, fold, store=False)
        self.space = self._space_of(labels[0])

    def _space_of(self, case_id: str) -> dict:
        affine = self.affine_of(case_id)
        steps = voxel_sizes(affine).tolist()  # x, y, z
        self.directions = (affine[:3] / [*steps, 1]).tolist()
        axis = max(range(3), key=lambda i: (steps[i], i))
        space = {
            "kind": "raw",
            "slice_axis": axis,
            "spacing": [steps[i] for i in array_axes(axis)],
            "normalization_schemes": None,
            "use_mask_for_norm": None,
        }
        return {**space, "sha256": json_sha256(space)}

    def _image_paths(self, case_id: str) -> list[Path]:
        return self._files[case_id][0]

    def _label_path(self, case_id: str) -> Path:
        return self._files[case_id][1]

    def _load_file(self, path: Path):
        from monai.transforms import LoadImage

        from .reading import WholeReader

        try:
            image = LoadImage(WholeReader(), image_only=True, ensure_channel_first=True)(str(path))
        except InputError:
            raise
        except Exception as error:  # readers raise many kinds
            raise InputError(f"{path} cannot be read ({error})", "a readable image", "restore the file") from error
        affine = np.asarray(image.affine)
        if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
            raise InputError(f"{path}, whose header does not say where its axes point", "an affine", "mend the header")
        return image

    def files_of(self, case_id: str) -> tuple[list[Path], Path]:
        """The files of a case: its images, one a channel, and its label."""
        return self._image_paths(case_id), self._label_path(case_id)

    def affine_of(self, case_id: str) -> np.ndarray:
        """Affine `(4, 4)` of a case, voxels along x, y, z to millimetres along R, A, S, turned as the case is."""
        image = self._load_file(self._image_paths(case_id)[0])
        if image.ndim != 4:
            raise InputError(
                f"case {case_id} has {image.ndim - 1} dimensions", "volumes", "stack the images to volumes"
            )
        affine = np.asarray(image.affine)
        return affine @ inv_ornt_aff(self._turn(affine), tuple(image.shape[1:]))

    def _turn(self, affine: np.ndarray) -> np.ndarray:
        """How nibabel turns a case of that affine to the voxel order of the first one."""
        if self.axes is None:
            self.axes = "".join(nib.aff2axcodes(affine))
        return ornt_transform(io_orientation(affine), axcodes2ornt(self.axes))

    def _load_pair(self, case_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image float32 `(channel, x, y, z)`, label int16 `(x, y, z)` and their affine, checked against each other."""
        images = [self._load_file(path) for path in self._image_paths(case_id)]
        label = self._load_file(self._label_path(case_id))
        for path, image in zip(self._image_paths(case_id), images, strict=True):
            if image.shape[1:] != label.shape[1:] or not np.allclose(image.affine, label.affine, atol=1e-3):
                raise InputError(
                    f"{path.name} {tuple(image.shape[1:])} and its label {tuple(label.shape[1:])} "
                    "do not lie on the same grid",
                    "the same shape and affine",
                    "resample the label to its image",
                )
        integers = as_label(np.asarray(label[0]), self._label_path(case_id))
        return np.concatenate([np.asarray(image, np.float32) for image in images]), integers, np.asarray(label.affine)

    def _read(self, case_id: str) -> Case:
        image, label, affine = self._load_pair(case_id)
        turn = self._turn(affine)
        image, label = np.stack([apply_orientation(part, turn) for part in image]), apply_orientation(label, turn)
        order = array_axes(self.space["slice_axis"])
        steps = voxel_sizes(affine @ inv_ornt_aff(turn, image.shape[1:]))[list(order)].tolist()
        if not np.allclose(steps, self.space["spacing"], rtol=0.05):
            raise InputError(
                f"case {case_id} has the spacing {steps} (depth, height, width)",
                f"{self.space['spacing']}, as the first case",
                "resample the cases to one spacing, or let nnU-Net preprocess them and give that folder",
            )
        image, label = image.transpose(0, *(1 + axis for axis in order)), label.transpose(order)
        return Case(case_id, image, label, np.ones(label.shape, bool))


class LearntCases(Cases):
    """What the record of weights says of the cases that they learnt from, none of which is at hand.

    Attributes:
        record: the whole of it.
    """

    def __init__(self, record: dict):
        self.record = record
        self.description = DatasetDescription(**record["description"])
        names = [case["id"] for case in record["cases"]]
        validation = record.get("validation", [])  # older records do not say it
        self.fold = Fold(record["fold"], names, validation, record["split_sha256"])
        self.space, self.directions = record["space"], record.get("directions")


def phantom_for(record: dict[str, Any] | None, phantom_dir: str | Path) -> Path:
    """The phantom, where somebody names no data set; None: no weights are there yet.

    Raises:
        InputError: the weights learnt from something else, of which a phantom shows nothing.
    """
    if record is not None and record["dataset"] != PHANTOM_NAME:
        raise InputError(f"no data set, for weights that learnt from {record['dataset']}", "images of that kind",
                         "give --dataset_dir")  # fmt: skip
    return Path(phantom_dir) / PHANTOM_NAME


def open_cases(
    dataset_dir: str | Path | None,
    fold: int | str = 0,
    plans: str = "nnUNetPlans",
    configuration: str = "2d",
    phantom_dir: str | Path = "phantom",
) -> Cases:
    """Open the cases of one fold.

    `monai.bundle.load` asks for a network alone: without a data set it gets those that the weights have learnt from.

    Args:
        dataset_dir: an nnU-Net preprocessed data set folder (holds plans and `DATA_IDENTIFIER/`), an nnU-Net raw
            one (holds `imagesTr`), or None for the phantom, which is made in `phantom_dir` when it is not there.
        fold: 0 to 4, or "all".
        plans, configuration: which preprocessed arrays to read; not used for raw data.
        phantom_dir: folder for the phantom.

    Raises:
        InputError: the folder, plans, configuration, fold or a file of it cannot be used.
    """
    if dataset_dir is None or str(dataset_dir) == "":
        if (weights := checkpoint_being_loaded()) is not None:
            return LearntCases(read_provenance(weights.with_name("provenance.json")))
        from filelock import FileLock

        from ..phantom.dataset import write_phantom

        dataset_dir = Path(phantom_dir) / PHANTOM_NAME
        dataset_dir.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(dataset_dir.with_suffix(".lock")):  # several processes may start together
            if not dataset_dir.exists():
                write_phantom(dataset_dir)
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder}", "an nnU-Net data set folder, raw or preprocessed", "check --dataset_dir"
        )
    if is_raw_dataset(folder):
        return RawCases(folder, fold)
    return PreprocessedCases(folder, fold, plans, configuration)
