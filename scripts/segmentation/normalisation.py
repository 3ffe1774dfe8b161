"""What the network sees of an image: channels in [0, 1], or with mean 0 and standard deviation 1 as in nnU-Net."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from monai.utils import CommonKeys as Keys

from ..data.scaling import MASK_MARGIN
from ..data.training_set import TrainingSet
from ..runtime.errors import InputError

MIN_MAX, Z_SCORE = "min-max", "z-score"
SMALLEST = 1e-6  # standard deviation of a channel that is all but constant


@dataclass(frozen=True)
class ZScore:
    """`(x - mean) / sd` of image channels that were scaled to [0, 1].

    As with the scaling, one map serves all cases in a preprocessed space, where nnU-Net has normalised whole volumes
    by its own scheme; in a raw space each case has its own.

    Attributes:
        mean, sd: one a channel; with `per_case` medians over the training cases, for what has no case: samples.
        per_case: a case is normalised by its own mean and standard deviation.
        masked: voxels outside the mask of nnU-Net's normalisation are 0 before and after.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    per_case: bool = False
    masked: bool = False

    def of_case(self, scaled: np.ndarray, inside: np.ndarray) -> ZScore:
        """The map of a case: scaled image `(channel, depth, height, width)` and the voxels inside its mask."""
        if not self.per_case:
            return self
        mean, square = _moments(scaled, inside)
        return ZScore(*_mean_and_sd(mean, square), per_case=True, masked=self.masked)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Channels in [0, 1] `(channel, ...)` to mean 0 and standard deviation 1."""
        mean, sd = (torch.tensor(values).reshape(-1, *[1] * (image.ndim - 1)) for values in (self.mean, self.sd))
        normalised = (image - mean) / sd
        return (
            torch.where((image < MASK_MARGIN / 2).all(0, keepdim=True), 0.0, normalised) if self.masked else normalised
        )

    @property
    def background(self) -> torch.Tensor:
        """What surrounds an image on the grid, 0 in [0, 1], as the network sees it: `(channel,)`."""
        return self(torch.zeros(len(self.mean), 1))[:, 0]

    def as_record(self) -> dict:
        """The fields that the provenance stores."""
        return {"mean": list(self.mean), "sd": list(self.sd), "per_case": self.per_case, "masked": self.masked}

    @classmethod
    def from_record(cls, record: dict | None) -> ZScore | None:
        """The map that `as_record` stored; None for images that stay in [0, 1]."""
        if record is None:
            return None
        return cls(tuple(record["mean"]), tuple(record["sd"]), record["per_case"], record["masked"])


class Normalise(Transform):
    """The images of training items as the network sees them.

    Args:
        data: the real items.
        normalisation: "min-max": as they are, in [0, 1]; "z-score": see `ZScore`.

    Raises:
        InputError: another word.
    """

    def __init__(self, data: TrainingSet, normalisation: str = MIN_MAX):
        if normalisation not in (MIN_MAX, Z_SCORE):
            raise InputError(f"normalisation {normalisation!r}", f"{MIN_MAX!r} or {Z_SCORE!r}", "set normalisation")
        self.name = normalisation
        self.common: ZScore | None = None
        self.of_case: dict[str, ZScore] = {}
        if normalisation == MIN_MAX:
            return
        per_case, masked = data.scaling.per_case, data.scaling.masked
        moments = {}
        for case in data.cases.training():
            moments[case.id] = _moments(data.scaling.apply(case), case.inside)
        if per_case:
            maps = {case: _mean_and_sd(*found) for case, found in moments.items()}
            self.of_case = {case: ZScore(*found, per_case=True, masked=masked) for case, found in maps.items()}
            mean, sd = np.median(np.array(list(maps.values())), axis=0)
        else:
            mean, sd = map(np.array, _mean_and_sd(*np.mean(np.array(list(moments.values())), axis=0)))
        self.common = ZScore(tuple(map(float, mean)), tuple(map(float, sd)), per_case, masked)

    @property
    def record(self) -> dict | None:
        """What the provenance stores, for images that are to be predicted."""
        return None if self.common is None else self.common.as_record()

    def map_of(self, case: str) -> ZScore | None:
        """The map of a training case, or of a sample by its id; None for images that stay in [0, 1]."""
        return self.of_case.get(case, self.common)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Item `{"image": (channel, ...) in [0, 1], "case": id, ...}`."""
        normalise = self.map_of(data["case"])
        return dict(data) if normalise is None else {**data, Keys.IMAGE: normalise(data["image"])}


def normalisation_of(augmentation: str) -> str:
    """What an augmentation needs: nnU-Net's is made for a standard deviation of 1, its noise drowns less."""
    return Z_SCORE if augmentation == "online" else MIN_MAX


def _moments(scaled: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square of each channel inside the mask."""
    tissue = scaled[:, inside].astype(np.float64)
    return tissue.mean(axis=1), (tissue**2).mean(axis=1)


def _mean_and_sd(mean: np.ndarray, square: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    sd = np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), SMALLEST)
    return tuple(map(float, mean)), tuple(map(float, sd))
