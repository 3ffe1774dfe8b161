"""Samples of a latent diffusion model: noise and, if it is conditioned, what to draw, through many steps to a pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.conditions import ConditionModel
from .sampler import Sampler, latent_noise


class DiffusionSampler(Sampler):
    """Draw from a `LatentDiffusion`, by DDIM, DDPM or DPM-Solver++, with classifier-free guidance.

    A conditioned network is asked for what `condition` says: some of the nine features in millimetres (what it leaves
    open, and all without a condition, is drawn like the training cases), or a sweep; see
    `ConditionModel.for_candidate`. The record of a sample holds all nine. In a sweep every candidate is kept.

    Args:
        network: a `LatentDiffusion`.
        checkpoint, provenance: see `Sampler`; the training settings in the provenance of a conditioned network hold
            `conditions`, the record of its `ConditionModel`.
        scheduler, num_steps, guidance_scale: see `LatentDiffusion.sample`.
        settings: of `Sampler`.

    Raises:
        InputError: nothing was trained, or the settings do not fit the network.
    """

    def __init__(
        self,
        network: Any,
        checkpoint: str | Path,
        provenance: str | Path,
        scheduler: str = "ddim",
        num_steps: int = 50,
        guidance_scale: float = 1.0,
        **settings: Any,
    ):
        network.check_sampling(scheduler, num_steps, guidance_scale)
        super().__init__(network, checkpoint, provenance, **settings)
        self.how = {"scheduler": scheduler, "num_steps": num_steps, "guidance_scale": guidance_scale}
        self.settings |= self.how
        self.conditions: ConditionModel | None = None
        if network.num_conditions:
            self.conditions = ConditionModel.from_record(self.provenance["training"]["conditions"])

    def check(self, condition: dict | None) -> None:
        """Raise `InputError` for a condition that this generator cannot follow."""
        if self.conditions is None:
            super().check(condition)
        else:
            self.conditions.check(condition)

    def accepts(self, label: np.ndarray, condition: dict | None) -> bool:
        """Whether a candidate may enter the pool: in a sweep any, else as in `Sampler`."""
        return "sweep" in (condition or {}) or super().accepts(label, condition)

    def _generate(self, candidates: range, seed: int, condition: dict | None) -> tuple[torch.Tensor, list[dict | None]]:
        asked: list[dict | None] = [None] * len(candidates)
        scaled, indices = None, list(candidates)
        if self.conditions is not None:
            requests = [self.conditions.for_candidate(condition, seed, index) for index in candidates]
            values = np.stack([self.conditions.scale(features) for features, _ in requests])
            scaled = torch.tensor(values, dtype=torch.float32, device=self.device)
            asked, indices = [features for features, _ in requests], [index for _, index in requests]

        def noise(seed: int) -> torch.Tensor:
            drawn = [latent_noise(self.network.latent_shape, seed, index) for index in indices]
            return torch.stack(drawn).to(self.device)

        def step_noise(step: int) -> torch.Tensor:
            state = np.random.SeedSequence(seed, spawn_key=(2, step)).generate_state(1, np.uint64)
            return noise(int(state[0]))

        noises = step_noise if self.how["scheduler"] == "ddpm" else None
        with self._autocast():
            joint = self.inferer(noise(seed), self.network.sample, scaled, noises=noises, **self.how)
        return joint.float().cpu(), asked

    def _compile(self) -> None:
        """Compile what runs at every step; the decoder runs once."""
        self.network.denoiser.compile()
