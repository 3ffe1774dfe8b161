"""What a result says of its model and machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def num_parameters(checkpoint: Path) -> int:
    """Numbers in the weights of a generator, without those of the latent density that sampling draws from."""
    import torch

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return sum(value.numel() for name, value in state.items() if not name.startswith("density_"))


def choose_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def num_processes(device: str) -> int:
    """How many processes may share a job: one for each GPU, or on the CPU one for each core of the cell up to four."""
    if device == "cuda":
        import torch

        return torch.cuda.device_count()
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return min(4, cores)  # each takes half a gigabyte and seconds to start


def device_words(device: str) -> str:
    """The device as a reader knows it."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"
