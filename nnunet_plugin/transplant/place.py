"""Where in another patient a lesion may lie: at a like place, inside the body, in surroundings like real lesions'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .anatomy import UNKNOWN, Anatomy, any_of
from .lesions import BORDER, LEAST_VALUES, RING, Lesion, Surroundings, describe, rings_around
from .paste import covered, cut_start, in_voxels
from .warp import SCALES, Warp

TRIES = 4  # places tried in one anatomy
JITTER = (
    0.05,
    0.15,
    0.45,
)  # standard deviations of a place around the donor's, in body sizes; each after the one before failed
PROBES = 30
MOST_TISSUE = 0.7  # part of a ring that has to be tissue at most; less where real lesions have less
LIKENESS = 0.6  # of the usual range, between the ring at a place and the lesion's own
SLACK = 0.15  # interquartile ranges of the body by which a few lesions may underrate what is usual
USUAL = (0.05, 0.95)  # quantiles over real lesions that a place's surroundings have to lie between


@dataclass(frozen=True)
class Gates:
    """What is usual around real lesions: bounds of the ring's quantiles `(channels, 3)`, least depth in mm, least part
    of the ring that is tissue.

    What a lesion covers is tissue: its tails have to be as moderate as those of the better half of the rings, which
    may hold bone or fluid.
    """

    low: np.ndarray
    high: np.ndarray
    depth: float
    tissue: float

    @property
    def darkest(self) -> np.ndarray:
        """The least low quantile of covered tissue, `(channels,)`."""
        return (self.low + self.high)[:, 0] / 2 - SLACK

    @property
    def brightest(self) -> np.ndarray:
        """The greatest high quantile of covered tissue, `(channels,)`."""
        return (self.low + self.high)[:, -1] / 2 + SLACK


def usual_surroundings(lesions: Sequence[Lesion]) -> Gates:
    """Return what is usual around these lesions."""
    low, high = np.quantile([lesion.around.tails for lesion in lesions], USUAL, axis=0)
    depth = np.quantile([lesion.depth for lesion in lesions], USUAL[0])
    tissue = np.quantile([lesion.tissue for lesion in lesions], USUAL[0])
    return Gates(low - SLACK, high + SLACK, max(float(depth), 1e-3), float(min(tissue, MOST_TISSUE)))


@dataclass(frozen=True)
class Footprint:
    """The voxels that a warped lesion covers on an anatomy's grid of `spacing` mm, around voxel `centre`.

    `probes` `(probes, ndim)` are a few of these voxels, as offsets from the centre, and `low`, `high` the bounds of
    all: most places fail already there.
    """

    mask: np.ndarray
    spacing: np.ndarray
    centre: np.ndarray
    probes: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @cached_property
    def rings(self) -> tuple[np.ndarray, np.ndarray]:
        """The voxels near the lesion and those of its ring (see `rings_around`)."""
        return rings_around(self.mask, self.spacing)


@dataclass(frozen=True)
class Site:
    """A place found: the centre in voxels of the whole image, what is around it, and the centre's coarse voxel."""

    centre: np.ndarray
    around: Surroundings
    voxel: np.ndarray


