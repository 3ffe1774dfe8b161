"""Samples of a model that decodes Gaussian noise: one decoder pass a sample (VAE family)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scripts.data.description import DatasetDescription
from scripts.data.geometry import SliceGeometry
from scripts.data.provenance import read_provenance
from scripts.data.scaling import Scaling
from scripts.errors import InputError

# A generator that makes fewer than one usable sample in this many is not sampled on and on.
MAX_CANDIDATES_PER_SAMPLE = 50


def latent_noise(latent_shape: tuple[int, ...], seed: int, index: int) -> torch.Tensor:
    """Standard normal noise of sample `index`: a function of (seed, index) alone, on the CPU, float32."""
    state = np.random.SeedSequence([seed, index]).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
    return torch.randn(latent_shape, generator=generator)


class LatentSampler:
    """Draw image and label pairs from a trained generator.

    Samples whose mask has fewer than `min_foreground` pixels are thrown away and replaced by the next candidate
    (Kebaili et al. 2024, as their code does); the record's `seed` is the number of the candidate.

    Args:
        network: module with `latent_shape` whose forward maps noise `(batch, *latent_shape)` to image and mask
            channels in [0, 1].
        checkpoint: `model.pt`, a state dict.
        provenance: `provenance.json` beside it.
        device: where to decode.
        min_foreground: pixels of foreground on the data's own grid that a sample must have.

    Raises:
        InputError: nothing was trained, or the checkpoint is of another architecture.
    """

    dimension = 2

    def __init__(
        self,
        network: Any,
        checkpoint: str | Path,
        provenance: str | Path,
        device: torch.device | str = "cpu",
        min_foreground: int = 8,
    ):
        self.provenance = read_provenance(provenance, checkpoint)
        load_weights(network, checkpoint, self.provenance)
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        record = self.provenance["description"]
        self.description = DatasetDescription(**record)
        self.scaling = Scaling.from_record(self.provenance["scaling"])
        self.geometry = SliceGeometry.from_record(self.provenance["geometry"])
        self.min_foreground = int(min_foreground)
        self.settings = {"min_foreground": self.min_foreground}

    def __call__(
        self, num_samples: int, seed: int, batch_size: int = 16, condition: dict | None = None, start: int = 0
    ) -> Iterator[dict]:
        """Yield batches until `num_samples` samples were made.

        Args:
            num_samples: how many.
            seed: of the pool.
            batch_size: how many are decoded at once; it does not change the samples.
            condition: must be None, this family is unconditional.
            start: first candidate to try (to go on with a pool).

        Yields:
            `image` float32 `(batch, channel, height, width)` in the pool's space, `label` uint8
            `(batch, height, width)`, and `record`, a list of `{"seed": candidate, "condition", "scores"}`.
        """
        self.check(condition)
        made, candidate = 0, start
        while made < num_samples:
            candidates = range(candidate, candidate + min(batch_size, num_samples - made))
            candidate = candidates.stop
            images, labels = self._decode(candidates, seed)
            kept = np.flatnonzero((labels > 0).sum(axis=(1, 2)) >= self.min_foreground)
            if candidate - start >= MAX_CANDIDATES_PER_SAMPLE * max(16, made + len(kept)):
                raise InputError(
                    f"{candidate - start} candidates, {made + len(kept)} of them with {self.min_foreground} pixels of "
                    "foreground",
                    "a generator that makes masks",
                    "train longer, or lower --min_foreground",
                )
            made += len(kept)
            if len(kept):
                yield {
                    "image": images[kept],
                    "label": labels[kept],
                    "record": [{"seed": candidates[i], "condition": None, "scores": {}} for i in kept],
                }

    def check(self, condition: dict | None) -> None:
        """Raise `InputError` for a condition that this family cannot follow."""
        if condition is not None:
            raise InputError(f"condition {condition}", "none: this generator is unconditional", "leave it out")

    @torch.inference_mode()
    def _decode(self, candidates: range, seed: int) -> tuple[np.ndarray, np.ndarray]:
        noise = torch.stack([latent_noise(self.network.latent_shape, seed, index) for index in candidates])
        # One sample a pass: kernels round differently for different batch sizes, and the pool must not.
        decoded = torch.cat([self.network(sample[None].to(self.device)).float().cpu() for sample in noise])
        joint = self.geometry.from_grid(decoded).clamp(0, 1).numpy()
        channels = self.description.num_image_channels
        images, labels = [], []
        for sample in joint:
            image, inside = self.scaling.invert(sample[:channels])
            images.append(image)
            labels.append(np.where(inside, self.description.to_label_map(sample[channels:]), 0))
        return np.stack(images), np.stack(labels).astype(np.uint8)


def load_weights(network: nn.Module, checkpoint: str | Path, provenance: dict) -> None:
    """Load a checkpoint into a network of the same architecture.

    Raises:
        InputError: the shapes or names differ; names the settings that the checkpoint was trained with.
    """
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise InputError(
            f"{checkpoint} is of another architecture ({len(different)} tensors differ, first {different[0]}: "
            f"{found.get(different[0])} in the file, {expected.get(different[0])} in the network)",
            f"the settings it was trained with: {provenance['network']}",
            "give the same overlay or settings as in training",
        )
    network.load_state_dict(state)
