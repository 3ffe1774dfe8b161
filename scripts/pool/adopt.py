"""Images and masks that another program made, checked against a data set, become a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nnunet_plugin.leakage import cases_sha256
from nnunet_plugin.voxels import as_image, as_label

from ..data.cases import Case, Cases, PreprocessedCases, RawCases, array_axes, check_case, open_cases
from ..data.description import read_description
from ..data.folds import listed_cases
from ..data.preprocessing import mask_of, preprocess, read_plans
from ..data.provenance import build_provenance
from ..data.raw_files import is_raw_dataset
from ..data.training_set import TrainingSet, load_training_set, own_size
from ..runtime.errors import InputError
from ..runtime.files import file_sha256, json_sha256
from .from_real import FROM_REAL
from .writing import write_pool

FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"), ("images", "masks"))
ENDINGS = (".nii.gz", ".nii")
SAW = ("none", "all", "unknown")
TOLERANCE = 0.05  # of spacings, as between the cases of a raw data set
# Units that are this many times larger or smaller than those of real cases are other units.
UNITS = 10.0


@dataclass(frozen=True)
class Pair:
    """The files of one sample: an image for each channel, and the label."""

    name: str
    images: list[Path]
    label: Path


def adopt_pool(
    folder: str | Path,
    pool_dir: str | Path,
    dataset_dir: str | Path,
    made_by: str,
    saw: str | Path = "unknown",
    plans: str = "nnUNetPlans",
    configuration: str | None = None,
    preprocessed: bool = False,
) -> Path:
    """Check images and masks that another program made against a data set, and write them as a pool.

    Whom the generator saw is the user's word, and recorded as such. Volumes for a data set in nnUNet_preprocessed are
    preprocessed as its cases were, unless they are so already.

    Args:
        folder: holds `imagesTr` and `labelsTr`, or `images` and `labels` (or `masks`): NIfTI files in nnU-Net's naming,
            or of one channel with the same names in both.
        pool_dir: the pool's folder; the same command goes on where it stopped.
        dataset_dir: a raw data set, or one in nnUNet_preprocessed.
        made_by: the program or model.
        saw: which cases of the data set the generator was trained on: none, all, unknown (which counts as all), or a
            text file with the id of a case in each line.
        plans, configuration: of a preprocessed data set; by default 2d for slices, 3d_fullres for volumes.
        preprocessed: the files have the axes, spacing and intensities of the preprocessed data set.

    Raises:
        InputError: files that do not fit together or to the data set, before anything is written.
    """
    if not isinstance(preprocessed, bool):  # the command line makes a (true) string of "false"
        raise InputError(f"--preprocessed {preprocessed!r}", "True or False", "write --preprocessed, or leave it out")
    if not isinstance(made_by, str) or not made_by.strip():
        raise InputError(f"--made_by {made_by!r}", "the name of the program or model", "write --made_by NAME")
    first = Path(dataset_dir)
    is_raw = first.is_dir() and is_raw_dataset(first)
    if preprocessed and is_raw:
        raise InputError(f"--preprocessed with the raw data set {first}", "its preprocessed folder", "give that folder")
    pairs = find_pairs(folder, read_description(first).num_image_channels)
    dimension = 2 if _slice_axis(pairs[0], _load(pairs[0].label).shape) is not None else 3
    configuration = configuration or ("2d" if dimension == 2 else "3d_fullres")
    if not is_raw and dimension == 2 and not preprocessed:
        raise InputError(
            f"slices for the preprocessed data set {first}",
            "slices that are normalised as its cases are, or volumes",
            "nnU-Net normalises whole volumes: give volumes, or --preprocessed if the slices were made from "
            "preprocessed cases",
        )
    cases = open_cases(first, "all", plans, configuration)
    word = _whom(saw, cases, first)
    files = _Files(pairs, cases, first, dimension, to_preprocess=not is_raw and not preprocessed)
    intensities = files.check()
    data = load_training_set(cases, own_size(cases, volumes=dimension == 3))
    _check_units(intensities, files, data)
    adopted = {"made_by": made_by.strip(), "saw": word, "files": len(pairs)}
    return write_pool(_Adopted(files, data, adopted), pool_dir, len(pairs), batch_size=1)


def find_pairs(folder: str | Path, num_channels: int) -> list[Pair]:
    """The files of every sample, in the order of their names.

    Raises:
        InputError: no such folders, or files without their partners.
    """
    folder = Path(folder)
    found = [names for names in FOLDERS if all((folder / name).is_dir() for name in names)]
    if not found:
        allowed = ", or ".join(" and ".join(names) for names in FOLDERS)
        raise InputError(f"{folder} without images and labels", f"the folders {allowed}", "sort the files into two")
    images, labels = (_nifti_files(folder / name) for name in found[0])
    pairs, used = [], set()
    for name, label in sorted(labels.items()):
        channels = [f"{name}_{channel:04d}" for channel in range(num_channels)]
        if num_channels == 1 and channels[0] not in images and name in images:
            channels = [name]
        used.update(channels)
        if absent := [channel for channel in channels if channel not in images]:
            raise InputError(
                f"no image {', '.join(absent)} for {label.name} in {folder / found[0][0]}",
                f"an image for each of the {num_channels} channels of the data set: NAME_0000.nii.gz, ...",
                "add the images, or remove the label",
            )
        pairs.append(Pair(name, [images[channel] for channel in channels], label))
    if not pairs or (extra := sorted(set(images) - used)):
        what = f"images without a label, or of more channels: {', '.join(extra[:5])}" if pairs else "no labels"
        raise InputError(
            f"{what} in {folder}",
            f"NAME.nii.gz in {found[0][1]} for images of {num_channels} channels, NAME_0000.nii.gz, ...",
            "add the labels, or remove the images",
        )
    return pairs


def _nifti_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is None or path.name[: -len(ending)] in files:
            raise InputError(f"{path}", f"NIfTI files alone ({', '.join(ENDINGS)}), one of a name", "convert it")
        files[path.name[: -len(ending)]] = path
    return files


def _whom(saw: str | Path, cases: Cases, dataset_dir: Path) -> str:
    """The user's word; where it names cases, they are the training cases from now on."""
    if str(saw) in SAW:
        return str(saw)
    path = Path(saw)
    if not path.is_file():
        raise InputError(f"--saw {saw}", f"{', '.join(SAW)}, or a text file", "name the cases, one id a line")
    try:
        named = sorted({line.strip() for line in path.read_text("utf-8-sig").splitlines()} - {""})
    except UnicodeDecodeError as error:
        raise InputError(f"{path} ({error})", "a text file in UTF-8", "write one id a line") from error
    if unknown := sorted({*named} - {*cases.fold.train}) or ([] if named else ["no case at all"]):
        raise InputError(
            f"{path} names {', '.join(unknown[:5])}",
            f"ids of training cases of {cases.description.name}, such as {cases.fold.train[0]}",
            "mend the list, or write --saw none or all",
        )
    cases.fold = listed_cases(dataset_dir, named, cases.fold.train)
    return "listed"


