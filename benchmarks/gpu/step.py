"""Step time, peak memory and samples a second of a preset: float32 and bfloat16, with and without torch.compile.

    python benchmarks/gpu/step.py dhvae/paper gpu_results/step_dhvae_paper

On random data: neither time nor memory depend on the values. An arm that does not fit the memory says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from gpu_jobs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from sampling import build, draw

from scripts.losses.hvae import hvae_objective
from scripts.runtime.precision import casting

BATCH = {"sbldm": 2, "ldm": 2}


def step_of(bundle: str, network: torch.nn.Module, x: torch.Tensor, dtype: torch.dtype | None):
    """A training step without its optimiser, of the part that the most steps are taken of."""
    device = x.device
    if bundle in ("hvae", "dhvae"):
        return lambda: hvae_objective(network, x, None, autocast_dtype=dtype).loss

    def loss() -> torch.Tensor:
        noise = torch.randn(len(x), *network.latent_shape, device=device)
        with casting(device, dtype):
            if bundle == "lsgan":
                return network(noise).float().square().mean()
            times = torch.full((len(x),), 500, device=device)
            condition = torch.rand(len(x), network.num_conditions, device=device) if network.num_conditions else None
            return network.denoiser(noise, times, condition).float().square().mean()

    return loss


def measure(bundle: str, overlays: list[str], device: str, dtype: torch.dtype | None, compiled: bool, rounds: int):
    """Seconds of a step and of a sample, and the peak of memory."""
    network, size = build(bundle, overlays, device)
    network.train()
    x = torch.rand(BATCH.get(bundle, 16) if len(size) == 2 else 2, 2, *size, device=device)
    parts = [network.denoiser] if hasattr(network, "denoiser") else [getattr(network, "encoder", network)]
    if hasattr(network, "decoder"):
        parts.append(network.decoder)
    if compiled:
        for part in parts:
            part.compile()
    loss, seconds = step_of(bundle, network, x, dtype), []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds + 2):
        start = time.perf_counter()
        loss().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    found = {"batch": len(x), "seconds_a_step": statistics.median(seconds[2:])}
    if device == "cuda":
        found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    network.eval()
    for steps in (("ddim", 50), ("dpm", 10)) if hasattr(network, "denoiser") else (None,):
        start = time.perf_counter()
        with casting(device, dtype):
            draw(network, steps, device)
        if device == "cuda":
            torch.cuda.synchronize()
        found["seconds_a_sample" + (f"_{steps[0]}{steps[1]}" if steps else "")] = time.perf_counter() - start
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Step time and memory of a preset.")
    parser.add_argument("preset", help="BUNDLE/OVERLAY")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    bundle, _, overlay = given.preset.partition("/")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compiles = (False, True) if device == "cuda" else (False,)
    arms = {}
    for dtype, compiled in itertools.product((None, torch.bfloat16), compiles):
        name = ("bfloat16" if dtype else "float32") + ("_compiled" if compiled else "")
        try:
            arms[name] = measure(bundle, [overlay] if overlay else [], device, dtype, compiled, given.rounds)
        except Exception as error:  # out of memory; or what torch.compile cannot do, such as second derivatives
            arms[name] = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}
        print(name, arms[name], flush=True)
    record = {"preset": given.preset, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
              "torch": torch.__version__, "arms": arms}  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
