"""Which images are predicted and evaluated whole: items for MONAI's `LoadImaged`."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from monai.transforms import Compose, Invertd, LoadImaged, Transform
from monai.utils import CommonKeys as Keys

from ..data.cases import PHANTOM_NAME, Cases, PreprocessedCases, RawCases, phantom_for
from ..data.provenance import read_provenance
from ..phantom.dataset import write_phantom
from ..runtime.errors import InputError
from .model_space import ARRAY_ENDINGS, ImageReader, ModelSpace, ToGridd, ToLabelMapd

SPLITS = ("validation", "test")


def image_items(
    dataset_dir: str | Path | None, phantom_dir: str | Path, ckpt_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Items `{"image": [one path a channel], "case": id}` of a folder, sorted.

    Args:
        dataset_dir: a folder with CASE_0000.nii.gz, CASE_0001.nii.gz, ... (one a channel), an nnU-Net raw data set
            (its imagesTs), a folder of arrays that nnU-Net preprocessed, or None for the phantom's test cases.
        phantom_dir: where a training made the phantom; without one it is made elsewhere, while this process runs.
        ckpt_dir: of the weights, whose record says whether a phantom is what they know.

    Raises:
        InputError: the folder holds no images, or the weights learnt from something else than the phantom.
    """
    if dataset_dir is None:
        path = None if ckpt_dir is None else Path(ckpt_dir) / "provenance.json"
        made = phantom_for(read_provenance(path) if path and path.is_file() else None, phantom_dir)
        dataset_dir = made if made.is_dir() else _passing_phantom()
    folder = Path(dataset_dir)
    if (folder / "imagesTs").is_dir():
        folder = folder / "imagesTs"
    found = (path for ending in ARRAY_ENDINGS for path in folder.glob(f"*{ending}"))
    # an .npz without what nnU-Net writes beside its own may hold anything
    found = (path for path in found if path.suffix != ".npz" or path.with_suffix(".pkl").is_file())
    arrays = sorted(path for path in found if not path.stem.endswith("_seg"))
    items = [{"image": [str(path)], "case": path.stem} for path in arrays]
    for path in [] if arrays else sorted(folder.glob("*_0000.*")):
        case, _, ending = path.name.rpartition("_0000")
        items.append({"image": _channels(folder, case, ending), "case": case})
    if not items:
        raise InputError(
            f"no images in {folder}",
            f"CASE_0000.nii.gz, one file a channel, or arrays that nnU-Net preprocessed ({' or '.join(ARRAY_ENDINGS)})",
            "check --dataset_dir",
        )
    return items


@functools.cache
def _passing_phantom() -> Path:
    """The phantom for this process alone: who asks for predictions does not ask for a data set beside them."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_phantom(Path(folder) / PHANTOM_NAME)


def labelled_items(cases: Cases, split: str, raw_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """Items `{"image": [paths], "label": path, "case": id}` whose labels lie on the grid of the original images.

    Args:
        cases: open cases of one fold.
        split: "validation": the fold's validation cases; "test": imagesTs and labelsTs of the raw data set.
        raw_dir: the raw data set; needed for the test cases of preprocessed cases.

    Raises:
        InputError: there are none, or their labels are missing.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}", f"one of {', '.join(SPLITS)}", "set split")
    ending = cases.description.file_ending
    own = cases.dataset_dir if isinstance(cases, RawCases) else None
    if split == "test":
        folder = own if raw_dir is None else Path(raw_dir)
        if folder is None or not (folder / "imagesTs").is_dir() or not (folder / "labelsTs").is_dir():
            raise InputError(
                f"no imagesTs and labelsTs in raw_dir {folder}",
                "the raw nnU-Net data set with test images and their labels",
                "give --raw_dir $nnUNet_raw/DatasetNNN_NAME",
            )
        labels = sorted((folder / "labelsTs").glob(f"*{ending}"))
        items = [_raw_item(folder, "Ts", path.name.removesuffix(ending), ending) for path in labels]
    elif own is not None:
        items = [_raw_item(own, "Tr", case, ending) for case in cases.fold.val]
    else:
        assert isinstance(cases, PreprocessedCases)  # the only other kind
        truth = cases.folder.parent / "gt_segmentations"
        items = [
            {"image": [str(_array(cases.folder, case))], "label": str(truth / f"{case}{ending}"), "case": case}
            for case in cases.fold.val
        ]
    missing = [path for item in items for path in (*item["image"], item["label"]) if not Path(path).is_file()]
    if missing or not items:
        raise InputError(
            f"{len(items)} {split} cases, missing: {', '.join(missing[:5]) or 'all'}",
            "cases with images and labels (of preprocessed ones in gt_segmentations, where nnU-Net copies them)",
            "restore the files, run nnUNetv2_plan_and_preprocess again, or choose a fold with validation cases",
        )
    return items


def case_name(meta: dict[str, Any], saver: Any) -> dict[str, str]:
    """Names a saved prediction after its case, for MONAI's `SaveImage`: CASE_0000.nii.gz and CASE.b2nd become CASE."""
    return {"subject": case_of(str(meta["filename_or_obj"]))}


def case_of(image: str | Path | Sequence[str | Path]) -> str:
    """The case that an image file, or the first of those of the channels, is named after.

    An array that nnU-Net preprocessed holds all channels, and no number of a channel is in its name.
    """
    path = Path(image if isinstance(image, (str, Path)) else image[0])
    name = Path(path.name.removesuffix(".gz")).stem
    return name if path.suffix in ARRAY_ENDINGS else name.removesuffix("_0000")


def labelled_on_grid(space: ModelSpace | str | Path) -> Compose:
    """Transforms of `labelled_items`: the image on the grid of the model's space, the label as the file has it."""
    return Compose(
        [
            NameCase(),
            LoadImaged([Keys.IMAGE, Keys.LABEL], reader=ImageReader, ensure_channel_first=True),
            ToGridd(Keys.IMAGE, space),
        ]
    )


def label_map_of_file(preprocessing: Compose, space: ModelSpace | str | Path) -> Compose:
    """Transforms of logits `pred` of an image that `preprocessing` brought to the grid: to a label map of its file."""
    return Compose(
        [Invertd(Keys.PRED, preprocessing, orig_keys=Keys.IMAGE, nearest_interp=False), ToLabelMapd(Keys.PRED, space)]
    )


class NameCase(Transform):
    """Gives an item without `"case"` the name of its image, before that is loaded."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Name."""
        return {"case": case_of(data["image"]), **data}


def _array(folder: Path, case: str) -> Path:
    """The file of a preprocessed case."""
    paths = [folder / f"{case}{ending}" for ending in ARRAY_ENDINGS]
    return next((path for path in paths if path.is_file()), paths[0])


def _raw_item(folder: Path, part: str, case: str, ending: str) -> dict[str, Any]:
    images = _channels(folder / f"images{part}", case, ending)
    return {"image": images, "label": str(folder / f"labels{part}" / f"{case}{ending}"), "case": case}


def _channels(folder: Path, case: str, ending: str) -> list[str]:
    first = folder / f"{case}_0000{ending}"
    digits = "[0-9]" * 4
    more = sorted(path for path in folder.glob(f"{escape(case)}_{digits}{ending}") if path != first)
    return [str(first), *map(str, more)]