def _load(path: Path) -> nib.Nifti1Image:
    """A file with its voxels, which are unpacked once."""
    try:
        image = nib.Nifti1Image.from_filename(path)
        return nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    except Exception as error:  # nibabel, zlib and gzip raise many kinds
        raise InputError(f"{path} cannot be read ({error})", "a NIfTI file", "write it again") from error


def _slice_axis(pair: Pair, shape: tuple[int, ...]) -> int | None:
    """The axis of a slice's label of this shape along which it has one voxel; None for a volume."""
    if len(shape) == 2:
        return 2
    thin = [axis for axis, size in enumerate(shape) if size == 1]
    if len(shape) != 3 or len(thin) > 1:
        raise InputError(f"{pair.label} of shape {shape}", "a slice or a volume", "split it into channels or volumes")
    return thin[0] if thin else None


class _Files:
    """The files as cases of the data set's space."""

    def __init__(self, pairs: Sequence[Pair], cases: Cases, dataset_dir: Path, dimension: int, to_preprocess: bool):
        self.pairs, self.cases, self.dataset_dir = pairs, cases, dataset_dir
        self.dimension, self.to_preprocess = dimension, to_preprocess

    def check(self) -> np.ndarray:
        """Read every file once; returns `(sample, low/high, channel)`, percentiles 0.05 and 99.95."""
        found, shape = [], None
        for index in range(len(self.pairs)):
            case = self.load(index)
            shape = shape or case.label.shape
            if self.dimension == 2 and case.label.shape != shape:
                raise InputError(
                    f"slice {case.id} of shape {case.label.shape[1:]}", f"{shape[1:]}, as the first", "bring all to one"
                )
            found.append([np.percentile(channel[case.inside], (0.05, 99.95)) for channel in case.image])
        return np.array(found).swapaxes(1, 2)

    def load(self, index: int) -> Case:
        """One sample, `(channel, depth, height, width)` and `(depth, height, width)`, checked."""
        pair, description = self.pairs[index], self.cases.description
        images, label = [_load(path) for path in pair.images], _load(pair.label)
        for path, file in zip(pair.images, images, strict=True):
            if file.shape != label.shape or not np.allclose(file.affine, label.affine, atol=1e-3):
                raise InputError(
                    f"{path} {file.shape} and its label {label.shape} do not lie on the same grid",
                    "the same shape and affine",
                    "resample one to the other",
                )
        image = np.stack([as_image(np.asarray(i.dataobj), path) for i, path in zip(images, pair.images, strict=True)])
        integers = as_label(np.asarray(label.dataobj), pair.label)
        case = Case(pair.name, image, integers, np.ones(label.shape, bool))
        check_case(case, description)
        if description.ignore_label is not None and (integers == description.ignore_label).any():
            raise InputError(f"{pair.label} holds the label to ignore", "every voxel annotated", "leave it out")
        if (_slice_axis(pair, label.shape) is None) != (self.dimension == 3):
            raise InputError(f"{pair.label} of shape {label.shape}", "slices alone, or volumes alone", "sort them")
        return self._to_space(case, label, pair)

    def _to_space(self, case: Case, file: nib.Nifti1Image, pair: Pair) -> Case:
        spacing = np.array(nib.affines.voxel_sizes(file.affine), float)
        if self.to_preprocess:
            self._check_directions(file, pair)
            return self._preprocess(case, spacing)
        axis = _slice_axis(pair, case.label.shape)
        if axis is None:
            axis = self.cases.space.get("slice_axis", 2)  # preprocessed arrays are written with x, y, z from the last
            if self.cases.space["kind"] == "raw":
                self._check_directions(file, pair)
        order = array_axes(axis)
        image, label = case.image.reshape(len(case.image), *_three(case.label.shape)), case.label
        label = label.reshape(_three(label.shape)).transpose(order)
        image = image.transpose(0, *(1 + a for a in order))
        got, wanted = spacing[list(order)], np.array(self.cases.spacing)
        used = slice(None if self.dimension == 3 else 1, None)  # a slice has no thickness that counts
        if not np.allclose(got[used], wanted[used], rtol=TOLERANCE):
            raise InputError(
                f"{pair.label} with a spacing of {got[used].tolist()} mm ([depth,] height, width)",
                f"{wanted[used].tolist()} mm, as the cases of {self.cases.description.name}",
                "resample it, or write the true spacing into its header; where cases differ in spacing, give volumes "
                "and the data set in nnUNet_preprocessed",
            )
        inside = (image != 0).any(axis=0) if self.cases.masked else np.ones(label.shape, bool)
        return Case(case.id, image, label, inside)

    def _preprocess(self, case: Case, spacing: np.ndarray) -> Case:
        assert isinstance(self.cases, PreprocessedCases)
        space, description = self.cases.space, self.cases.description
        image, seg, _ = preprocess(
            case.image, case.label, spacing, read_plans(self.cases), space["configuration"], description
        )
        done = Case(case.id, image, np.maximum(seg[0], 0).astype(np.int16), mask_of(seg[0], space))
        check_case(done, description)
        return done

    @cached_property
    def orientation(self) -> str | None:
        """Where the axes of the cases' files point, such as LPS; None where no file is at hand."""
        case = (self.cases.fold.train or self.cases.fold.val)[0]
        files = [self.dataset_dir / f"gt_segmentations/{case}{ending}" for ending in ENDINGS]
        if isinstance(self.cases, RawCases):
            files = [file for file in [self.cases.files_of(case)[1]] if file.name.endswith(ENDINGS)]
        found = next((file for file in files if file.is_file()), None)
        return None if found is None else "".join(nib.aff2axcodes(_load(found).affine))

    def _check_directions(self, file: nib.Nifti1Image, pair: Pair) -> None:
        """nnU-Net reads arrays as they are stored: a sample whose axes point elsewhere would be mirrored."""
        wanted, got = self.orientation, "".join(nib.aff2axcodes(file.affine))
        if wanted is not None and got != wanted:
            raise InputError(
                f"{pair.label} with the orientation {got}",
                f"{wanted}, as the cases of {self.cases.description.name}: nnU-Net does not turn images",
                f"turn image and label to {wanted}; if the arrays lie as those of the cases already, mend the affine",
            )


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1)[:3]


