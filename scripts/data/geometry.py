"""Slices of any size to the generator's grid and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from scripts.errors import InputError


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
    def fit(cls, shapes: Sequence[tuple[int, int]], spatial_size: Sequence[int]) -> SliceGeometry:
        """Geometry for slices of the given shapes `(height, width)`."""
        if len(spatial_size) != 2:
            raise InputError(f"spatial_size {list(spatial_size)}", "two numbers: height, width", "set spatial_size")
        height, width = (int(value) for value in spatial_size)
        return cls((height, width), (max(s[0] for s in shapes), max(s[1] for s in shapes)))

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
        """`(batch, channel, height, width)` of any size up to the field of view, to the generator's grid.

        Args:
            slices: float32.
            fill: `(channel,)` value around the slice (what the case shows as background).
        """
        batch, channels, height, width = slices.shape
        canvas = np.broadcast_to(fill.reshape(1, -1, 1, 1), (batch, channels, *self.canvas)).astype(np.float32)
        top, left = (self.canvas[0] - height) // 2, (self.canvas[1] - width) // 2
        canvas[:, :, top : top + height, left : left + width] = slices
        return self._resize(torch.from_numpy(canvas), self.spatial_size)

    def from_grid(self, samples: torch.Tensor) -> torch.Tensor:
        """`(batch, channel, *spatial_size)` back to the field of view."""
        canvas = self._resize(samples, self.canvas)
        height, width = self.field_of_view
        top, left = (self.canvas[0] - height) // 2, (self.canvas[1] - width) // 2
        return canvas[:, :, top : top + height, left : left + width]

    @staticmethod
    def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if tuple(x.shape[2:]) == size:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)

    def as_record(self) -> dict:
        """The fields that the provenance stores."""
        return {"spatial_size": list(self.spatial_size), "field_of_view": list(self.field_of_view)}

    @classmethod
    def from_record(cls, record: dict) -> SliceGeometry:
        """The geometry that `as_record` stored."""
        spatial_size, field_of_view = record["spatial_size"], record["field_of_view"]
        return cls((spatial_size[0], spatial_size[1]), (field_of_view[0], field_of_view[1]))
