"""Training in bfloat16, where a machine is faster at it."""

from typing import Any

import torch
from torch import nn

from .errors import InputError
from .settings import AUTOCAST


def autocast_dtype(autocast: str | None, device: torch.device | str) -> torch.dtype | None:
    """The type to compute in: "bfloat16", None (float32), or "auto": bfloat16 where the device has it in hardware.

    Raises:
        InputError: another word.
    """
    if autocast not in AUTOCAST:
        raise InputError(f"autocast {autocast!r}", f"one of {list(AUTOCAST)}", "set autocast")
    if autocast == "auto":
        if torch.device(device).type == "cuda":
            helps = torch.cuda.is_bf16_supported(including_emulation=False)
        else:  # emulated, bfloat16 is far slower than float32; torch says only here what the CPU has
            helps = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        autocast = "bfloat16" if helps else None
    return torch.bfloat16 if autocast == "bfloat16" else None


def memory_format(dimension: int, device: torch.device | str = "cpu") -> torch.memory_format:
    """How maps lie in memory for the fastest convolutions in bfloat16: the channels of a voxel together, or not.

    A rule and no measurement, which would give the same command other last bits on another day. On one core of a CPU
    with AVX-512 BF16 a step of a small 3D U-Net took 0.46 to 0.48 of its time in float32, and 0.65 to 0.70 with maps
    channel by channel; of a 2D U-Net with instance normalisation 0.63 to 0.70 on one such CPU, 0.52 to 0.58 channel
    by channel, on another 0.43 and 0.46.
    """
    if dimension == 3:
        return torch.channels_last_3d
    return torch.channels_last if torch.device(device).type == "cuda" else torch.contiguous_format


class Float32Loss(nn.Module):
    """A loss in float32 after a network in bfloat16, whose sums over voxels would be too coarse for it.

    It ends the autocast of the CPU until the context that began it is left: backward is to run without it.

    Args:
        loss: of logits, a tensor or one for each level of deep supervision.
    """

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """The loss of the logits as float32."""
        torch.set_autocast_enabled("cpu", False)
        is_one = isinstance(output, torch.Tensor)
        return self.loss(output.float() if is_one else [level.float() for level in output], target)