def _check_units(samples: np.ndarray, files: _Files, data: TrainingSet) -> None:
    """Raise `InputError` where intensities count and those of the samples (sample, low/high, channel) are others."""
    names = data.cases.description.channel_names.values()
    for channel, name in enumerate(names):
        counts = files.dimension == 2 or data.cases.space["kind"] != "raw" or name.lower() == "ct"
        low, high = np.median(samples[:, :, channel], axis=0)
        real = data.scaling.low[channel], data.scaling.high[channel]
        ratio = (high - low) / max(real[1] - real[0], 1e-8)
        if counts and not 1 / UNITS <= ratio <= UNITS:
            raise InputError(
                f"channel {name} with intensities from {low:.4g} to {high:.4g} (the median of the samples)",
                f"the units of the real cases, {real[0]:.4g} to {real[1]:.4g}",
                "bring the images to the units of the data set",
            )


class _Adopted:
    """What `write_pool` draws: candidate `i` is the `i`-th file."""

    samples_per_pass = 1
    real_anatomy = True  # for all that is known: some programs paint lesions into patients

    def __init__(self, files: _Files, data: TrainingSet, adopted: dict[str, Any]):
        self.files, self.dimension, self.description = files, files.dimension, data.cases.description
        fold, saw = data.cases.fold, adopted["saw"]
        record = build_provenance(data, {"name": adopted["made_by"], "version": "unknown"}, 0, {}, {})
        hashes = [[file_sha256(path) for path in (*pair.images, pair.label)] for pair in files.pairs]
        if saw == "none":
            fold = replace(fold, train=[], val=[])
            record |= {"cases": [], "cases_sha256": cases_sha256([]), "split_sha256": json_sha256([[], []])}
        self.provenance = {
            **record,
            # Which the cases are opened with: where it saw none, there are held-out ones to measure with.
            "fold": 0 if saw == "none" else fold.name if isinstance(fold.name, int) else "all",
            "validation": fold.val,
            "adopted": adopted,
            "weights_sha256": json_sha256(hashes),
        }
        self.settings = {"adopted": adopted, "files_sha256": self.provenance["weights_sha256"]}

    def check(self, condition: dict | None) -> None:
        """Files follow no condition."""

    def check_yield(self, candidates: int, kept: int) -> None:
        """Every file is kept."""

    def next_candidates(self, start: int, count: int) -> range:
        """The next files."""
        return range(start, start + count)

    def draw(self, candidates: range, seed: int, condition: dict | None = None) -> list[dict]:
        """Read them."""
        drawn = []
        for index in candidates:
            case = self.files.load(index)
            image, label = (case.image, case.label) if self.dimension == 3 else (case.image[:, 0], case.label[0])
            record: dict[str, Any] = {"seed": index, "condition": None, "scores": {}, "file": case.id}
            drawn.append({"image": image, "label": label.astype(np.uint8), "record": record})
        return drawn


def origin(record: dict) -> str:
    """Where a pool is from, in words for titles.

    Args:
        record: content of `pool.json`.
    """
    provenance = record["provenance"]
    adopted = provenance.get("adopted")
    if adopted is not None:
        return f"{adopted['made_by']} (adopted)"
    made_by = provenance["bundle"]["name"]
    how = "of the training cases of" if made_by in FROM_REAL else "trained on"
    return f"{made_by}, {how} fold {provenance['fold']} of {record['dataset']['name']}"


def user_word(record: dict) -> str | None:
    """What the user said of whom the generator of an adopted pool saw; None for other pools."""
    adopted = record["provenance"].get("adopted")
    if adopted is None:
        return None
    words = {
        "none": "none of its cases",
        "all": "all its cases",
        "unknown": "not known, which counts as all its cases",
        "listed": f"{len(record['provenance']['cases'])} of its cases",
    }
    return (
        f"Made by another program, {adopted['made_by']}. Whom its generator saw of {record['dataset']['name']} is the "
        f"user's word, which nothing here can check: {words[adopted['saw']]}."
    )
