"""nnU-Net's preprocessed data set: its folder, plans, split and space, read and checked."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

# The key of plans that cpu-plans wrote, which holds their name: no others are ever replaced.
CPU_PLANS_MARK = "synthaug_cpu_plans"
# What of a space decides whether arrays made for one plan fit another; batch size and architecture do not.
SPACE_FIELDS = (
    "data_identifier",
    "spacing",
    "transpose_forward",
    "normalization_schemes",
    "use_mask_for_norm",
    "foreground_intensity_properties_per_channel",
)


@dataclass(frozen=True)
class PreprocessedDataset:
    """A data set below `nnUNet_preprocessed`."""

    folder: Path
    dataset_json: dict[str, Any]

    @property
    def name(self) -> str:
        """The full name, such as Dataset501_LGG."""
        return self.folder.name

    @property
    def names(self) -> set[str]:
        """The full name, and that of the folder behind a link: pools may name either."""
        return {self.folder.name, self.folder.resolve().name}

    @property
    def channel_names(self) -> dict[str, str]:
        """Names of the image channels by number."""
        return self.dataset_json.get("channel_names") or self.dataset_json["modality"]

    def pool_folder(self, pool: str, fold: int | str) -> Path:
        """Return where the imported pool of a fold lies: outside what nnU-Net's preprocessing removes."""
        return self.folder / "synthaug" / pool / f"fold_{fold}"


def environment_folder(variable: str, must_exist: bool = True) -> Path:
    """Return the folder that an environment variable of nnU-Net names; `InputError` when unset or missing."""
    value = os.environ.get(variable)
    if not value or (must_exist and not Path(value).is_dir()):
        raise InputError(
            f"environment variable {variable} = {value!r}",
            "an existing folder" if must_exist else "a folder",
            f"export {variable}=/path/to/{variable}",
        )
    return Path(value)


