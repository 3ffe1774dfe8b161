"""Slices and volumes of any size to the generator's grid and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..runtime.errors import InputError

LINEAR, CUBIC = "bilinear", "bicubic"


@dataclass(frozen=True)
class SliceGeometry:
    """Centre-padding to a canvas that holds every training slice, then one isotropic zoom to the model's grid.

    Attributes:
        spatial_size: `(height, width)` of the generator's grid.
        field_of_view: largest height and width of the training cases, which the samples get back.
    """

    spatial_size: tuple[int, int]
    field_of_view: tuple[int, int]

    @classmethod
    def fit(cls, shapes: Sequence[tuple[int, ...]], spatial_size: Sequence[int]) -> SliceGeometry:
        """Geometry for slices of cases of the given shapes `([depth,] height, width)`."""
        height, width = (int(value) for value in spatial_size)
        return cls((height, width), (max(s[-2] for s in shapes), max(s[-1] for s in shapes)))

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width before the zoom: at least the field of view, with the aspect of `spatial_size`.

        Slices that fit the grid are padded, never magnified, so that no resolution is invented.
        """
        zoom = max(1.0, *(view / size for view, size in zip(self.field_of_view, self.spatial_size, strict=True)))
        height, width = (
            max(view, math.ceil(size * zoom - 1e-6))
            for view, size in zip(self.field_of_view, self.spatial_size, strict=True)
        )
        return height, width

    def to_grid(self, slices: np.ndarray, fill: np.ndarray) -> torch.Tensor:
        """`(batch, channel, height, width)` of any size to the generator's grid; of larger ones the centre is kept.

        Args:
            slices: float32.
            fill: `(channel,)` value around the slice (what the case shows as background).
        """
        batch, channels, height, width = slices.shape
        canvas = np.broadcast_to(fill.reshape(1, -1, 1, 1), (batch, channels, *self.canvas)).astype(np.float32)
        (rows, top), (columns, left) = (_centred(a, b) for a, b in zip((height, width), self.canvas, strict=True))
        canvas[:, :, top, left] = slices[:, :, rows, columns]
        return _resize(torch.from_numpy(canvas), self.spatial_size)

    def filled(self, shape: Sequence[int]) -> tuple[slice, ...]:
        """Which part of the grid an image `([depth,] height, width)` fills; the rest is padding."""
        sides = zip(shape[-2:], self.canvas, self.spatial_size, strict=True)
        places = [(_centred(length, room)[1], size / room) for length, room, size in sides]
        return tuple(slice(round(there.start * zoom), round(there.stop * zoom)) for there, zoom in places)

    def from_grid(self, samples: torch.Tensor, mode: str = LINEAR) -> torch.Tensor:
        """`(batch, channel, *spatial_size)` back to the field of view `(batch, channel, height, width)`.

        Args:
            samples: image or mask channels.
            mode: "bilinear"; or "bicubic" for images, which would lose more of their grain by straight lines.
        """
        (_, top), (_, left) = (_centred(a, b) for a, b in zip(self.field_of_view, self.canvas, strict=True))
        return _resize(samples, self.canvas, mode)[:, :, top, left]

    def as_record(self) -> dict:
        """The fields that the provenance stores."""
        return {"spatial_size": list(self.spatial_size), "field_of_view": list(self.field_of_view)}


