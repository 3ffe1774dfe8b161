"""Parameters, sampling time and peak memory of every generator: one table, one run, one device.

    python benchmarks/sampling.py                  # some minutes on a CPU; writes benchmarks/results/sampling.{json,md}
    python benchmarks/sampling.py --device cuda --full

The networks hold random weights: time and memory do not depend on the values. CPU presets draw whole samples, one at
a time, the generators in turn in every round of one process, so that figures compare neighbours in time. The presets
in the size of the papers are too large for whole samples on a CPU: without --full, one pass of each network is timed
(a decoder pass; one denoising step), and nothing is extrapolated from it. Peak memory is of a fresh process for each
generator: on a CPU the largest resident size less that before the network was built, on a GPU the allocator's peak.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.data.provenance import code_revision, package_versions  # noqa: E402

# name -> (bundle, overlays, scheduler and steps of a diffusion model)
CPU_PRESET = {
    "VAE": ("hvae", ["vae"], None),
    "HVAE": ("hvae", [], None),
    "dHVAE": ("dhvae", [], None),
    "LSGAN": ("lsgan", [], None),
    "LDM, DDIM 50": ("ldm", [], ("ddim", 50)),
    "3D-LSGAN": ("lsgan", ["volume"], None),
    "3D-LDM, DDIM 50": ("ldm", ["volume"], ("ddim", 50)),
    "SBLDM, DDIM 50": ("sbldm", [], ("ddim", 50)),
    "SBLDM, DDPM 1000": ("sbldm", [], ("ddpm", 1000)),
}
PAPER_PRESET = {
    "HVAE": ("hvae", ["paper"], None),
    "dHVAE": ("dhvae", ["paper"], None),
    "LSGAN": ("lsgan", ["paper"], None),
    "LDM, DDIM 50": ("ldm", ["paper"], ("ddim", 50)),
    "3D-LSGAN": ("lsgan", ["paper_volume"], None),
    "3D-LDM, DDIM 50": ("ldm", ["paper_volume"], ("ddim", 50)),
    "SBLDM, DDIM 50": ("sbldm", ["paper"], ("ddim", 50)),
    "SBLDM, DDPM 1000": ("sbldm", ["paper"], ("ddpm", 1000)),
}
PRESETS = {"cpu": CPU_PRESET, "paper": PAPER_PRESET}
SHORT = ("ddim", 2)


def build(bundle: str, overlays: list[str], device: str) -> tuple[torch.nn.Module, list[int]]:
    """The network of a bundle, as its inference.json and overlays define it, and the size of its samples."""
    folder = ROOT / "bundles" / bundle
    before = Path.cwd()
    os.chdir(folder)  # macros are resolved from here
    try:
        parser = ConfigParser()
        parser.read_config([f"configs/{name}.json" for name in ("inference", *overlays)])
        parser["bundle_root"] = "/nonexistent"  # no provenance: the network for one image channel and one label
        torch.manual_seed(0)
        return parser.get_parsed_content("network_def").to(device).eval(), list(parser["spatial_size"])
    finally:
        os.chdir(before)


@torch.inference_mode()
def draw(network: torch.nn.Module, steps: tuple[str, int] | None, device: str) -> torch.Tensor:
    """One sample."""
    noise = torch.randn(1, *network.latent_shape, device=device)
    if steps is None:
        return network(noise)
    scheduler, count = steps
    noises = (lambda step: torch.randn_like(noise)) if scheduler == "ddpm" else None
    condition = torch.full((1, 9), 0.5, device=device) if network.num_conditions else None
    return network.sample(noise, condition, scheduler=scheduler, num_steps=count, noises=noises)


@torch.inference_mode()
def one_pass(network: torch.nn.Module, steps: tuple[str, int] | None, device: str) -> dict[str, float]:
    """Seconds of one pass of each part, in the order in which a sample needs them."""
    noise = torch.randn(1, *network.latent_shape, device=device)
    if steps is None:
        return {"generator": timed(lambda: network(noise), device)}
    condition = torch.full((1, 9), 0.5, device=device) if network.num_conditions else None
    at = torch.tensor([500], device=device)
    return {
        "denoising step": timed(lambda: network.predict_noise(noise, at, condition), device),
        "decoder": timed(lambda: network.decode_latents(noise), device),
    }


def timed(call, device: str) -> float:
    """Seconds of a call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def resident(key: str) -> float:
    """Resident size of this process in MiB: `VmRSS` now, `VmHWM` at its largest (`ru_maxrss` counts the parent's)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def measure_alone(preset: str, name: str, device: str, full: bool) -> dict:
    """In a fresh process: parameters, peak memory, and for large presets the seconds of one pass."""
    bundle, overlays, steps = PRESETS[preset][name]
    if device == "cuda":
        torch.zeros(1, device=device)
    before = resident("VmRSS")
    network, spatial_size = build(bundle, overlays, device)
    record = {"parameters": sum(parameter.numel() for parameter in network.parameters()), "sample_shape": spatial_size}
    if preset == "paper" and not full:
        record["seconds_one_pass"] = one_pass(network, steps, device)
    else:
        # The peak of memory does not depend on how many steps there are.
        draw(network, steps and SHORT, device)
    if device == "cuda":
        record["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    else:
        record["peak_mib"] = resident("VmHWM") - before
    return record


def measure_times(preset: str, device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of one sample, the generators in turn, after a first draw that is not counted."""
    networks = {name: build(bundle, overlays, device)[0] for name, (bundle, overlays, _) in PRESETS[preset].items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for count in range(rounds + 1):
        for name, network in networks.items():
            steps = PRESETS[preset][name][2]
            if count == 0:
                steps = steps and SHORT
            elapsed = timed(lambda network=network, steps=steps: draw(network, steps, device), device)
            if count:
                seconds[name].append(elapsed)
        print(f"{preset}: round {count} of {rounds}", file=sys.stderr)
    return seconds


def as_markdown(record: dict) -> str:
    """The table."""
    lines = [
        f"Sampling, {record['device']}, {record['threads']} threads, torch {record['packages']['torch']}, "
        f"commit {record['commit'][:12]}. Random weights, one image channel and one label, one sample at a time, "
        "float32. `" + record["command"] + "`",
        "",
        "| preset | model | parameters | sample | seconds a sample: median (smallest to largest, n) "
        "| peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        if "seconds" in row:
            s = row["seconds"]
            words = f"{statistics.median(s):.3g} ({min(s):.3g} to {max(s):.3g}, n = {len(s)})"
        else:
            words = ", ".join(f"one {part}: {value:.3g}" for part, value in row["seconds_one_pass"].items())
        size = " x ".join(map(str, row["sample_shape"]))
        lines.append(
            f"| {row['preset']} | {row['model']} | {row['parameters'] / 1e6:.2f} M | {size} | {words} | "
            f"{row['peak_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--presets", nargs="+", default=["cpu", "paper"], choices=list(PRESETS))
    parser.add_argument("--full", action="store_true", help="whole samples of the papers' sizes as well (a GPU)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/sampling.json")
    parser.add_argument("--alone", nargs=2, metavar=("PRESET", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure_alone(*arguments.alone, arguments.device, arguments.full)))
        return
    rows = []
    for preset in arguments.presets:
        seconds = {}
        if preset == "cpu" or arguments.full:
            seconds = measure_times(preset, arguments.device, arguments.rounds)
        for name in PRESETS[preset]:
            words = [sys.executable, __file__, "--device", arguments.device, "--alone", preset, name]
            done = subprocess.run(words + ["--full"] * arguments.full, stdout=subprocess.PIPE, text=True, check=True)
            row = {"preset": preset, "model": name, **json.loads(done.stdout.splitlines()[-1])}
            rows.append(row | ({"seconds": seconds[name]} if name in seconds else {}))
            print(row, file=sys.stderr)
    record = {
        "command": " ".join(["python", "benchmarks/sampling.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "commit": code_revision(),
        "packages": package_versions(),
        "seed": 0,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(as_markdown(record))
    print(as_markdown(record))


if __name__ == "__main__":
    main()
