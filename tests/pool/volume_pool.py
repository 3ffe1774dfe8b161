"""Pools of small volumes with round tumours, by a sampler that listens to its condition, or does not."""

import numpy as np

from scripts.data.conditions import ConditionModel, to_vector
from scripts.data.description import DatasetDescription
from scripts.sampling.sampler import Sampler

SPACING = (4.0, 2.0, 1.0)


def toy_model(cases: int = 40, seed: int = 0) -> ConditionModel:
    """Conditions of ellipsoids in a field of view of 96 x 80 x 64 mm; larger ones are longer and less round."""
    rng = np.random.default_rng(seed)
    view = np.array([96.0, 80.0, 64.0])
    radii = rng.uniform(6, 14, (cases, 1)) * rng.uniform(0.8, 1.25, (cases, 3))
    volume = 4 / 3 * np.pi * radii.prod(axis=1)
    sphericity = rng.uniform(0.75, 0.9, cases) - 0.01 * radii.mean(axis=1)
    surface = np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / sphericity
    centre = radii + rng.uniform(size=(cases, 3)) * (view - 2 * radii)
    return ConditionModel(np.column_stack([volume, surface, sphericity, centre, 2 * radii]), view)


class ToySampler(Sampler):
    """Ellipsoids as asked for (`obeys`), or like the training cases whatever is asked for."""

    def __init__(self, obeys: bool = True, channels: int = 1, min_foreground: int = 8, masked: bool = False):
        self.model, self.obeys, self.channels = toy_model(), obeys, channels
        self.dimension, self.samples_per_pass, self.min_foreground = 3, 1, min_foreground
        self.description = DatasetDescription(
            "Dataset901_Toy", {str(i): f"C{i}" for i in range(channels)}, {"background": 0, "tumour": 1}
        )
        space = {"kind": "nnunet_preprocessed", "spacing": list(SPACING), "use_mask_for_norm": [masked] * channels}
        self.provenance = {"weights_sha256": "0", "space": space, "bundle": {"name": "toy"}, "fold": 0}
        self.settings = {"min_foreground": min_foreground}

    def check(self, condition):
        self.model.check(condition)

    def draw(self, candidates, seed, condition=None):
        return [self._one(index, seed, condition) for index in candidates]

    def _one(self, index: int, seed: int, condition: dict | None) -> dict | None:
        features, noise = self.model.for_candidate(condition, seed, index)
        rng = np.random.default_rng([seed, noise])
        drawn = to_vector(features if self.obeys else self.model.draw(rng))
        shape = np.rint(self.model.field_of_view / SPACING).astype(int)
        places = np.moveaxis((np.indices(shape) + 0.5), 0, -1) * SPACING
        label = ((((places - drawn[3:6]) / (drawn[6:] / 2)) ** 2).sum(axis=-1) <= 1).astype(np.uint8)
        image = rng.normal(0, 0.2, (self.channels, *shape)).astype(np.float32) + 2 * label
        if "sweep" not in (condition or {}) and label.sum() < self.min_foreground:
            return None
        return {"image": image, "label": label, "record": {"seed": index, "condition": features, "scores": {}}}
