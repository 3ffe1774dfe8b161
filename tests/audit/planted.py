"""Simple heads with tumours, and pools of samples that a test made itself, with the record of a generator."""

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from scripts.data.cases import open_cases
from scripts.data.provenance import build_provenance
from scripts.data.training_set import TrainingSet, load_training_set
from scripts.pool.writing import write_pool
from scripts.sampling.sampler import Sampler

SHAPE = (6, 40, 36)  # depth, height, width


def head(patient: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image (channels, depth, height, width) and label: a head with its own folds, and a tumour (2) with a rim (1)."""
    rng = np.random.default_rng(patient)
    z, y, x = np.indices(SHAPE)
    size = rng.uniform(13, 17, 2)
    radius = np.hypot((y - 19.5) / size[0], (x - 17.5) / size[1])
    angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(2, 7)
    place = np.array([rng.uniform(2, 4), 19.5 + away * np.sin(angle), 17.5 + away * np.cos(angle)])
    tumour = np.sqrt(4 * (z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2) / rng.uniform(4.5, 6.5)
    label = np.where(radius < 0.95, np.where(tumour < 0.6, 2, np.where(tumour < 1, 1, 0)), 0)
    images = []
    for channel in range(channels):
        folds = gaussian_filter(rng.normal(size=SHAPE), (1, 2.5, 2.5))
        tissue = 100 + 60 * folds / folds.std() * 0.5 + 150 * (label > 0) + 60 * (label == 2) * (channel + 1)
        images.append(np.where(radius < 1, tissue, 0) + rng.normal(0, 3, SHAPE))
    return np.stack(images).astype(np.float32), label.astype(np.uint8)


def write_heads(folder: Path, cases: int, new: int, channels: int = 1, regions: bool = False) -> Path:
    """A raw data set; fold 0 trains on most cases, fold 1 validates on the `new` ones that fold 0 does not know."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    names = [f"head_{index:03d}" for index in range(cases)]
    for index, name in enumerate(names):
        image, label = head(index, channels)
        for channel, values in enumerate(image):
            nib.save(nib.Nifti1Image(values.T, affine), folder / f"imagesTr/{name}_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(label.T, affine), folder / f"labelsTr/{name}.nii.gz")
    labels = {"background": 0, "rim": 1, "core": 2}
    description = {
        "channel_names": {str(i): f"C{i}" for i in range(channels)},
        "labels": labels,
        "file_ending": ".nii.gz",
    }
    if regions:
        description |= {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(description | {"numTraining": cases}))
    rest = names[new:]
    known = {"train": rest[len(rest) // 5 :], "val": rest[: len(rest) // 5]}
    splits = [known, {"train": known["train"], "val": names[:new] or known["val"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return folder


def load(folder: Path, fold: int | str, grid: Sequence[int]) -> TrainingSet:
    """The items of a fold."""
    return load_training_set(open_cases(folder, fold), grid)


class PlantedSampler(Sampler):
    """Gives the items (channels + labels, *grid) that it was given, in their order, in the data's own space."""

    def __init__(self, data: TrainingSet, items: Sequence[torch.Tensor]):
        self.items = items
        self.description, self.scaling, self.geometry = data.cases.description, data.scaling, data.geometry
        self.dimension, self.samples_per_pass, self.min_foreground = len(data.geometry.spatial_size), 1, 0
        record = build_provenance(data, {"name": "planted", "version": "0"}, 0, {}, {"background_share": 0.1})
        self.provenance = {**record, "weights_sha256": "0"}
        self.settings = {"min_foreground": 0}

    def check(self, condition):
        pass

    def draw(self, candidates, seed, condition=None):
        return [self._one(index) for index in candidates]

    def _one(self, index: int) -> dict:
        image, label = self._to_space(self.items[index])
        return {"image": image, "label": label, "record": {"seed": index, "condition": None, "scores": {}}}


def write_planted(folder: Path, data: TrainingSet, items: Sequence[torch.Tensor]) -> Path:
    """A finished pool of the given items."""
    return write_pool(PlantedSampler(data, items), folder, len(items), progress=False)
