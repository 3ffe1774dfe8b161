"""Training of a lesion painter: holes and their augmentation, a step on the velocity, the held-out loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.holes import BORDERS, FRAME, hole_around, signed_distances
from ..networks.lesion_flow import LesionFlow, shifted
from ..runtime.noise import draw_rows
from ..runtime.precision import autocast_dtype, casting
from ..runtime.ranks import total_over_ranks
from .averaging import WeightAverage
from .evaluation import ItemEvaluation
from .parallel import mean_terms
from .steps import descend, images

LARGEST_ANGLE = np.pi / 9
SCALES = (0.8, 1.25)
SHIFT = 4.0  # voxels to each side
UNCHANGED = 0.5  # of the windows are only flipped: interpolation smooths
UNITED = 0.2  # of the holes are also those of their mirror image: larger than what is wanted in them
TIMES = (0.2, 0.5, 0.8, 0.95)  # at which the held-out loss is measured


def painting_inputs(
    x: Tensor, num_labels: int, steps: Sequence[float], seeds: Sequence[int], augment: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Image, signed distances and hole, `(batch, channels, *size)` on the CPU, of items of `LesionCrops`.

    Holes reach 2 to 5 voxels around what is painted over, and never to the frame that every window keeps.

    Args:
        x: `(batch, channels + labels + 2, *size)`.
        num_labels: of these channels.
        steps: millimetres per voxel along the axes.
        seeds: of what is drawn for each window.
        augment: flip, and turn, scale and shift half of the windows.
    """
    parts = [x.shape[1] - num_labels - 2, num_labels, 1, 1]
    image, mask, shape, inside = x.cpu().split(parts, dim=1)
    rngs = [np.random.default_rng(int(seed)) for seed in seeds]
    if augment:
        grid = _grid(image.shape, steps, rngs)
        moved = F.grid_sample(x.cpu(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        smooth, *masks = moved.split(parts, dim=1)
        image = smooth if image.ndim == 5 else _sharply_moved(image, grid)  # torch has no cubic one of volumes
        mask, shape, inside = ((part >= 0.5).float() for part in masks)
    frame = np.zeros(image.shape[2:], bool)
    frame[tuple(slice(FRAME, side - FRAME) for side in image.shape[2:])] = True
    distances, holes = [], []
    masks_shapes_insides = (part.numpy() > 0 for part in (mask, shape[:, 0], inside[:, 0]))
    for masks_of, shape_of, inside_of, rng in zip(*masks_shapes_insides, rngs, strict=True):
        if augment and rng.random() < UNITED:
            shape_of = shape_of | np.flip(shape_of, int(rng.integers(shape_of.ndim)))
        hole = hole_around(shape_of, rng.uniform(*BORDERS), steps) & frame & inside_of
        distances.append(signed_distances(masks_of, steps))
        holes.append(hole[None].astype(np.float32))
    return image, torch.from_numpy(np.stack(distances)), torch.from_numpy(np.stack(holes))


def _sharply_moved(image: Tensor, grid: Tensor) -> Tensor:
    """Bicubic, within the range of each channel: straight lines take twice as much of the grain."""
    low, high = (ends(image, dim=(2, 3), keepdim=True) for ends in (torch.amin, torch.amax))
    moved = F.grid_sample(image, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return moved.clamp(low.clamp(max=0), high.clamp(min=0))


def _grid(shape: Sequence[int], steps: Sequence[float], rngs: Sequence[np.random.Generator]) -> Tensor:
    """Where each voxel of each window comes from, for `grid_sample`; turned and scaled in millimetres."""
    batch, _, *size = shape
    ndim = len(size)
    half = np.array(size) / 2 * steps  # millimetres of half a window
    thetas = np.zeros((batch, ndim, ndim + 1))
    for theta, rng in zip(thetas, rngs, strict=True):
        linear = np.diag(rng.choice([-1.0, 1.0], ndim))
        if rng.random() >= UNCHANGED:
            first, second = rng.permutation(ndim)[:2]
            angle, turn = rng.uniform(-LARGEST_ANGLE, LARGEST_ANGLE), np.eye(ndim)
            turn[[first, second], [first, second]] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            linear = linear @ turn / np.exp(rng.uniform(*np.log(SCALES)))
            theta[:, ndim] = (rng.uniform(-SHIFT, SHIFT, ndim) * 2 / np.array(size))[::-1]
        # To [-1, 1] along each axis, the last axis first, as torch wants it.
        theta[:, :ndim] = (linear * half[None] / half[:, None])[::-1, ::-1]
    return F.affine_grid(torch.from_numpy(thetas).float(), [batch, 1, *size], align_corners=False)


class FlowUpdate:
    """A step on the velocity inside the hole (conditional flow matching, Lipman et al. 2023, eq. 9).

    Times are even, shifted towards noise. Give it to MONAI's `SupervisedTrainer` as `iteration_update`.

    Args:
        steps: millimetres per voxel along the axes of the windows.
        generator: source of every random draw.
        average: of the weights, updated after each step; or None.
        autocast: see `autocast_dtype`.
        device: where the network lies.
        gradient_clip: largest norm of the gradient, or None.
    """

    def __init__(
        self,
        steps: Sequence[float],
        generator: torch.Generator,
        average: WeightAverage | None = None,
        autocast: str | None = None,
        device: torch.device | str = "cpu",
        gradient_clip: float | None = 1.0,
    ):
        self.steps, self.generator, self.average = tuple(steps), generator, average
        self.autocast_dtype = autocast_dtype(autocast, device)
        self.gradient_clip, self.loss = gradient_clip, velocity_loss

    def __call__(self, engine: Any, batch: dict) -> dict[str, float]:
        """Run one step on a batch of `LesionCrops` and return its `loss`."""
        network, device = engine.network, engine.state.device
        network.train()
        x = images(batch, torch.device("cpu"))
        seeds = self._rows(lambda n: torch.randint(2**62, (n,), generator=self.generator), x).tolist()
        parts = painting_inputs(x, network.num_labels, self.steps, seeds, augment=True)
        image, distance, hole = (part.to(device) for part in parts)
        t = shifted(self._rows(lambda n: torch.rand(n, generator=self.generator), x)).to(device)
        noise = self._rows(lambda n: torch.randn((n, *image.shape[1:]), generator=self.generator), x).to(device)
        with casting(device, self.autocast_dtype):
            loss = self.loss(network, image, noise, t, distance, hole, shared=True)
        descend({"loss": loss}, network, engine.optimizer, engine.state.iteration, self.gradient_clip)
        if self.average is not None:
            self.average.update_parameters(network)
        return mean_terms({"loss": loss})

    def _rows(self, draw: Any, x: Tensor) -> Tensor:
        """Drawn on the CPU, so that a seed gives the same numbers on every device."""
        return draw_rows(draw, len(x), self.generator)


def velocity_loss(
    network: LesionFlow, image: Tensor, noise: Tensor, t: Tensor, distance: Tensor, hole: Tensor, shared: bool = False
) -> Tensor:
    """Mean squared error of the velocity over the voxels of all holes of a batch.

    With `shared`, the other processes of a `torchrun` hold the rest of the batch.
    """
    predicted = network.velocity(network.noised(image, noise, t, hole), t, image, distance, hole)
    wrong = (predicted.float() - (image - noise)).square() * hole
    sums = torch.stack([wrong.sum(), hole.sum() * image.shape[1]])
    error, voxels = total_over_ranks(sums) if shared else sums
    return error / voxels.clamp(min=1)


class FlowEvaluation(ItemEvaluation):
    """`velocity_loss` of held-out windows: at every validation the same holes and noise, and each at four times.

    Args:
        steps: millimetres per voxel along the axes of the windows.
        seed: see `ItemEvaluation`.
    """

    def __init__(self, steps: Sequence[float], seed: int = 0):
        super().__init__(seed)
        self.steps = tuple(steps)

    def item(self, network: Any, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """Evaluate one."""
        seed = int(torch.randint(2**62, (1,), generator=noise))
        parts = painting_inputs(x, network.num_labels, self.steps, [seed], augment=False)
        image, distance, hole = (part.to(x.device).expand(len(TIMES), *part.shape[1:]) for part in parts)
        added = torch.randn(image.shape, generator=noise).to(x.device)
        t = torch.tensor(TIMES, device=x.device)
        return {"velocity_loss": velocity_loss(network, image, added, t, distance, hole)}
