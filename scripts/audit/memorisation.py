"""Copies of training cases: samples that are nearer to one patient than patients are to each other.

Five comparisons: a thumbnail of the image, searched over flips and small shifts, which a blurred or rescaled copy does
not escape; the feature maps of the project's own extractor, over flips, for slightly shifted or turned ones; and the
edges and the detail of the whole image and of its halves, see `structure`, for all that is turned, scaled, bent,
inverted, blended or cut.

The score is a relative distance: to the nearest item of the nearest training patient, divided by the mean distance
to the nearest items of the patients after it. So it asks whether an item points at one patient. Smooth samples are
near to everybody, and images of rare patients far from everybody; neither changes it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..networks.features import SegmentationFeatures
from ..runtime.errors import InputError
from .items import AuditData, Items, Track
from .structure import Detail, Found, Structure
from .thresholds import Check

THUMBNAIL = 16  # pixels of the longest side
SHIFT = 1 / 32  # largest shift, as a share of the longest side
FEATURE_GRID = 4  # places along each axis at which feature maps are compared
SMALLEST_SPREAD = 0.1  # of a feature, as a share of the mean one
NEXT_PATIENTS = 5  # patients after the nearest one that the distance is relative to
BLIND = 0.1  # a threshold below it finds exact copies at most; edges on PET, at 0.08: 11 of 11, and turned ones 0 of 22
CHUNK = 64

Variants = Callable[[Tensor], Iterator[tuple[str, Tensor]]]  # images -> how each was changed, descriptors (items, ...)


class Nearest(NamedTuple):
    """Of every item: its distance to the nearest training item, relative to `scale`, that item, and the flip.

    `near` (items, patients) holds the distances to the nearest patients, ascending, and `who` their names: one more of
    them than the figures need.
    """

    relative: np.ndarray
    distance: np.ndarray
    scale: np.ndarray
    match: np.ndarray
    change: list[str]
    near: np.ndarray
    who: np.ndarray

    def without(self, patient: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`relative`, `distance` and `scale` as they are where that patient is no training case; NaN without others."""
        others = np.where((self.who == patient) | np.isinf(self.near), np.nan, self.near)
        order = np.sort(others, axis=1)[:, :-1]  # NaN come last
        after = order[:, 1:]
        counts = (~np.isnan(after)).sum(axis=1)
        scale = np.where(counts > 0, np.nansum(after, axis=1) / np.maximum(counts, 1), np.nan)
        return order[:, 0] / np.maximum(scale, 1e-12), order[:, 0], scale


class Comparison(Protocol):
    """A way to compare items with those of the training cases."""

    @property
    def name(self) -> str:
        """What its check and figures are called."""

    def distances(self, items: Items, reference: Items, track: Track, title: str, apart: bool) -> Found:
        """For some items at a time: their numbers, distances (items, reference), and which change they are smallest at.

        The change is a number (items, reference) in the list that comes last. `apart`: nobody will look at reference
        items of an item's own group.
        """


@dataclass(frozen=True)
class Descriptor:
    """A name, and the descriptors (items, numbers) of images (items, channels, *grid) under every change."""

    name: str
    variants: Variants

    def distances(self, items: Items, reference: Items, track: Track, title: str, apart: bool = False) -> Found:
        """See `Comparison`."""
        fixed = torch.cat([next(self.variants(part.float()))[1] for part in reference.images.split(CHUNK)])
        for start in track(list(range(0, len(items), CHUNK)), title):
            chosen = np.arange(start, min(start + CHUNK, len(items)))
            best = torch.full((len(chosen), len(reference)), torch.inf)
            change = torch.zeros(best.shape, dtype=torch.int64)
            names: list[str] = []
            for name, found in self.variants(items.images[start : start + CHUNK].float()):
                distances = torch.cdist(found, fixed)
                nearer = distances < best
                best[nearer] = distances[nearer]
                change[nearer] = len(names)
                names.append(name)
            yield chosen, best.numpy(), change.numpy(), names


