"""Painting into holes of images of any size with a trained `LesionFlow`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import Inferer

from ..data.description import DatasetDescription
from ..data.holes import Intensities, Window, signed_distances, window_around
from ..networks.lesion_flow import LesionFlow
from ..runtime.precision import casting


@dataclass(frozen=True)
class Request:
    """What is to be painted.

    Attributes:
        image: `(channels, *spatial)` in any affine unit, slice or volume.
        wanted: `(*spatial)` integer label map after the painting, -1 outside nnU-Net's mask.
        hole: `(*spatial)` bool, the only voxels that change.
        intensities: of the image.
        noise: `(channels, *size)` standard normal of a size that the window decides.
        shown: what the window is put around, if not around the hole: that of all slices of a volume.
    """

    image: np.ndarray
    wanted: np.ndarray
    hole: np.ndarray
    intensities: Intensities
    noise: Callable[[Sequence[int]], torch.Tensor]
    shown: np.ndarray | None = None


@dataclass(frozen=True)
class Painter:
    """A network and what it has to be told.

    Attributes:
        network: trained.
        description: of its data set.
        values: `(2, channels)` least and greatest value in the model's units.
        steps: millimetres per voxel along the axes of its windows.
        inferer: calls the network.
        dtype: to compute in; None: float32.
    """

    network: LesionFlow
    description: DatasetDescription
    values: np.ndarray
    steps: tuple[float, ...]
    inferer: Inferer
    dtype: torch.dtype | None = None

    @torch.inference_mode()
    def paint(self, requests: Sequence[Request]) -> list[np.ndarray]:
        """The images, float32, with their holes painted; all in one pass of the network."""
        shown = [request.hole if request.shown is None else request.shown for request in requests]
        least, multiple = self.network.spatial_size, self.network.multiple
        size = np.max([window_around(part, least, multiple).size for part in shown], axis=0).tolist()
        windows = [window_around(part, size, multiple) for part in shown]
        parts = [self._inputs(request, window) for request, window in zip(requests, windows, strict=True)]
        device = next(self.network.parameters()).device
        with casting(device, self.dtype):
            painted = self.inferer(torch.stack(parts).to(device), self.network)[:, : len(requests[0].image)]
        done = []
        for request, window, values in zip(requests, windows, painted.float().cpu().numpy(), strict=True):
            shape = (-1, *[1] * (values.ndim - 1))
            kept = np.clip(values, self.values[0].reshape(shape), self.values[1].reshape(shape))
            result = request.image.astype(np.float32)
            window.put(result, request.intensities.invert(kept), window.cut(request.hole[None])[0])
            done.append(result)
        return done

    def _inputs(self, request: Request, window: Window) -> torch.Tensor:
        inside = window.cut((request.wanted >= 0)[None])
        image = request.intensities.apply(window.cut(request.image)) * inside
        masks = self.description.to_channels(window.cut(request.wanted[None])[0]) > 0
        hole = window.cut(request.hole[None]).astype(np.float32)
        distance = signed_distances(masks, self.steps)
        seen = torch.from_numpy(np.concatenate([image, distance, hole]).astype(np.float32))
        return torch.cat([request.noise(image.shape), seen])