def footprint(lesion: Lesion, warp: Warp, spacing: np.ndarray) -> Footprint:
    """Return where a warped lesion and its ring lie on a grid of this spacing in mm."""
    reach = np.ceil(warp.new_extent(lesion.extent) / spacing + RING[1] * spacing.min() / spacing).astype(int)
    points = warp.old_offsets([np.arange(-n, n + 1) * step for n, step in zip(reach, spacing, strict=True)])
    mask = covered(lesion, in_voxels(points, lesion))
    if not mask.any():
        mask[tuple(reach)] = True
    offsets = np.argwhere(mask) - reach
    probes = offsets[:: max(1, len(offsets) // PROBES)]
    return Footprint(mask, spacing, reach, probes, offsets.min(axis=0), offsets.max(axis=0))


@dataclass(frozen=True)
class Cut:
    """What a decoy in a lesion's shape takes of another image, on an anatomy's grid, as offsets `(voxels, ndim)` from
    the voxel in the middle: the lesion's own size, not yet warped, alone and with the widest soft border.
    """

    inner: np.ndarray
    whole: np.ndarray

    def is_healthy(self, labels: np.ndarray, centre: np.ndarray, lesions: Sequence[int]) -> bool:
        """Whether it lies in an image with these coarse labels, and nobody knows or fears a lesion in it."""
        inner, shape = centre + self.inner, np.array(labels.shape)
        if (inner < 0).any() or (inner >= shape).any():
            return False
        return not np.isin(labels[tuple((centre + self.whole).clip(0, shape - 1).T)], (*lesions, UNKNOWN)).any()


def cut_of(lesion: Lesion, stride: np.ndarray) -> Cut:
    """Return what a decoy takes in a lesion's shape, on a grid of this stride."""
    reach = BORDER[1] * lesion.spacing.min() / SCALES[0]
    shifted = cut_start(np.zeros(len(stride)), lesion) + stride // 2
    starts = [
        np.maximum(np.arange(0, size + rest, step) - rest, 0)
        for size, rest, step in zip(lesion.distance.shape, shifted % stride, stride, strict=True)
    ]
    inner, whole = (np.argwhere(any_of(lesion.distance < far, starts)) + shifted // stride for far in (0, reach))
    return Cut(inner, whole)


@dataclass(frozen=True)
class Wanted:
    """What a lesion asks of a site: a relative place, tissue of the label `host`, surroundings like its own.

    No lesion (of the labels `lesions`) lies near; if it `covers`, one may lie under the new one or reach beyond it,
    and both are labelled.
    """

    place: np.ndarray
    host: int
    own: Surroundings
    lesions: tuple[int, ...]
    covers: bool


def find_site(
    anatomy: Anatomy, shape: Footprint, wanted: Wanted, gates: Gates, jitter: float, rng: np.random.Generator
) -> Site | None:
    """Try a few places around the wanted one, `jitter` body sizes away; `None` where no lesion would be.

    A lesion lies wholly in the image and in its host's tissue, as deep in the body as real ones; the ring around it
    and the tissue that it covers look like the rings of real lesions, above all like its own.
    """
    size = np.array(anatomy.labels.shape)
    first, last = -shape.low, size - 1 - shape.high
    if (first > last).any():
        return None
    for _ in range(TRIES):
        place = wanted.place + rng.normal(size=len(size)) * jitter
        centre = np.clip(np.round(anatomy.absolute(place)).astype(int), first, last)
        probed = tuple((centre + shape.probes).T)
        if not _free(anatomy.labels[probed], wanted).all() or anatomy.depth[probed].min() < gates.depth:
            continue
        start = centre - shape.centre
        low, high = np.maximum(start, 0), np.minimum(start + shape.mask.shape, size)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        part = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
        near, ring = (voxels[part] for voxels in shape.rings)
        site = _look(anatomy, box, shape.mask[part], near, ring, wanted, gates)
        # Around a real lesion there may be other lesions and air, too; most of its ring is tissue.
        if site is not None and site[1] >= gates.tissue * np.count_nonzero(shape.rings[1]):
            return Site(centre * anatomy.stride.astype(float), site[0], centre)
    return None


def _free(tissue: np.ndarray, wanted: Wanted) -> np.ndarray:
    """Return where a lesion may lie."""
    host = tissue == wanted.host
    return host | np.isin(tissue, wanted.lesions) if wanted.covers else host


def _look(
    anatomy: Anatomy,
    box: tuple[slice, ...],
    mask: np.ndarray,
    near: np.ndarray,
    ring: np.ndarray,
    wanted: Wanted,
    gates: Gates,
) -> tuple[Surroundings, int] | None:
    """Return the surroundings at a place and how many voxels they are, or `None` when they will not do."""
    tissue, depth = anatomy.labels[box], anatomy.depth[box]
    if not _free(tissue[mask], wanted).all() or depth[mask].min() < gates.depth:
        return None
    host = tissue == wanted.host
    if not wanted.covers and np.isin(tissue[near & ~host], wanted.lesions).any():
        return None
    ring, under = ring & host & (depth > 0), mask & host
    if np.count_nonzero(ring) < LEAST_VALUES:
        return None
    image = anatomy.image[(slice(None), *box)]
    around = describe(image[:, ring])
    if (around.tails < gates.low).any() or (around.tails > gates.high).any():
        return None
    if (np.abs(around.tails - wanted.own.tails) > LIKENESS * (gates.high - gates.low)).any():
        return None
    if np.count_nonzero(under) >= LEAST_VALUES:
        tails = describe(image[:, under]).tails
        if (tails[:, 0] < gates.darkest).any() or (tails[:, -1] > gates.brightest).any():
            return None
    return around, int(np.count_nonzero(ring))


def mirrored(place: np.ndarray, axis: int) -> np.ndarray:
    """Return a relative place on the body's other side along an axis."""
    place = np.array(place)
    place[axis] = 1 - place[axis]
    return place