@dataclass(frozen=True)
class VolumeGeometry:
    """Each slice as `SliceGeometry` does, and the stack stretched or shrunk to the grid's depth.

    All volumes are brought to one shape, as Kebaili et al. (2024b) do; samples come back with the median depth.

    Attributes:
        spatial_size: `(height, width, depth)` of the generator's grid, depth last.
        field_of_view: largest height and width of the training cases.
        depth: median depth of the training cases, in slices.
    """

    spatial_size: tuple[int, int, int]
    field_of_view: tuple[int, int]
    depth: int

    @classmethod
    def fit(cls, shapes: Sequence[tuple[int, ...]], spatial_size: Sequence[int]) -> VolumeGeometry:
        """Geometry for volumes of the given shapes `(depth, height, width)`."""
        height, width, depth = (int(value) for value in spatial_size)
        plane = SliceGeometry.fit(shapes, (height, width))
        return cls((height, width, depth), plane.field_of_view, sorted(s[0] for s in shapes)[len(shapes) // 2])

    @property
    def plane(self) -> SliceGeometry:
        """What happens to each slice."""
        return SliceGeometry(self.spatial_size[:2], self.field_of_view)

    def to_grid(self, volumes: np.ndarray, fill: np.ndarray) -> torch.Tensor:
        """`(batch, channel, depth, height, width)` of any size to the grid `(batch, channel, *spatial_size)`.

        Args:
            volumes: float32.
            fill: `(channel,)` value around the slices (what the case shows as background).
        """
        batch, _, depth = volumes.shape[:3]
        slices = np.ascontiguousarray(volumes.swapaxes(1, 2)).reshape(-1, volumes.shape[1], *volumes.shape[3:])
        grid = self.plane.to_grid(slices, fill).unflatten(0, (batch, depth)).transpose(1, 2)
        return _resize_depth(grid, self.spatial_size[2]).movedim(2, -1).contiguous()

    def filled(self, shape: Sequence[int]) -> tuple[slice, ...]:
        """Which part of the grid an image `(depth, height, width)` fills; the rest is padding."""
        return (*self.plane.filled(shape), slice(0, self.spatial_size[2]))

    def from_grid(self, samples: torch.Tensor, mode: str = LINEAR) -> torch.Tensor:
        """`(batch, channel, *spatial_size)` back to `(batch, channel, depth, height, width)`; see `SliceGeometry`."""
        stack = _resize_depth(samples.movedim(-1, 2), self.depth, mode).transpose(1, 2)
        return self.plane.from_grid(stack.flatten(0, 1), mode).unflatten(0, stack.shape[:2]).transpose(1, 2)

    def as_record(self) -> dict:
        """The fields that the provenance stores."""
        return {**self.plane.as_record(), "spatial_size": list(self.spatial_size), "depth": self.depth}


def fit_geometry(shapes: Sequence[tuple[int, ...]], spatial_size: Sequence[int]) -> SliceGeometry | VolumeGeometry:
    """Geometry of slices or of volumes, by the length of `spatial_size`, for cases `(depth, height, width)`.

    Raises:
        InputError: `spatial_size` is neither.
    """
    if len(spatial_size) not in (2, 3) or any(int(value) < 1 for value in spatial_size):
        raise InputError(
            f"spatial_size {list(spatial_size)}",
            "[height, width] for slices, [height, width, depth] for volumes",
            "set spatial_size",
        )
    return (SliceGeometry if len(spatial_size) == 2 else VolumeGeometry).fit(shapes, spatial_size)


def own_grid(shapes: Sequence[tuple[int, ...]], limit: Sequence[int], multiple: int = 1) -> list[int]:
    """The grid that cases `(depth, height, width)` need themselves: no larger than `limit`, and of no other aspect.

    In plane it holds the largest height and width, or these reduced by one zoom to `limit`; of volumes the median
    depth follows. Every side is rounded up to `multiple`, or down where it would pass the limit.

    Args:
        shapes: of the training cases.
        limit: `(height, width)` for slices, `(height, width, depth)` for volumes.
        multiple: what the sides of a network's input must be a multiple of.

    Raises:
        InputError: `limit` is neither, or below `multiple`.
    """
    if len(limit) not in (2, 3) or any(int(side) < multiple for side in limit):
        raise InputError(
            f"size_limit {list(limit)}",
            f"[height, width] for slices, [height, width, depth] for volumes, each at least {multiple}",
            "set size_limit",
        )
    view = [max(shape[-2] for shape in shapes), max(shape[-1] for shape in shapes)]
    zoom = max(1.0, *(side / most for side, most in zip(view, limit, strict=False)))
    wanted = [side / zoom for side in view] + [sorted(shape[0] for shape in shapes)[len(shapes) // 2]]
    return [
        min(math.ceil(side / multiple - 1e-6), int(most) // multiple) * multiple
        for side, most in zip(wanted, limit, strict=False)
    ]


def geometry_from_record(record: dict) -> SliceGeometry | VolumeGeometry:
    """The geometry that `as_record` stored."""
    height, width = record["field_of_view"]
    size = record["spatial_size"]
    if len(size) == 2:
        return SliceGeometry((size[0], size[1]), (height, width))
    return VolumeGeometry((size[0], size[1], size[2]), (height, width), record["depth"])


def _centred(length: int, room: int) -> tuple[slice, slice]:
    """Which part of a side of `length` is kept in a side of `room`, and where it lies there."""
    kept = min(length, room)
    here, there = (length - kept) // 2, (room - kept) // 2
    return slice(here, here + kept), slice(there, there + kept)


def _resize(x: torch.Tensor, size: tuple[int, int], mode: str = LINEAR) -> torch.Tensor:
    if tuple(x.shape[2:]) == size:
        return x
    resized = F.interpolate(x, size, mode=mode, align_corners=False, antialias=True)
    # Cubic curves swing beyond edges, and rounding makes them of what was blank.
    return resized.clamp(x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)) if mode == CUBIC else resized


def _resize_depth(x: torch.Tensor, depth: int, mode: str = LINEAR) -> torch.Tensor:
    """Resample `(batch, channel, depth, height, width)`, averaging where it shrinks (trilinear would skip slices)."""
    height, width = x.shape[3:]
    return _resize(x.flatten(3), (depth, height * width), mode).unflatten(3, (height, width))
