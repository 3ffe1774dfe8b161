"""What a data set says of itself (`dataset.json`): channels, labels or regions, and the mask channels they make."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetDescription:
    """Channels and labels of an nnU-Net data set.

    Attributes:
        name: folder name, for example `Dataset501_LGG`.
        channel_names: `{"0": "FLAIR", ...}` in channel order.
        labels: `{"background": 0, "tumor": 1}`; a region holds a list of integers; may hold `ignore`.
        regions_class_order: integer that nnU-Net's predictions write for each region, in the order of `labels`; of no
            meaning without regions.
        file_ending: ending of the raw image files, for example `.nii.gz`.
    """

    name: str
    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None
    file_ending: str = ".nii.gz"

    @property
    def foreground(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and integers of each mask channel, in the order of `dataset.json`."""
        return [
            (name, tuple(value) if isinstance(value, (list, tuple)) else (value,))
            for name, value in self.labels.items()
            if name not in ("background", "ignore") and value not in (0, [0])  # as nnU-Net's LabelManager
        ]

    @property
    def has_regions(self) -> bool:
        """Whether some label is a list of several integers, as nnU-Net decides; only then are there regions."""
        return any(len(values) > 1 for _, values in self.foreground)

    @property
    def painting(self) -> dict[int, int]:
        """What nnU-Net's `regions_class_order` makes of each known integer: the number of the last region it is in."""
        if not self.has_regions or self.regions_class_order is None:
            return {value: value for value in sorted(self.annotated)}
        painted = dict.fromkeys(sorted(self.annotated), 0)
        for (_, values), number in zip(self.foreground, self.regions_class_order, strict=True):
            painted |= dict.fromkeys(sorted(values), number)
        return painted

    @property
    def paints_what_it_reads(self) -> bool:
        """Whether every known integer, painted by `regions_class_order`, is still in the same regions."""
        known = self.annotated
        return all(
            number in known and bool((self._membership(value) == self._membership(number)).all())
            for value, number in self.painting.items()
        )

    @property
    def painted(self) -> dict[str, int]:
        """The integer that stands for each label or region: one that is in it and in as few others as can be."""
        if self.has_regions and self.regions_class_order is not None and self.paints_what_it_reads:
            return dict(zip((name for name, _ in self.foreground), self.regions_class_order, strict=True))
        return {
            name: min(values, key=lambda value: (int(self._membership(value).sum()), value))
            for name, values in self.foreground
        }

    def _membership(self, value: int) -> np.ndarray:
        """Mask channels of one integer: bool `(labels,)`."""
        return np.array([value in values for _, values in self.foreground])

    @property
    def ignore_label(self) -> int | None:
        """The integer of voxels that nobody annotated, or None."""
        value = self.labels.get("ignore")
        return value if isinstance(value, int) else None

    @property
    def num_image_channels(self) -> int:
        """Number of image channels."""
        return len(self.channel_names)

    @property
    def num_channels(self) -> int:
        """Image channels and mask channels: what a joint model sees."""
        return self.num_image_channels + len(self.foreground)

    @property
    def annotated(self) -> set[int]:
        """Every integer that says what a voxel is."""
        return {0} | {value for _, values in self.foreground for value in values}

    @property
    def known_integers(self) -> set[int]:
        """Every integer that a label map of this data set may hold."""
        known = self.annotated
        return known if self.ignore_label is None else known | {self.ignore_label}

    def to_channels(self, label: np.ndarray) -> np.ndarray:
        """Integer label map `(...)` to binary mask channels `(labels, ...)`, uint8 in {0, 1}."""
        regions = (values for _, values in self.foreground)  # a plain label is told several times faster
        masks = [label == values[0] if len(values) == 1 else np.isin(label, values) for values in regions]
        return np.stack(masks).astype(np.uint8)

    def to_label_map(self, channels: np.ndarray, threshold: float = 0.5) -> np.ndarray:
        """Mask probabilities `(labels, ...)` in [0, 1] to an integer label map `(...)`, uint8.

        The law: what `to_channels` reads of the result is what was given, wherever some integer is in just these
        regions. Regions are painted in `regions_class_order`, as nnU-Net's predictions are, where that keeps the law;
        elsewhere each voxel gets the integer whose regions fit the probabilities best. Plain labels go to the most
        probable one where any exceeds the threshold.
        """
        label = np.zeros(channels.shape[1:], dtype=np.uint8)
        if not self.has_regions:
            values = np.array([values[0] for _, values in self.foreground], dtype=np.uint8)
            if len(values) == 1:
                return np.where(channels[0] > threshold, values[0], label)
            return np.where(channels.max(axis=0) > threshold, values[channels.argmax(axis=0)], label).astype(np.uint8)
        if self.regions_class_order is not None and self.paints_what_it_reads:
            for probability, value in zip(channels, self.regions_class_order, strict=True):
                label[probability > threshold] = value
            return label
        known = np.array(sorted(self.annotated))
        signs = np.stack([np.where(self._membership(value), 1.0, -1.0) for value in known])
        return known[np.tensordot(signs, channels - threshold, axes=1).argmax(axis=0)].astype(np.uint8)

    def as_record(self) -> dict:
        """The fields that a pool stores."""
        return {
            "name": self.name,
            "channel_names": self.channel_names,
            "labels": self.labels,
            "regions_class_order": self.regions_class_order,
        }


