"""Running the bundles of latent diffusion on tiny networks."""

import json
import signal
import subprocess
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from ..processes import python, start, wait_until

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "channels": [8, 8], "attention_levels": [False, False], "latent_channels": 2, "num_res_blocks": 1,
    "denoiser_channels": [8, 8], "denoiser_res_blocks": 1, "denoiser_attention": [False, False], "norm_groups": 4,
    "autoencoder_batch_size": 8, "batch_size": 4, "grid_interval": 1000, "val_interval": 6,
    "autoencoder_val_interval": 6, "num_steps": 4, "min_foreground": 0,
}  # fmt: skip


def command(name: str, files: list[str], root: Path, **overrides) -> list[str]:
    """The command that runs a stack of config files; settings that none of them has are left out."""
    folder = ROOT / "bundles" / name / "configs"
    known = {key for file in files for key in json.loads((folder / f"{file}.json").read_text())}
    given = {"bundle_root": root, **{k: v for k, v in TINY.items() if k in known}, **overrides}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    stack = str([f"configs/{file}.json" for file in files])
    return ["-m", "monai.bundle", "run", "--config_file", stack, *words]


def run(name: str, files: list[str], root: Path, check=True, **overrides) -> subprocess.CompletedProcess:
    done = python(*command(name, files, root, **overrides), cwd=ROOT / "bundles" / name)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def kill_when_there(name: str, files: list[str], root: Path, file: Path, **overrides) -> None:
    """Start a run and end it with SIGKILL as soon as it has written `file`."""
    process = start(*command(name, files, root, **overrides), cwd=ROOT / "bundles" / name)
    wait_until(file.is_file, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


def weights(root: Path) -> dict[str, torch.Tensor]:
    return torch.load(root / "models/model.pt", weights_only=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def network(name: str, overlays: list[str], root: Path, device: str = "cpu") -> torch.nn.Module:
    """`network_def` of a stack of config files; run it in the bundle's folder."""
    parser = ConfigParser()
    parser.read_config(["configs/inference.json", *(f"configs/{overlay}.json" for overlay in overlays)])
    parser["bundle_root"] = str(root)
    with torch.device(device):
        return parser.get_parsed_content("network_def")


def losses(folder: Path) -> list[list[str]]:
    """Rows of `losses.csv`, all but the seconds."""
    rows = (folder / "losses.csv").read_text().splitlines()
    return [[value for i, value in enumerate(row.split(",")) if i != 2] for row in rows]
