"""Copies that were changed: turned, scaled, shifted, bent, with other contrast, blended, or put together of halves.

Two ways to look at an image, both without training:

- where edges run, and not how bright things are: normalised gradient fields (Haber and Modersitzki 2006, "Intensity
  gradient based registration and fusion of multi-modal images"), which gamma, inversion and other contrasts leave much
  as they are. A coarse search over turns, sizes, shifts and mirror images finds a place for each training slice; the
  best ones of the nearest patients are then searched finely.
- its fine detail, weighted so that all places count the same. Detail is linear, so that half of a copy, or a blend with
  another image, still points at the original. It is searched over flips and shifts alone.

Of a volume, the slice with the largest mask is compared with every slice of the training volumes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from .items import Items, Track

SIDE = 32  # pixels of the longest side of what is compared
CELLS = 16  # places along each axis at which fields are compared
REACH = 2  # cells that a shift goes in each direction: an eighth of the side
TURNS = 24  # of 15 degrees
SIZES = [1.2**step for step in range(-2, 3)]
NEAREST = 6  # patients whose best places are searched finely: the nearest one and those that it is relative to
FINE_TURNS = (-5.0, 0.0, 5.0)  # degrees
FINE_SIZES = (1.2 ** (-1 / 3), 1.0, 1.2 ** (1 / 3))
SEAM = 2  # pixels beside a cut that are not compared: the cut is an edge of its own
FLAT = 0.05  # weight of places that are flat in all images, as a share of the mean energy
CONSTANT = 0.02  # of an image's range: neighbours that differ by less are constant
LINE = 5  # pixels of the items' grid: what is thinner, between constants, is a line
SMALLEST_BODY = 0.05  # share of an image that is taken for a body
RIM = 2  # pixels that are taken off a body: outlines are much the same in all patients, and the strongest edges
FEWEST_CELLS = 13  # of a body without its rim: edges in fewer, a twentieth of the image, are like any other's
OVERLAP = 0.6  # of a slice's edges that must lie in the other's body; what lacks counts as an edge that is elsewhere
CHUNK = 8

Found = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]]


def gradient_fields(images: Tensor, within: Tensor) -> Tensor:
    """Directions of edges, (items, 2, side, side): cosine and sine of the doubled angle, times a strength below 1.

    Channels are summed as squared gradients (Di Zenzo 1986), so a field has as many numbers for one as for four.

    Args:
        images: (items, channels, side, side), in any scale.
        within: (items, 1, side, side), 1 where edges tell how strong one is in this image, 0 elsewhere.
    """
    smooth, slope = _gaussian(1.0, 0), _gaussian(1.0, 1)
    across, down = _filter(images, smooth, slope), _filter(images, slope, smooth)
    parts = [across**2 - down**2, 2 * across * down, across**2 + down**2]
    tensor = _filter(torch.stack([part.sum(dim=1) for part in parts], dim=1), *[_gaussian(0.7, 0)] * 2)
    energy = tensor[:, 2:]
    # Edges of all strengths count much the same, and those that are weak in this image, such as noise, little.
    typical = (energy * within).mean(dim=(2, 3), keepdim=True) / _positive(within.mean(dim=(2, 3), keepdim=True))
    return tensor[:, :2] / ((energy * (energy + typical)).sqrt() + 1e-12)


def _gaussian(sigma: float, order: int) -> Tensor:
    """A Gaussian or its derivative, to three sigma."""
    radius = math.ceil(3 * sigma)
    x = torch.arange(-radius, radius + 1.0)
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    return weights if order == 0 else x / sigma**2 * weights


def _filter(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Correlate each channel with a separable kernel; borders are repeated."""
    channels, margin = images.shape[1], (len(across) // 2, len(across) // 2, len(down) // 2, len(down) // 2)
    found = functional.pad(images, margin, mode="replicate")
    found = functional.conv2d(found, down.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(found, across.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def squared(images: Tensor) -> Tensor:
    """Images (items, channels, height, width) on `SIDE` x `SIDE` pixels, their shape kept, their borders repeated."""
    # Even numbers, so that as much is added on either side and a flipped image stays in its place.
    sizes = [2 * max(1, round(size * SIDE / max(images.shape[2:]) / 2)) for size in images.shape[2:]]
    small = functional.interpolate(images.float(), sizes, mode="area")
    rest = [SIDE - size for size in reversed(sizes)]
    return functional.pad(small, [side for room in rest for side in (room // 2, room - room // 2)], mode="replicate")


def with_bodies(images: Tensor) -> Tensor:
    """Images (items, channels, height, width) with one channel more: 1 in the body, 0 outside.

    Outside is what is constant around the body, and lines between constants: where an image was moved or padded, its
    frame is an edge of its own, and stronger than any in the body. Where nothing else is left, all is body.
    """
    images = images.float()
    high, low = (functional.max_pool2d(x, 3, 1, padding=1) for x in (images, -images))
    span = (images.amax(dim=(2, 3), keepdim=True) - images.amin(dim=(2, 3), keepdim=True)).clamp(min=1e-6)
    textured = ((high + low) > CONSTANT * span).any(dim=1).numpy()
    bodies = np.stack([ndimage.binary_fill_holes(ndimage.binary_opening(x, np.ones((LINE, LINE)))) for x in textured])
    bodies[bodies.mean(axis=(1, 2)) < SMALLEST_BODY] = True
    return torch.cat([images, torch.from_numpy(bodies).unsqueeze(1).to(images)], dim=1)


def _fields_in_bodies(images: Tensor, inside: Tensor) -> Tensor:
    """Fields, 0 outside of the bodies without their rims; and 1 there: (items, 3, side, side).

    Args:
        images: (items, channels + 1, side, side), the last channel as `with_bodies` gives it.
        inside: (items, 1, side, side), where there is an image.
    """
    body = functional.pad((images[:, -1:] >= 0.5).to(images) * inside, [RIM] * 4)
    within = -functional.max_pool2d(-body, 2 * RIM + 1, 1)
    return torch.cat([gradient_fields(images[:, :-1], within) * within, within], dim=1)


def coarse_places() -> Tensor:
    """Matrices (places, 2, 2) of all mirror images, sizes and turns, in the coordinates (x, y) of `affine_grid`."""
    return torch.stack(
        [
            torch.diag(torch.tensor([size * mirror, size])) @ _turn(turn * 2 * math.pi / TURNS)
            for mirror in (1.0, -1.0)
            for size in SIZES
            for turn in range(TURNS)
        ]
    )


def _turn(angle: float) -> Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def place_names() -> list[str]:
    """How a training slice was changed, for each of `coarse_places`; flips are named as `memorisation.flips` does."""
    names = []
    for mirror in (False, True):
        for size in SIZES:
            for turn in range(TURNS):
                half = TURNS // 2
                flipped = [["", "up-down and left-right"], ["left-right", "up-down"]][mirror][turn == half]
                words = [flipped] if flipped else []
                if turn % half:
                    words.append(f"turned by {min(turn, TURNS - turn) * 360 // TURNS} degrees")
                if size != 1:
                    words.append(f"scaled by {1 / size:.2g}")
                names.append(", ".join(words))
    return names


def coarse_fields(images: Tensor) -> Tensor:
    """Fields at every coarse place, (items, places, 3, cells, cells): the field, and 1 in the body.

    Gradients are taken at each size and mirror image, and these fields are then turned.

    Args:
        images: (items, channels + 1, `SIDE`, `SIDE`), with bodies.
    """
    start = torch.stack([torch.diag(torch.tensor([s * m, s])) for m in (1.0, -1.0) for s in SIZES])
    scaled = placed_fields(images.repeat_interleave(len(start), dim=0), _affine(start).repeat(len(images), 1, 1))
    between = functional.avg_pool2d(scaled, SIDE // CELLS, stride=1)  # a field for each place of a cell, between pixels
    room = SIDE / (SIDE - SIDE // CELLS + 1)
    angles = [turn * 2 * math.pi / TURNS for turn in range(TURNS)]
    size = [TURNS, 1, CELLS, CELLS]
    grid = functional.affine_grid(_affine(torch.stack([_turn(a) for a in angles])), size, align_corners=False) * room
    grid = grid.reshape(1, TURNS * CELLS, CELLS, 2).expand(len(between), -1, -1, -1)
    turned = functional.grid_sample(between, grid, align_corners=False).unflatten(2, (TURNS, CELLS))
    twice = 2 * torch.tensor(angles).view(1, -1, 1, 1)
    x, y, inside = turned.unbind(dim=1)
    fields = torch.stack([x * twice.cos() + y * twice.sin(), y * twice.cos() - x * twice.sin(), inside], dim=2)
    return _whole_cells(fields.unflatten(0, (len(images), len(start))).flatten(1, 2))


def _whole_cells(fields: Tensor) -> Tensor:
    """Fields (..., 3, cells, cells) where at least half of a cell is in the body, and 0 elsewhere."""
    inside = (fields[..., 2:, :, :] >= 0.5).to(fields)
    return torch.cat([fields[..., :2, :, :] * inside, inside], dim=-3)


def _affine(matrices: Tensor, shifts: Tensor | None = None) -> Tensor:
    """(n, 2, 3): p -> matrix (p + shift)."""
    shifts = torch.zeros(len(matrices), 2) if shifts is None else shifts
    return torch.cat([matrices, matrices @ shifts.unsqueeze(2)], dim=2)


def placed_fields(images: Tensor, affine: Tensor) -> Tensor:
    """Fields of images with bodies (n, channels + 1, side, side) seen through maps (n, 2, 3), see above."""
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    seen = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return _fields_in_bodies(seen, (grid.abs() <= 1).all(dim=3).unsqueeze(1))


def _slices(items: Items) -> tuple[Tensor, Tensor]:
    """What is searched for, a slice an item, and what it is searched in, (items, slices, ...): squared, with bodies."""
    if items.images.ndim == 4:
        small = squared(with_bodies(items.images))
        return small, small.unsqueeze(1)
    depth = items.images.shape[4]
    every = squared(with_bodies(items.images.movedim(4, 1).flatten(0, 1))).unflatten(0, (-1, depth))
    area = items.foreground.sum(dim=(1, 2))
    chosen = torch.where(area.any(dim=1), area.argmax(dim=1), depth // 2)
    return every[torch.arange(len(items)), chosen], every


class Structure:
    """Whole slices, turned, mirrored, scaled and shifted."""

    name = "structure"

    def distances(self, items: Items, reference: Items, track: Track, title: str, apart: bool) -> Found:
        """Distances, 1 less the cosine of the two fields in both bodies, see `memorisation.Comparison`.

        A reference slice with fewer than `FEWEST_CELLS` cells of body has nothing in common with any item: distance 1.
        Items with as few cells are compared with the others, in which they fill too little to be near.

        Args:
            items: whatever is judged.
            reference: of the training cases.
            track: shows a bar.
            title: of the bar.
            apart: leave out the reference items of the item's own group.
        """
        searched, within = _slices(items)[0], _slices(reference)[1]
        depth, count = within.shape[1], len(reference)
        fields = _fields_in_bodies(within.flatten(0, 1), torch.ones(1))
        fields = _whole_cells(functional.avg_pool2d(fields, SIDE // CELLS))
        cells = fields[:, 2].sum(dim=(1, 2))
        enough = cells >= FEWEST_CELLS
        usual = cells[enough].mean()
        matrices, names = coarse_places(), place_names()
        shifts = torch.tensor([[right - REACH, down - REACH] for down, right in _SHIFTS]) * (2 / CELLS)
        patients, members = np.unique(reference.groups, return_inverse=True)
        of_slice = torch.from_numpy(members).repeat_interleave(depth)
        for start in track(list(range(0, len(items), CHUNK)), title):
            chosen = np.arange(start, min(start + CHUNK, len(items)))
            images = searched[start : start + CHUNK]
            best, place = _coarse_cosines(images, fields, usual)
            best[:, ~enough] = -1
            if apart:
                own = torch.from_numpy(items.groups[chosen][:, None] == reference.groups[None])
                best[own.repeat_interleave(depth, dim=1)] = -1
            at, shift = place // len(_SHIFTS), place % len(_SHIFTS)
            tops = [best.masked_fill(of_slice != i, -2).argmax(dim=1) for i in range(len(patients))]
            by_patient = torch.stack(tops, dim=1)  # the best slice of each
            order = best.gather(1, by_patient).argsort(dim=1, descending=True, stable=True)[:, :NEAREST]
            targets = by_patient.gather(1, order)
            finer = _fine_cosines(
                images, matrices[at.gather(1, targets)], shifts[shift.gather(1, targets)], fields[targets], usual
            )
            finer[best.gather(1, targets) == -1] = -1
            best.scatter_reduce_(1, targets, finer, "amax")
            best, which = best.unflatten(1, (count, depth)).max(dim=2)
            at = at.unflatten(1, (count, depth)).gather(2, which.unsqueeze(2)).squeeze(2)
            yield chosen, (1 - best).clamp(0, 1).numpy(), at.numpy(), names


_SHIFTS = list(itertools.product(range(2 * REACH + 1), repeat=2))  # down and right, in cells, from the furthest up


def _coarse_cosines(images: Tensor, fields: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
    """Of images and fields (reference, 3, cells, cells): the best cosine, and at which place and shift.

    The latter are one number, place * shifts + shift. Both are (items, reference).
    """
    known, body = fields[:, :2].flatten(1).T.contiguous(), fields[:, 2].flatten(1).T.contiguous()
    square = (fields[:, :2] ** 2).sum(dim=1).flatten(1).T.contiguous()
    least = OVERLAP * square.sum(dim=0)
    found = functional.pad(coarse_fields(images), [REACH] * 4)
    squares = (found[:, :, :2] ** 2).sum(dim=2)
    best = torch.full((len(images), len(fields)), -1.0)
    place = torch.zeros(best.shape, dtype=torch.int64)
    for shift, (down, right) in enumerate(_SHIFTS):
        window = (..., slice(down, down + CELLS), slice(right, right + CELLS))
        own, inside = squares[window].flatten(2), found[:, :, 2][window].flatten(2)
        lengths = torch.maximum(own @ body, _least_own(own, inside, usual))
        lengths = lengths * torch.maximum(inside @ square, least)
        cosines, at = ((found[:, :, :2][window].flatten(2) @ known) / _positive(lengths).sqrt()).max(dim=1)
        nearer = cosines > best
        best[nearer], place[nearer] = cosines[nearer], at[nearer] * len(_SHIFTS) + shift
    return best, place


class Detail:
    """Detail of the whole image, or of the half that is nearest: upper, lower, left or right."""

    def __init__(self, name: str, halves: bool):
        self.name = name
        whole = slice(None)
        first, second = slice(0, SIDE // 2 - SEAM), slice(SIDE // 2 + SEAM, SIDE)
        self.regions = (
            [(first, whole), (second, whole), (whole, first), (whole, second)] if halves else [(whole, whole)]
        )

    def distances(self, items: Items, reference: Items, track: Track, title: str, apart: bool) -> Found:
        """Distances, 1 less the cosine, be it of an inverted image, see `memorisation.Comparison`."""
        searched, within = _slices(items)[0][:, :-1], _slices(reference)[1][:, :, :-1]
        depth, count = within.shape[1], len(reference)
        detail = _detail(within.flatten(0, 1))
        energy = _filter((detail**2).mean(dim=(0, 1), keepdim=True), *[_gaussian(1.0, 0)] * 2)
        weights = (energy + FLAT * energy.mean() + 1e-12).rsqrt()
        known = [_unit((detail * weights)[..., rows, columns]).T.contiguous() for rows, columns in self.regions]
        names = ["", "up-down", "left-right", "up-down and left-right"]
        room = REACH * SIDE // CELLS
        for start in track(list(range(0, len(items), 8 * CHUNK)), title):
            chosen = np.arange(start, min(start + 8 * CHUNK, len(items)))
            images = searched[start : start + 8 * CHUNK]
            best = torch.full((len(chosen), count * depth), -1.0)
            flipped_by = torch.zeros(best.shape, dtype=torch.int64)
            for number, axes in enumerate(([], [2], [3], [2, 3])):
                own = functional.pad(_detail(images.flip(axes)), [room] * 4)
                for down, right in itertools.product(range(2 * room + 1), repeat=2):
                    here = own[..., down : down + SIDE, right : right + SIDE] * weights
                    for (rows, columns), region in zip(self.regions, known, strict=True):
                        cosines = (_unit(here[..., rows, columns]) @ region).abs()
                        nearer = cosines > best
                        best[nearer], flipped_by[nearer] = cosines[nearer], number
            best, which = best.unflatten(1, (count, depth)).max(dim=2)
            flipped_by = flipped_by.unflatten(1, (count, depth)).gather(2, which.unsqueeze(2)).squeeze(2)
            yield chosen, (1 - best).clamp(min=0).numpy(), flipped_by.numpy(), names


def _detail(images: Tensor) -> Tensor:
    """What a Gaussian of one pixel takes away."""
    return images - _filter(images, *[_gaussian(1.0, 0)] * 2)


def _unit(images: Tensor) -> Tensor:
    """Rows (items, numbers) of length 1."""
    rows = images.flatten(1)
    return rows / _positive(rows.norm(dim=1, keepdim=True))


def _positive(values: Tensor) -> Tensor:
    return values.clamp(min=1e-6)


def _fine_cosines(images: Tensor, matrices: Tensor, shifts: Tensor, targets: Tensor, usual: Tensor) -> Tensor:
    """The best cosine around each place, (items, places).

    Args:
        images: (items, channels, side, side).
        matrices, shifts: (items, places, 2, 2), (items, places, 2).
        targets: the fields that are compared, (items, places, 3, cells, cells).
        usual: cells of a body.
    """
    around = torch.stack([size * _turn(math.radians(turn)) for turn in FINE_TURNS for size in FINE_SIZES])
    count, places = matrices.shape[:2]
    finer = (matrices.unsqueeze(2) @ around).flatten(0, 2)
    moved = shifts.unsqueeze(2).expand(-1, -1, len(around), -1).flatten(0, 2)
    repeated = images.repeat_interleave(places * len(around), dim=0)
    fields = functional.pad(placed_fields(repeated, _affine(finer, moved)), [1] * 4)
    v, body = targets[:, :, None, :2], targets[:, :, None, 2:]
    least = OVERLAP * (v**2).sum(dim=(3, 4, 5))
    best = torch.full((count, places), -1.0)
    for down, right in itertools.product(range(3), repeat=2):
        here = functional.avg_pool2d(fields[..., down : down + SIDE, right : right + SIDE], SIDE // CELLS)
        here = _whole_cells(here).unflatten(0, (count, places, len(around)))
        u, inside = here[:, :, :, :2], here[:, :, :, 2:]
        dot = (u * v).sum(dim=(3, 4, 5))
        own, inside = (u**2).sum(dim=3).flatten(3), inside.flatten(3)
        norms = torch.maximum((body * u**2).sum(dim=(3, 4, 5)), _least_own(own, inside, usual).squeeze(3))
        norms = norms * torch.maximum((inside * (v**2).sum(dim=3).flatten(3)).sum(dim=3), least)
        best = torch.maximum(best, (dot / _positive(norms).sqrt()).amax(dim=2))
    return best


def _least_own(own: Tensor, inside: Tensor, usual: Tensor) -> Tensor:
    """What the squares of a sample's edges (..., cells) are taken to be at least, (..., 1).

    Where more than the usual is body, as where noise fills the background, only a part of it can be in another's.
    """
    share = (usual / _positive(inside.sum(dim=-1, keepdim=True))).clamp(max=1)
    return OVERLAP * share * own.sum(dim=-1, keepdim=True)
