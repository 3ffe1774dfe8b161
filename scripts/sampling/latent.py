"""Samples of a network that maps Gaussian noise to image and mask in one go: VAE family, GAN."""

from __future__ import annotations

import torch

from .sampler import Sampler, latent_noise


class LatentSampler(Sampler):
    """Draw from a network with `latent_shape` whose forward maps noise to image and mask channels in [0, 1]."""

    def _generate(self, candidates: range, seed: int, condition: dict | None) -> tuple[torch.Tensor, list[dict | None]]:
        noise = torch.stack([latent_noise(self.network.latent_shape, seed, index) for index in candidates])
        with self._autocast():
            joint = self.inferer(noise.to(self.device), self.network)
        return joint.float().cpu(), [None] * len(candidates)
