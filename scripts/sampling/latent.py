"""Samples of a network that maps Gaussian noise to image and mask in one go: VAE family, GAN."""

from __future__ import annotations

from typing import Any

import torch

from .sampler import Sampler, latent_noise


class LatentSampler(Sampler):
    """Draw from a network with `latent_shape` whose forward maps noise to image and mask channels in [0, 1].

    Arguments are those of `Sampler`.
    """

    def __init__(self, network: Any, *arguments: Any, **settings: Any):
        super().__init__(network, *arguments, **settings)
        if hasattr(network, "fix_weights"):  # what a training does anew with every step
            network.fix_weights()

    def _generate(self, candidates: range, seed: int, condition: dict | None) -> tuple[torch.Tensor, list[dict | None]]:
        noise = torch.stack([latent_noise(self.network.latent_shape, seed, index) for index in candidates])
        with self._autocast():
            joint = self.inferer(noise.to(self.device), self.network)
        return joint.float().cpu(), [None] * len(candidates)