def read_description(dataset_dir: str | Path) -> DatasetDescription:
    """Read and check `dataset.json` of an nnU-Net raw or preprocessed data set folder.

    Raises:
        InputError: the file is missing, is not JSON, or lacks what a segmentation data set needs.
    """
    path = Path(dataset_dir) / "dataset.json"
    if not path.is_file():
        raise InputError(
            f"no dataset.json in {dataset_dir}",
            "an nnU-Net data set folder: raw (imagesTr, labelsTr, dataset.json) or preprocessed",
            "give the folder DatasetNNN_NAME itself, or make one with `synthaug phantom`",
        )
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        channels, labels = content["channel_names"], content["labels"]
        channel_names = {str(k): str(channels[k]) for k in sorted(channels, key=int)}
        if [int(key) for key in channel_names] != list(range(len(channel_names))) or not channel_names:
            raise ValueError(f"channel_names {channels} are not numbered from 0")
        integers = [v for value in labels.values() for v in (value if isinstance(value, list) else [value])]
        if not all(isinstance(v, int) and 0 <= v <= 255 for v in integers):
            raise ValueError(f"labels {labels} are not whole numbers from 0 to 255")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be used ({type(error).__name__}: {error})",
            "JSON with channel_names and labels, as nnU-Net v2 writes it",
            "mend the file, see nnU-Net's documentation/dataset_format.md; data sets of nnU-Net v1: "
            "nnUNetv2_convert_old_nnUNet_dataset",
        ) from error
    ending = content.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise InputError(f"{path} with file_ending {ending!r}", "such as .nii.gz", "mend `file_ending`")
    order = content.get("regions_class_order")
    description = DatasetDescription(
        name=Path(dataset_dir).resolve().name,
        channel_names=channel_names,
        labels=labels,
        regions_class_order=order,
        file_ending=ending,
    )
    if not description.foreground or description.labels.get("background") != 0:
        raise InputError(
            f"{path} declares labels {labels}", "background 0 and at least one foreground label", "mend `labels`"
        )
    is_list = isinstance(order, list) and all(isinstance(value, int) and 0 <= value <= 255 for value in order)
    if description.has_regions and not (is_list and len(order) == len(description.foreground)):
        raise InputError(
            f"{path} declares regions with regions_class_order {order}",
            f"one integer for each of the {len(description.foreground)} regions",
            "add regions_class_order to dataset.json",
        )
    if empty := [name for name, values in description.foreground if not values]:
        raise InputError(f"{path} with no integer in {', '.join(empty)}", "an integer or more in each", "mend `labels`")
    if with_background := [name for name, values in description.foreground if 0 in values]:
        raise InputError(
            f"{path} with background (0) in {', '.join(with_background)}",
            "labels and regions of the foreground",
            "take 0 out of them",
        )
    if not description.paints_what_it_reads:
        logger.warning(
            "%s: nnU-Net's predictions will paint label(s) %s as what `labels` puts in other regions; "
            "regions_class_order %s would not", path,
            ", ".join(f"{value} as {number}" for value, number in description.painting.items() if value != number),
            list(description.painted.values()),
        )  # fmt: skip
    return description
