"""What a GPU is wanted for, the most valuable first."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PET, LGG = "Dataset502_STSPET", "Dataset501_LGG"
BUNDLES = ("dhvae", "ldm", "sbldm", "lsgan", "hvae", "lesion_flow")
# name -> bundle, overlays, settings of training
EVENING = {
    "ldm_wavelets": ("ldm", ["evening.json", "wavelets.json"], {"warped_copies": 15, "max_epochs": 40}),
    "sbldm_wavelets": ("sbldm", ["evening.json", "wavelets.json"], {}),
    "dhvae": ("dhvae", ["evening.json"], {}),
    "ldm": ("ldm", ["evening.json"], {}),
    "sbldm": ("sbldm", ["evening.json"], {}),
    "lsgan": ("lsgan", ["evening.json"], {}),
    "hvae": ("hvae", ["evening.json"], {}),
    "vae": ("hvae", ["vae.json", "evening.json"], {}),
    "lsgan_volume": ("lsgan", ["evening_volume.json"], {}),
    "ldm_volume": ("ldm", ["evening_volume.json"], {}),
}
SEGMENTERS = {"unet": [], "attention_unet": ["attention_unet"], "unetr": ["unetr"], "swin_unetr": ["swin_unetr"]}
PAPERS = (
    "dhvae/paper", "sbldm/paper", "ldm/paper", "hvae/paper", "lsgan/paper", "lsgan/paper_volume", "ldm/paper_volume",
)  # fmt: skip
# So small that a CPU is through in seconds: to see that the queue works.
TINY = {"max_epochs": 2, "val_interval": 1, "grid_interval": 100}
TINY_NETWORKS = {
    "dhvae": {"channels": [8, 16], "latent_channels": 2, "attention_heads": 1, "feature_steps": 2},
    "hvae": {"channels": [8, 16], "latent_channels": 2, "attention_heads": 1},
    "lsgan": {"channels": [8, 8, 8], "discriminator_channels": [8, 8], "latent_size": 4},
}


@dataclass(frozen=True)
class Job:
    """A command that goes on where it stopped, and leaves its files in a folder of its own.

    Attributes:
        name: of the folder.
        words: of the command behind `python`; `{out}` is the folder.
        data: the data set that it needs, or None.
    """

    name: str
    words: list[str]
    data: str | None = field(default=None)


def queue(data: Path, tiny: bool = False) -> list[Job]:
    """All jobs, the most valuable first.

    Args:
        data: folder of prepared data sets.
        tiny: settings that a CPU bears, and of every kind of job one.
    """
    checks = [
        Job(f"check_{bundle}", _script("check", bundle, str(data / PET), "{out}", *(["--tiny"] if tiny else [])), PET)
        for bundle in BUNDLES
    ]
    pet, lgg = (
        [Job(f"curve_{name}_{short}", _curve(name, data / dataset, tiny), dataset) for name in EVENING]
        for short, dataset in (("pet", PET), ("lgg", LGG))
    )
    steps = [Job(f"step_{name.replace('/', '_')}", _script("step", name, "{out}")) for name in PAPERS]
    # nnU-Net itself, with its own plans: the next seeds of a table, where it is installed and its data came along.
    protocol = ROOT / "benchmarks/protocols/lgg_nnunet_stock.yaml"
    nnunet = Job("nnunet_lgg", ["-m", "scripts", "experiment", str(protocol), "--output_dir", "{out}/run",
                                "--dataset_dir", str(data / "nnUNet_preprocessed" / LGG),
                                "--raw_dir", str(data / "nnUNet_raw" / LGG), "--processes", "4"],
                 f"nnUNet_preprocessed/{LGG}")  # fmt: skip
    segmenters = [
        Job(f"segment_{name}", _segmenter(overlays, data / LGG), LGG) for name, overlays in SEGMENTERS.items()
    ]
    if tiny:
        tiny_step = Job("step_hvae", _script("step", "hvae/vae", "{out}", "--rounds", "1"))
        return [job for job in (*checks, *pet) if job.name in ("check_hvae", "curve_hvae_pet")] + [tiny_step]
    return [*checks, nnunet, *pet[:5], *steps, *pet[5:], *lgg[:6], *segmenters, *lgg[6:]]


def _script(name: str, *words: str) -> list[str]:
    return [str(HERE / f"{name}.py"), *words]


def _curve(name: str, dataset: Path, tiny: bool) -> list[str]:
    bundle, overlays, settings = EVENING[name]
    words = ["-m", "scripts", "curve", bundle, str(dataset), "{out}"]
    if tiny:
        settings = {**TINY, **TINY_NETWORKS.get(bundle, {})}
        return [*words, "--generator", json.dumps(settings), "--points", "1", "--num_samples", "8",
                "--sampling", json.dumps({"min_foreground": 0})]  # fmt: skip
    sampling = {"samples_per_pass": 50}
    return [*words, "--overlays", json.dumps(overlays), "--generator", json.dumps(settings),
            "--sampling", json.dumps(sampling), "--num_samples", "500"]  # fmt: skip


def _segmenter(overlays: list[str], dataset: Path) -> list[str]:
    files = str([f"configs/{name}.json" for name in ("train", *overlays, "paper")])
    return [
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        files,
        "--bundle_root",
        "{out}",
        "--dataset_dir",
        str(dataset),
    ]


if __name__ == "__main__":
    print("\n".join(job.name for job in queue(Path(sys.argv[1] if len(sys.argv) > 1 else "prepared"))))