def thumbnails() -> Descriptor:
    """Images averaged to `THUMBNAIL` pixels, under flips and shifts; distances are root mean squares in [0, 1]."""

    def variants(images: Tensor) -> Iterator[tuple[str, Tensor]]:
        sizes = images.shape[2:]
        small = [max(1, round(size * THUMBNAIL / max(sizes))) if max(sizes) > THUMBNAIL else size for size in sizes]
        steps = sorted({round(max(sizes) * SHIFT * part) for part in (-1, -0.5, 0, 0.5, 1)}, key=abs)
        room = max(steps)
        # Shifts in the plane alone: volumes are stretched along depth, which moves their ends together.
        padded = functional.pad(images, [0] * (2 * (len(sizes) - 2)) + [room] * 4, mode="replicate")
        for down, right in itertools.product(steps, steps):
            shifted = padded[:, :, room + down : room + down + sizes[0], room + right : room + right + sizes[1]]
            reduced = functional.interpolate(shifted, small, mode="area")
            for flip, flipped in flips(reduced):
                yield flip, flipped.flatten(1) / flipped[0].numel() ** 0.5

    return Descriptor("pixels", variants)


def feature_maps(extractor: SegmentationFeatures, reference: Tensor) -> Descriptor:
    """Maps of the extractor, averaged to a coarse grid and each divided by its spread over `reference` images.

    Volumes are seen slice by slice.
    """

    @torch.no_grad()
    def describe(images: Tensor) -> Tensor:
        depth = images.shape[4] if images.ndim == 5 else 0
        slices = images.movedim(4, 1).flatten(0, 1) if depth else images
        maps = [functional.adaptive_avg_pool2d(found, FEATURE_GRID) for found in extractor(slices)]
        rows = torch.cat(maps, dim=1)
        if depth:
            stack = rows.unflatten(0, (-1, depth)).movedim(1, -1)
            rows = functional.adaptive_avg_pool3d(stack, (FEATURE_GRID, FEATURE_GRID, min(FEATURE_GRID, depth)))
        return rows.flatten(1)

    rows = torch.cat([describe(part) for part in reference.split(CHUNK)])
    centre, spread = rows.mean(dim=0), rows.std(dim=0)
    spread = spread.clamp(min=SMALLEST_SPREAD * float(spread.mean()))  # background may be the same in all images

    def variants(images: Tensor) -> Iterator[tuple[str, Tensor]]:
        for flip, flipped in flips(images):
            found = (describe(flipped) - centre) / spread
            yield flip, found / found.shape[1] ** 0.5

    return Descriptor("features", variants)


