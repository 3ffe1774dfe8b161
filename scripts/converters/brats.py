"""BraTS adult glioma: 2021 and 2022 (one naming), 2023."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..runtime.errors import InputError
from .nifti import copy_checked, open_nifti, read_voxels, refuse_labels, refuse_missing, refuse_other_grids, write_like
from .raw_dataset import Conversion, SourceCase


@dataclass(frozen=True)
class Edition:
    """How a year names its files and numbers its labels.

    Attributes:
        folder: a case's folder; the group is the patient.
        example: such a folder's name.
        file: name of a case's file.
        suffixes: part of that name for each modality, and for the label.
        integers: necrosis, oedema, enhancing tumour.
    """

    folder: re.Pattern[str]
    example: str
    file: str
    suffixes: dict[str, str]
    integers: tuple[int, int, int]


EDITIONS = {
    "2021/2022": Edition(
        re.compile(r"(BraTS2021_\d{5})"),
        "BraTS2021_00000",
        "{case}_{suffix}.nii.gz",
        {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair", "seg": "seg"},
        (1, 2, 4),
    ),
    "2023": Edition(
        re.compile(r"(BraTS-GLI-\d{5})-\d{3}"),
        "BraTS-GLI-00000-000",
        "{case}-{suffix}.nii.gz",
        {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"},
        (1, 2, 3),
    ),
}
CHANNEL_NAMES = {"t1": "T1", "t1c": "T1c", "t2": "T2", "flair": "FLAIR"}
TARGETS: dict[str, dict[str, int | list[int]]] = {
    # As nnU-Net's own conversion of BraTS 2021 has it: 1 oedema, 2 necrosis, 3 enhancing tumour.
    "regions": {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": [3]},
    "whole": {"background": 0, "whole_tumor": 1},
}


def plan_brats(source: Path, modalities: list[str] | None = None, target: str | None = None) -> Conversion:
    """Find and check the cases of BraTS 2021, 2022 or 2023; the year is told by the names.

    Images are copied byte by byte. Labels become 1 oedema, 2 necrosis, 3 enhancing tumour with the regions whole
    tumour, tumour core and enhancing tumour, or 1 whole tumour.

    Args:
        source: the folder that holds a folder for each case.
        modalities: of t1, t1c, t2, flair, in channel order; all by default.
        target: regions (default) or whole. `["flair"]` and whole make the data set of the dHVAE paper.

    Raises:
        InputError: names, files, grids or labels are not those of one edition.
    """
    modalities = list(CHANNEL_NAMES) if modalities is None else modalities
    target = "regions" if target is None else target
    _refuse_options(modalities, target)
    edition = EDITIONS[_edition(source)]
    cases = []
    for folder in tqdm(_case_folders(source), desc="checking", unit="case"):
        match = edition.folder.fullmatch(folder.name)
        assert match is not None  # told the edition by it
        files = {
            name: folder / edition.file.format(case=folder.name, suffix=suffix)
            for name, suffix in edition.suffixes.items()
        }
        paths = [*(files[name] for name in modalities), files["seg"]]
        refuse_missing(folder.name, paths)
        refuse_other_grids(folder.name, paths)
        hint = "4 under this naming is the resection cavity of BraTS 2024, which is not supported"
        refuse_labels(
            folder.name, files["seg"], read_voxels(folder.name, files["seg"]), {0, *edition.integers},
            hint if edition.integers == (1, 2, 3) else "",
        )  # fmt: skip
        cases.append(SourceCase(folder.name, match[1], tuple(paths[:-1]), paths[-1]))

    necrosis, oedema, enhancing = edition.integers
    table = np.zeros(5, np.uint8)
    table[[oedema, necrosis, enhancing]] = (1, 2, 3) if target == "regions" else 1

    def write(case: SourceCase, image_paths: list[Path], label_path: Path | None) -> None:
        for path, copy in zip(case.images, image_paths, strict=True):
            copy_checked(case.id, path, copy)
        assert case.label is not None and label_path is not None  # BraTS cases are annotated
        label = table[read_voxels(case.id, case.label).astype(np.uint8)]
        write_like(open_nifti(case.id, case.label), label, label_path)

    return Conversion(
        cases=cases,
        channel_names=[CHANNEL_NAMES[name] for name in modalities],
        labels=dict(TARGETS[target]),
        regions_class_order=[1, 2, 3] if target == "regions" else None,
        settings={"format": "brats", "edition": _edition(source), "target": target},
        write=write,
    )


def _refuse_options(modalities: Any, target: Any) -> None:
    if not isinstance(target, str) or target not in TARGETS:
        raise InputError(f"target {target!r}", ", ".join(TARGETS), "choose one of the targets")
    known = isinstance(modalities, (list, tuple)) and all(name in CHANNEL_NAMES for name in modalities)
    if not known or not modalities or len(set(modalities)) < len(modalities):
        raise InputError(
            f"modalities {modalities!r}",
            f"a list of some of {', '.join(CHANNEL_NAMES)}, each once",
            """write --modalities '["flair"]'""",
        )


def _case_folders(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if path.is_dir() and path.name[0] not in "._")


def _edition(source: Path) -> str:
    """The edition by which all folders are named."""
    names = [folder.name for folder in _case_folders(source)]
    of_name = {
        name: next((year for year, edition in EDITIONS.items() if edition.folder.fullmatch(name)), None)
        for name in names
    }
    found = set(of_name.values())
    if len(found) == 1 and (year := found.pop()) is not None:
        return year
    examples = {year: next(name for name in names if of_name[name] == year) for year in set(of_name.values())}
    shown = ", ".join(sorted(f"{name} ({year or 'unknown'})" for year, name in examples.items()))
    raise InputError(
        f"{source} holds folders named {shown}" if names else f"{source} holds no folders",
        "; ".join(f"{year}: {edition.example}" for year, edition in EDITIONS.items()) + "; one edition for all",
        "give the folder that holds the case folders, and move anything else out of it",
    )
