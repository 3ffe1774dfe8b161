"""Untrained generators of slices and volumes, with the files that a training would leave."""

from pathlib import Path

import torch
from torch import nn

from scripts.data.cases import open_cases
from scripts.data.provenance import build_provenance, write_provenance
from scripts.data.training_set import load_training_set
from scripts.networks.hvae import HVAE
from scripts.sampling.latent import LatentSampler

from ..data.toy import write_preprocessed, write_raw

NETWORK = {"spatial_size": [16, 16], "channels": [8, 16], "num_res_blocks": 1, "latent_channels": 2,
           "attention_heads": 1, "attention_head_dim": 8, "num_leapfrog_steps": 1}  # fmt: skip


class VolumeNetwork(nn.Module):
    """Noise to volumes in [0, 1]; the size of the mask varies, down to none."""

    latent_shape = (2, 8, 8, 3)

    def __init__(self, num_channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(2, 8, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2.0), nn.Conv3d(8, num_channels, 1)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """(batch, 2, 8, 8, 3) to (batch, num_channels, 16, 16, 6)."""
        logits = nn.functional.instance_norm(self.layers(z))
        return torch.sigmoid(4 * (logits - 2 - z[:, :1, :1, :1, :1]))


def make_generator(
    folder: Path, channels: int = 1, regions: bool = False, masked: bool = False, volumes: str | None = None
) -> dict:
    """Write a data set and an untrained generator; returns the sampler's arguments.

    `volumes` is None for a generator of slices, "raw" or "3d_fullres" for one of volumes.
    """
    data_set = folder / "Dataset901_Toy"
    if volumes == "raw":
        write_raw(data_set, channels=channels, regions=regions)
    else:
        write_preprocessed(data_set, channels=channels, regions=regions, masked=masked)
    cases = open_cases(data_set, configuration=volumes or "2d")
    data = load_training_set(cases, (16, 16, 6) if volumes else (16, 16))
    torch.manual_seed(0)
    if volumes:
        arguments = {"num_channels": data.num_channels}
        network, blank = VolumeNetwork(**arguments), VolumeNetwork(**arguments)
    else:
        arguments = {"num_channels": data.num_channels, **NETWORK}
        network, blank = HVAE(**arguments), HVAE(**arguments)
        with torch.no_grad():  # an untrained decoder says 1/2 everywhere; make it say something
            network.decoder[-1].weight.mul_(300)
    torch.save(network.state_dict(), folder / "model.pt")
    record = build_provenance(data, {"name": "toy", "version": "0"}, 0, arguments, {})
    write_provenance(folder / "provenance.json", record, folder / "model.pt")
    return {
        "network": blank,
        "checkpoint": folder / "model.pt",
        "provenance": folder / "provenance.json",
        "min_foreground": 4,
    }


def open_generator(folder: Path, **settings) -> LatentSampler:
    """Sampler of volumes from a folder that `make_generator` left."""
    network = VolumeNetwork(3)
    return LatentSampler(network, folder / "model.pt", folder / "provenance.json", **{"min_foreground": 4, **settings})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
