"""TorchScript, by `torch.jit.script`, of networks that work in steps and whose parts cannot be compiled."""

# No `from __future__ import annotations`: torch.jit reads the annotations of `forward` as they stand.

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .latent_diffusion import LatentDiffusion
    from .lesion_flow import LesionFlow


class ScriptedDiffusion(nn.Module):
    """`LatentDiffusion.forward` as `torch.jit.script` takes it: a compiled loop around traces of what a step does.

    MONAI's attention blocks and schedulers cannot be compiled. A step holds no decision that depends on values, so a
    trace of it is the whole of it; a trace of all steps would be as many times as large and slow to make. The networks
    return this from `__prepare_scriptable__`, which torch calls before it compiles, and so MONAI's `ckpt_export` needs
    no option.

    Args:
        network: a `LatentDiffusion`; its parameters are shared.
        steps: (steps, 3), the argument `step` of each call of `network.ddim_step`.
    """

    steps: Tensor

    def __init__(self, network: "LatentDiffusion", steps: Tensor):
        super().__init__()
        z = _example(network, *network.latent_shape)
        self.network = _traced(network, {"ddim_step": (z, steps[0]), "decode_latents": (z,)})
        self.register_buffer("steps", steps)

    def forward(self, noise: Tensor) -> Tensor:
        """Image and mask probabilities of noise (batch, *latent_shape)."""
        z = noise
        for i in range(self.steps.shape[0]):
            z = self.network.ddim_step(z, self.steps[i])
        return self.network.decode_latents(z)


class ScriptedPainting(nn.Module):
    """`LesionFlow.forward` as `torch.jit.script` takes it; see `ScriptedDiffusion`.

    Args:
        network: a `LesionFlow`; its parameters are shared.
        times: (steps + 1,), from 1 to 0.
    """

    times: Tensor

    def __init__(self, network: "LesionFlow", times: Tensor):
        super().__init__()
        x = _example(network, network.num_input_channels, *network.spatial_size)
        parts = network.parts(x)
        given = {"parts": (x,), "heun_step": (parts[0], times[:2], *parts[1:]), "finished": parts}
        self.network = _traced(network, given)
        self.register_buffer("times", times)

    def forward(self, x: Tensor) -> Tensor:
        """The painted image and its masks, of noise, image, signed distances and hole (batch, channels, *size)."""
        painted, image, distance, hole = self.network.parts(x)
        for i in range(self.times.shape[0] - 1):
            painted = self.network.heun_step(painted, self.times[i : i + 2], image, distance, hole)
        return self.network.finished(painted, image, distance, hole)


def _example(network: nn.Module, *shape: int) -> Tensor:
    """Two items: what is traced with one may take the batch for an axis to broadcast."""
    like = next(network.parameters())
    return torch.zeros(2, *shape, dtype=like.dtype, device=like.device)


def _traced(network: nn.Module, given: dict[str, tuple[Tensor, ...]]) -> torch.jit.ScriptModule:
    """The network with traces of its methods, for these arguments."""
    with torch.no_grad():
        return torch.jit.trace_module(network, given, check_trace=False)