def find_dataset(dataset: int | str) -> PreprocessedDataset:
    """Find a data set by number or name below `nnUNet_preprocessed`."""
    root = environment_folder("nnUNet_preprocessed")
    text = str(dataset)
    present = sorted(path for path in root.glob("Dataset*") if path.is_dir())
    # As nnU-Net finds a number, but that Dataset1234 is not of number 123.
    number = re.compile(rf"Dataset{int(text):03d}(?!\d)") if text.isdecimal() else None
    found = [path for path in present if path.name == text or (number and number.match(path.name))]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} data sets for {text} in {root}",
            f"one of: {', '.join(path.name for path in present) or 'none'}",
            "name an existing data set, or run nnUNetv2_plan_and_preprocess first",
        )
    return PreprocessedDataset(found[0], read_json(found[0] / "dataset.json", "run nnUNetv2_plan_and_preprocess"))


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object; `InputError` with this remedy when the file is missing or corrupt."""
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: {error}", "a readable JSON file", remedy) from None
    if not isinstance(content, dict):
        raise InputError(f"{file} with a {type(content).__name__}", "a JSON object", remedy)
    return content


def wrong_field(content: dict[str, Any], required: Mapping[str, type | tuple[type, ...]]) -> str | None:
    """Name the first of the fields, such as `space.kind`, that is missing or of another kind; None if all are right."""
    for path, kind in required.items():
        value: Any = content
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            return f"`{path}` is {value!r}"
    return None


def json_sha256(content: Any) -> str:
    """Return the hash of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(file: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it, so that the file is whole or absent."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        temporary.write_text(json.dumps(content, indent=4) + "\n")
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_plans(dataset: PreprocessedDataset, plans: str) -> dict[str, Any]:
    """Read a plans file of the data set by its name."""
    file = dataset.folder / f"{plans}.json"
    if not file.is_file():
        present = [path.stem for path in sorted(dataset.folder.glob("*.json")) if "configurations" in path.read_text()]
        raise InputError(
            f"no plans {plans} in {dataset.folder}",
            ", ".join(present) or "none: the data set has no plans",
            "name existing plans, or run nnUNetv2_plan_and_preprocess",
        )
    content = read_json(file, remedy := "run nnUNetv2_plan_experiment again")
    if wrong := wrong_field(content, {"configurations": dict, "plans_name": str, "transpose_forward": list}):
        raise InputError(f"{file}: {wrong}", "the plans as nnU-Net wrote them", remedy)
    return content


def resolve_configuration(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration with what it inherits; cascades are refused."""
    resolved = with_inherited(plans, configuration)
    if resolved.get("previous_stage") is not None:
        raise InputError(
            f"the cascade configuration {configuration}",
            "2d, 3d_fullres or 3d_lowres (and configurations that inherit from them)",
            "synthetic cases have no prediction of a previous stage; train another configuration",
        )
    return resolved


def with_inherited(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration with what it inherits."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if configuration not in plans["configurations"]:
        raise InputError(
            f"no configuration {configuration} in the plans {plans['plans_name']}",
            ", ".join(plans["configurations"]),
            "name an existing configuration",
        )
    try:
        return PlansManager(plans).get_configuration(configuration).configuration
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:  # a circle is a RuntimeError
        raise InputError(
            f"the configuration {configuration} of the plans {plans['plans_name']}, which nnU-Net cannot read "
            f"({type(error).__name__}: {error})",
            "plans as nnU-Net writes them",
            "run nnUNetv2_plan_experiment again",
        ) from error


def space_fields(plans: dict[str, Any], configuration: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a resolved configuration's space that a pool must agree with (axes Z Y X)."""
    intensities = "foreground_intensity_properties_per_channel"
    return {
        **{field: configuration.get(field) for field in SPACE_FIELDS},
        "transpose_forward": plans["transpose_forward"],
        intensities: plans.get(intensities) or plans.get("foreground_intensity_properties_by_modality"),
    }


def check_space(space: dict[str, Any], dimension: int, plans: dict[str, Any], configuration: dict[str, Any]) -> None:
    """Raise `InputError` when arrays of this pool space and dimension (2 or 3) do not fit the configuration.

    Volumes of a 3D configuration serve 2d as well where both have the same spacing in plane and normalisation:
    then a slice of such a volume is what 2d would have read, since 2d leaves the slice axis as it is.
    """
    expected = space_fields(plans, configuration)
    got = {field: space.get(field) for field in SPACE_FIELDS}
    if dimension == 3 and len(expected["spacing"]) == 2:
        got["data_identifier"] = expected["data_identifier"]
    # 2d plans say nothing about the distance of slices.
    if isinstance(got["spacing"], list):
        got["spacing"] = got["spacing"][-len(expected["spacing"]) :]
    different = [field for field in SPACE_FIELDS if not _equal(got[field], expected[field])]
    if different:
        raise InputError(
            "a pool of another space: " + ", ".join(f"{f} = {_short(got[f])}" for f in different),
            ", ".join(f"{f} = {_short(expected[f])}" for f in different),
            "use the plans and configuration that the generator was trained with, or train it on this space",
        )


def case_identifiers(dataset: PreprocessedDataset, configuration: dict[str, Any]) -> list[str]:
    """Return the sorted ids of the preprocessed cases; `InputError` when they are not there."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    folder = dataset.folder / configuration["data_identifier"]
    try:
        identifiers = sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))
    except (OSError, AssertionError, KeyError):
        identifiers = []
    if not identifiers:
        raise InputError(
            f"no preprocessed cases in {folder}",
            "the output of nnU-Net's preprocessing",
            f"run nnUNetv2_preprocess -d {dataset.name} for this configuration",
        )
    return identifiers


def case_reader(dataset: PreprocessedDataset, data_identifier: str) -> Callable[[str], tuple[Any, Any, Any, dict]]:
    """Return what reads a preprocessed case by its id: data, segmentation, None and properties."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    folder = str(dataset.folder / data_identifier)
    try:
        return infer_dataset_class(folder)(folder).load_case
    except (OSError, AssertionError, KeyError):
        raise InputError(
            f"no preprocessed cases in {folder}",
            "the cases that the generator saw, so that a leak can be excluded",
            f"run nnUNetv2_preprocess -d {dataset.name}",
        ) from None


def fold_split(
    dataset: PreprocessedDataset, identifiers: list[str], fold: int | str
) -> tuple[set[str], set[str], list[dict[str, list[str]]] | None, bool]:
    """Return training and validation ids of a fold, all splits, and whether nnU-Net wrote none yet.

    The splits are nnU-Net's own: read from splits_final.json or made by the same call with the same seed.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    file = dataset.folder / "splits_final.json"
    is_new = not file.is_file()
    if not is_new:
        splits = read_splits(file)
    elif len(identifiers) >= 5:
        splits = generate_crossval_split(list(np.sort(identifiers)), seed=12345, n_splits=5)
    elif fold == "all":
        splits = None
    else:
        raise InputError(
            f"{len(identifiers)} cases and no splits_final.json",
            "5 cases or more for nnU-Net's five folds",
            f"write {file} yourself, or use the fold all",
        )
    if fold == "all":
        return set(identifiers), set(identifiers), splits, False
    if splits is None or not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < len(splits):
        raise InputError(
            f"fold {fold!r} of {dataset.name}",
            f"0 to {len(splits or ()) - 1}, or all",
            "name a fold of splits_final.json",
        )
    return set(splits[fold]["train"]), set(splits[fold]["val"]), splits, is_new


def check_leakage(cases: Iterable[str], train: Iterable[str], val: Iterable[str], fold: int | str) -> None:
    """Raise `InputError` naming the generator's training cases on which this fold is validated."""
    leaked = sorted(set(cases) & (set(val) - set(train)))
    if leaked:
        raise InputError(
            f"a leak: the generator was trained on validation cases of fold {fold}: {', '.join(leaked)}",
            f"a generator that saw none of the validation cases of fold {fold}",
            f"train a generator on fold {fold} and sample a pool from it",
        )


def read_splits(file: Path) -> list[dict[str, list[str]]]:
    """Read nnU-Net's splits_final.json."""
    try:
        splits = json.loads(file.read_text("utf-8-sig"))
        if all(isinstance(split["train"], list) and isinstance(split["val"], list) for split in splits):
            return splits
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    remedy = "restore it, or remove it for nnU-Net's own"
    raise InputError(f"an unreadable {file}", 'a list of {"train": [...], "val": [...]}', remedy)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, float) or isinstance(b, float):
        is_number = isinstance(a, (int, float)) and isinstance(b, (int, float))
        return is_number and bool(np.isclose(a, b, rtol=1e-5, atol=1e-8, equal_nan=True))
    return a == b


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
