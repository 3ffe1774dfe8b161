"""Samples of a lesion painter: real slices or volumes with a lesion more, with another one, or with one less."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunet_plugin.transplant.anatomy import Anatomy
from nnunet_plugin.transplant.bank import PLACING
from nnunet_plugin.transplant.lesions import Lesion
from nnunet_plugin.transplant.paste import Patch, make_patch, relabel
from nnunet_plugin.transplant.render import render
from nnunet_plugin.transplant.warp import draw_warp
from scipy import ndimage

from ..data.cases import phantom_for
from ..data.cases_of_pool import open_cases_of_generator
from ..data.holes import BORDERS, hole_around
from ..data.lesion_crops import Scene, lesion_integers, open_bank
from ..data.training_set import CACHE_GB, KeptCases, check_cache
from ..networks.lesion_flow import LesionFlow
from ..runtime.errors import InputError
from .painting import Painter, Request
from .sampler import Sampler, latent_noise, same_rounding

MODES = ("insert", "replace", "remove")
CONDITIONS = ("volume", "place")
TRIES = 30  # placements tried for one candidate
RATIO = 3.0  # largest, of the sizes of a lesion and of the one that takes its place


class Plan(NamedTuple):
    """What a candidate will be: where (`scene`, and `plane` of slices), the label map then, the hole, the donor."""

    scene: Scene
    plane: int | None
    wanted: np.ndarray
    hole: np.ndarray
    donor: str | None


class FlowSampler(Sampler):
    """Paint into the training cases of a `LesionFlow`.

    Modes: `insert` paints a lesion of another patient's shape, warped and placed as transplants are; `replace` paints
    one over a lesion that was there; `remove` paints healthy tissue over a lesion. Everything outside the hole is the
    patient's own, to the bit: such a pool is as private as the images.

    A condition of inserted lesions asks for bounds: `{"volume": [low, high]}` in mm3 (mm2 in slices), `{"place":
    [[low, high], ...]}` relative to the body along each axis, 0 to 1.

    Args:
        network: a `LesionFlow`.
        checkpoint, provenance: see `Sampler`.
        dataset_dir: the data set that it was trained on; None: the phantom in `phantom_dir`.
        phantom_dir: where a training without a data set made it.
        mode: see above.
        cache_gb: memory that cases may take, and that what lesions are placed by may.
        settings: of `Sampler`.

    Raises:
        InputError: nothing was trained, another data set, or a setting that cannot be used.
    """

    real_anatomy = True

    def __init__(
        self,
        network: LesionFlow,
        checkpoint: str | Path,
        provenance: str | Path,
        dataset_dir: str | Path | None,
        phantom_dir: str | Path = "phantom",
        mode: str = "insert",
        cache_gb: float = CACHE_GB,
        **settings: Any,
    ):
        if mode not in MODES:
            raise InputError(f"mode {mode!r}", f"one of {', '.join(MODES)}", "set --mode")
        super().__init__(network, checkpoint, provenance, **settings)
        self.mode = mode
        self.settings |= {"mode": mode, "num_steps": network.num_steps}
        if mode == "insert":
            self.settings["placing"] = PLACING
        trained = self.provenance["training"]
        folder = phantom_for(self.provenance, phantom_dir) if dataset_dir is None else Path(dataset_dir)
        record = {"space": self.provenance["space"], "provenance": self.provenance,
                  "dataset": self.description.as_record()}  # fmt: skip
        cases = open_cases_of_generator(record, folder)
        room = check_cache(cache_gb)
        kept, names = KeptCases(cases, room), cases.fold.train
        self.dimension = len(trained["windows"]["steps"])
        self.lesions = lesion_integers(self.description, trained["lesion_labels"])
        self.bank, self.scenes = open_bank(names, kept, self.dimension, self.lesions, room, None)
        seen = {case["id"]: case["sha256"] for case in self.provenance["cases"]}
        if changed := [name for name in names if seen[name] != kept.identities[name].sha256]:
            raise InputError(f"{folder}, where {', '.join(changed[:5])} changed since the training",
                             "the data set that it was trained on", "restore it, or train again")  # fmt: skip
        windows = trained["windows"]
        steps, values = tuple(windows["steps"]), np.array(windows["values"])
        self.painter = Painter(self.network, self.description, values, steps, self.inferer, self.autocast_dtype)
        if mode == "insert" and not len(self.bank.fits):
            raise InputError(f"{len(names)} training cases, in which no lesion of another one has a place",
                             "cases with tissue like that around lesions", "give --mode replace or remove")  # fmt: skip
        self.places = [
            (case, plane) for case, scene in enumerate(self.scenes) for plane in self._planes_with_lesions(scene)
        ]

    def check(self, condition: dict | None) -> None:
        """Raise `InputError` for a condition that this generator cannot follow."""
        if condition is None:
            return
        ndim = self.dimension
        bounds = [condition["volume"]] if "volume" in condition else []
        bounds += condition.get("place", [])
        wrong = self.mode != "insert" or set(condition) - set(CONDITIONS) or not condition
        wrong = wrong or len(condition.get("place", [0] * ndim)) != ndim
        if wrong or any(len(pair) != 2 or pair[0] > pair[1] for pair in bounds):
            raise InputError(
                f"condition {condition} in mode {self.mode}",
                f'insert, and {{"volume": [low, high]}} or {{"place": [[low, high], ...]}} along {ndim} axes',
                "mend --condition",
            )

    def accepts(self, label: np.ndarray, condition: dict | None) -> bool:
        """As in `Sampler`, but that where a lesion was taken away no foreground need be left."""
        return self.mode == "remove" or super().accepts(label, condition)

    def draw(self, candidates: range, seed: int, condition: dict | None = None) -> list[dict | None]:
        """Make the given candidates, see `Sampler.draw`.

        Records also hold `mode`, `recipient` (case, and slice), `donor` (the case whose lesion's outline was used) and
        `hole`: first voxel and size of the box that encloses what was painted.
        """
        drawn: list[dict | None] = []
        size = self.samples_per_pass
        for first in range(candidates.start // size * size, candidates.stop, size):
            numbers = range(first, first + size)
            plans = [self._plan(np.random.default_rng([seed, number]), condition) for number in numbers]
            painted = iter(self._paint(plans, numbers, seed))
            for number, plan in zip(numbers, plans, strict=True):
                item = None if plan is None else self._sample(plan, next(painted), number, condition)
                if candidates.start <= number < candidates.stop:
                    drawn.append(item)
        return drawn

    def _paint(self, plans: list[Plan | None], numbers: range, seed: int) -> list[np.ndarray]:
        requests = [
            Request(
                plan.scene.image(plan.plane),
                plan.wanted,
                plan.hole,
                plan.scene.intensities,
                lambda shape, number=number: latent_noise(shape, seed, number),  # type: ignore[misc]
            )
            for plan, number in zip(plans, numbers, strict=True)
            if plan is not None
        ]
        with same_rounding(self.threads):
            return self.painter.paint(requests) if requests else []

    def _sample(self, plan: Plan, image: np.ndarray, number: int, condition: dict | None) -> dict | None:
        label = np.maximum(plan.wanted, 0)
        if self.description.ignore_label is not None:
            label = np.where(label == self.description.ignore_label, 0, label)
        places = np.argwhere(plan.hole)
        low, high = places.min(axis=0), places.max(axis=0) + 1
        where = plan.scene.case.id if plan.plane is None else f"{plan.scene.case.id}, slice {plan.plane}"
        record = {"seed": number, "condition": condition, "scores": {}, "mode": self.mode, "recipient": where,
                  "donor": plan.donor, "hole": {"start": low.tolist(), "size": (high - low).tolist()}}  # fmt: skip
        item = {"image": image, "label": label.astype(np.uint8), "record": record}
        return item if self.accepts(item["label"], condition) else None

    def _plan(self, rng: np.random.Generator, condition: dict | None) -> Plan | None:
        for _ in range(TRIES):
            plan = self._insertion(rng, condition) if self.mode == "insert" else self._change(rng)
            if plan is not None and self._is_known(plan):
                return plan
        return None

    def _is_known(self, plan: Plan) -> bool:
        """Whether somebody said what is in the hole's surroundings."""
        ignored = self.description.ignore_label
        return ignored is None or not (plan.scene.label(plan.plane) == ignored).any()

    def _insertion(self, rng: np.random.Generator, condition: dict | None) -> Plan | None:
        drawn = self.bank.draw(rng, 0.0)
        if drawn is None:
            return None
        scene, plane = self.scenes[drawn.case], drawn.plane if self.dimension == 2 else None
        label = scene.label(plane)
        patch = render(self.bank, drawn, label.shape)
        new = _where(patch, label.shape)
        if not new.any():
            return None
        if condition is not None:
            anatomy = scene.anatomy if plane is None else scene.anatomy.plane(plane)
            place = anatomy.relative(drawn.centre / anatomy.stride).tolist()
            size = float(new.sum() * np.prod(self.painter.steps))
            asked = [(size, condition["volume"])] if "volume" in condition else []
            asked += list(zip(place, condition.get("place", []), strict=False))
            if any(not low <= value <= high for value, (low, high) in asked):
                return None
        wanted = relabel(label, patch, np.zeros(label.ndim, int))
        donor = self.scenes.names[self.bank.lesions[drawn.lesion].case]
        hole = hole_around(new, drawn.border, self.painter.steps)
        return Plan(scene, plane, wanted, hole & (label >= 0), donor)

    def _change(self, rng: np.random.Generator) -> Plan | None:
        case, plane = self.places[rng.integers(len(self.places))]
        scene = self.scenes[case]
        label = scene.label(plane)
        parts, count = ndimage.label(np.isin(label, self.lesions), np.ones([3] * label.ndim))
        old = parts == rng.integers(1, count + 1)
        border = float(rng.uniform(*BORDERS))
        hole = hole_around(old, border, self.painter.steps)
        wanted = np.where(old, _nearest_other(label, self.lesions), label).astype(label.dtype)
        if self.mode == "remove":
            return Plan(scene, plane, wanted, hole & (label >= 0), None)
        lesion = self.bank.lesions[int(rng.integers(len(self.bank.lesions)))]
        donor = self.scenes.names[lesion.case]
        if donor == scene.case.id:
            return None
        patch = self._patch(rng, lesion, np.argwhere(old).mean(axis=0), label.shape, border)
        new = _where(patch, label.shape)
        anatomy = scene.anatomy if plane is None else scene.anatomy.plane(plane)
        whole = np.count_nonzero(new) * RATIO > np.count_nonzero(old) > np.count_nonzero(new) / RATIO
        if not whole or (wanted[new] < 0).any() or not _in_body(anatomy, new):
            return None
        hole |= hole_around(new, border, self.painter.steps)
        return Plan(scene, plane, relabel(wanted, patch, np.zeros(label.ndim, int)), hole & (label >= 0), donor)

    def _patch(
        self, rng: np.random.Generator, lesion: Lesion, centre: np.ndarray, shape: tuple[int, ...], border: float
    ) -> Patch:
        warp = draw_warp(rng, lesion.extent, lesion.diameter, -1 if rng.random() < 0.5 else None, lesion.spacing)
        one = np.ones(len(lesion.image))
        return make_patch(
            lesion.image, lesion, warp, centre, np.array(self.painter.steps), shape, one, 0 * one, -np.inf * one, border
        )

    def _planes_with_lesions(self, scene: Scene) -> list[int | None]:
        found = np.isin(scene.label(None), self.lesions)
        if self.dimension == 3:
            return [None] if found.any() else []
        return list(np.flatnonzero(found.any(axis=(1, 2))).tolist())


def _where(patch: Patch, shape: tuple[int, ...]) -> np.ndarray:
    """Where in an image of this shape a patch puts a lesion."""
    new = np.zeros(shape, bool)
    new[tuple((np.argwhere(patch.labels > 0) + patch.start).T)] = True
    return new


def _nearest_other(label: np.ndarray, lesions: list[int]) -> np.ndarray:
    """Of each voxel the label of the nearest one that is no lesion: the organ that a lesion lies in."""
    nearest = ndimage.distance_transform_edt(np.isin(label, lesions), return_distances=False, return_indices=True)
    return np.maximum(label[tuple(nearest)], 0)


def _in_body(anatomy: Anatomy, mask: np.ndarray) -> bool:
    """Whether a mask lies in the body."""
    coarse = np.argwhere(mask) // anatomy.stride
    return bool((anatomy.depth[tuple(np.minimum(coarse, np.array(anatomy.depth.shape) - 1).T)] > 0).all())