def flips(images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Images (items, channels, *grid) as they are and flipped along every choice of axes, with a name."""
    names = ("up-down", "left-right", "along depth")
    axes = range(images.ndim - 2)
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            yield " and ".join(names[axis] for axis in chosen), images.flip([axis + 2 for axis in chosen])


def patient_distances(
    comparison: Comparison, items: Items, reference: Items, track: Track, title: str, apart: bool
) -> Nearest:
    """The nearest reference item of each item, and how near relative to other patients.

    Args:
        comparison: what is compared.
        items: whatever is judged.
        reference: of the training cases.
        track: shows a bar.
        title: of the bar.
        apart: leave out the reference items of the item's own group.

    Raises:
        InputError: fewer than three training patients, of whom one would be left to be relative to.
    """
    patients, members = np.unique(reference.groups, return_inverse=True)
    if len(patients) < 3:
        raise InputError(
            f"{len(patients)} training cases with foreground",
            "at least 3: memorisation is a distance to one patient, relative to others",
            "train the generator on more cases",
        )
    following = min(NEXT_PATIENTS, len(patients) - 2)  # as many for items whose own patient is left out
    rows: list[tuple] = []
    changes: list[str] = []
    for chosen, best, change, names in comparison.distances(items, reference, track, title, apart):
        if apart:
            best[items.groups[chosen][:, None] == reference.groups[None]] = np.inf
        by_patient = np.stack([best[:, members == i].min(axis=1) for i in range(len(patients))], axis=1)
        order = np.argsort(by_patient, axis=1, kind="stable")[:, : 2 + following]
        ordered = np.take_along_axis(by_patient, order, axis=1)
        scale = ordered[:, 1 : 1 + following].mean(axis=1)
        match = best.argmin(axis=1)
        rows.append((ordered[:, 0] / np.maximum(scale, 1e-12), ordered[:, 0], scale, match, ordered, patients[order]))
        changes += [names[i] for i in change[np.arange(len(match)), match]]
    relative, distance, of_scale, nearest, near, who = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Nearest(relative, distance, of_scale, nearest, changes, near, who)


@dataclass(frozen=True)
class Memorisation:
    """Checks of all comparisons, and what each sample is nearest to.

    Attributes:
        checks: of pixels, features, structure, detail and halves.
        unlike: the other tail, images that are like no training case.
        nearest, real: of the samples and of the real items, by comparison.
        training: what `match` counts in.
    """

    checks: list[Check]
    unlike: Check
    nearest: dict[str, Nearest]
    real: dict[str, Nearest]
    training: Items

    @property
    def closeness(self) -> np.ndarray:
        """How far below its threshold a sample is, (samples,): below 1 it is a copy by one comparison at least."""
        return self._parts.min(axis=0)

    @property
    def blind(self) -> list[str]:
        """The checks by which two real patients are as near as a copy is to its original, or none is near."""
        return [check.key for check in self.checks if not BLIND <= check.thresholds[0] < 1]

    @property
    def _parts(self) -> np.ndarray:
        """Scores as parts of their thresholds (checks, samples); infinite by a check that has none above 0."""
        parts = np.full((len(self.checks), len(self.checks[0].samples)), np.inf)
        for row, check in zip(parts, self.checks, strict=True):
            if check.thresholds[0] > 0:
                row[:] = check.samples / check.thresholds[0]
        return parts

    def copied(self, index: int) -> dict:
        """The training item that sample `index` is nearest to, by the comparison that shows it best."""
        by = int(self._parts[:, index].argmin())
        name = list(self.nearest)[by]
        found = self.nearest[name]
        match = int(found.match[index])
        return {
            "of": self.training.names[match],
            "case": str(self.training.groups[match]),
            "flipped": found.change[index],
            "by": name,
            "relative_distance": float(found.relative[index]),
            "distance": float(found.distance[index]),
            "index": match,
        }


def find_copies(
    audit: AuditData, extractor: SegmentationFeatures, levels: dict[str, float], track: Track
) -> Memorisation:
    """Memorisation of the samples.

    Real items, held-out and training alike, are compared with the training items of all other patients: so near is a
    case that nobody copied.
    """
    training = audit.real.subset(~audit.held_out)
    checks, nearest, real = [], {}, {}
    comparisons: list[Comparison] = [thumbnails(), feature_maps(extractor, training.images.float())]
    if audit.painted is None:  # the edges of painted boxes are those of the boxes
        comparisons += [Structure(), Detail("detail", halves=False), Detail("halves", halves=True)]

    def judged_without(found: Nearest, patient: str, column: int = 0) -> np.ndarray:
        return np.where(audit.judged, found.without(patient)[column], np.nan)

    for comparison in comparisons:
        name = comparison.name
        real[name] = patient_distances(comparison, audit.real, training, track, f"{name} of real items", apart=True)
        found = patient_distances(comparison, audit.samples, training, track, f"{name} of samples", apart=False)
        nearest[name] = found
        notes = [
            f"copy of {training.names[i]}" + (f" ({how})" if how else "")
            for i, how in zip(found.match, found.change, strict=True)
        ]
        checks.append(
            Check(
                f"memorisation_{name}",
                f"distance to the nearest training case, relative to the next ones, in {name}:",
                True,
                levels[f"memorisation_{name}"],
                np.where(audit.judged, real[name].relative, np.nan),
                found.relative,
                audit.real.groups,
                audit.held_out,
                notes=notes,
                without=functools.partial(judged_without, real[name]),
            )
        )
    unlike = Check(
        "image_unlike",
        "image unlike every training case, distance in features:",
        False,
        levels["image_unlike"],
        np.where(audit.judged, real["features"].distance, np.nan),
        nearest["features"].distance,
        audit.real.groups,
        audit.held_out,
        without=functools.partial(judged_without, real["features"], column=1),
    )
    return Memorisation(checks, unlike, nearest, real, training)
