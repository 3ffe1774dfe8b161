"""Time and memory of one HVAE training step: the fast code against the plain transcription of the formulas.

    python benchmarks/hvae_step.py            # some minutes; writes benchmarks/results/hvae_step.json
    python benchmarks/hvae_step.py --tiny --rounds 2 --output /tmp/tiny.json

A step is the loss and its gradients for all parameters (no optimiser), on random data: time and memory do not
depend on the values. All arms are timed in turn in every round of one process, so that a ratio compares
neighbours in time. Peak memory is taken in a fresh process per arm: the largest resident size after two steps
less that before the first one. The arms' float64 agreement is measured at a smaller image size.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.data.provenance import code_revision  # noqa: E402
from scripts.losses.hvae import hvae_objective  # noqa: E402
from scripts.networks.hvae import HVAE  # noqa: E402

_spec = importlib.util.spec_from_file_location("plain_hvae", ROOT / "tests" / "losses" / "plain_hvae.py")
plain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain)

SETTINGS = {"channels": (64, 128, 256, 256), "size": 128, "batch": 4, "steps": 3}
TINY = {"channels": (8, 16, 16, 16), "size": 32, "batch": 2, "steps": 3}
BF16 = {"autocast_dtype": torch.bfloat16}
# name -> (uses the dynamics, is the plain transcription, options of the objective)
ARMS = {
    "plain_fp32": (True, True, {}),
    "fast_fp32": (True, False, {}),
    "fast_bf16": (True, False, BF16),
    "first_order_fp32": (True, False, {"first_order": True}),
    "first_order_bf16": (True, False, {"first_order": True, **BF16}),
    "vae_fp32": (False, False, {}),
    "vae_bf16": (False, False, BF16),
}
TARGETS = {  # least speed-up and largest share of memory, both against plain_fp32
    "fast_fp32": {"speedup": 1.3, "memory": 0.85},
    "fast_bf16": {"speedup": 2.0, "memory": 0.5},
    "first_order_bf16": {"speedup": 4.5},
}


def cpu_flags() -> list[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    words = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return sorted(word for word in words if word.startswith(("avx", "amx")))


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def build(settings: dict, dynamics: bool, dtype: torch.dtype = torch.float32) -> tuple[HVAE, torch.Tensor]:
    torch.manual_seed(0)
    steps = settings["steps"] if dynamics else 0
    network = HVAE(2, settings["size"], channels=settings["channels"], num_leapfrog_steps=steps)
    return network.to(dtype), torch.rand(settings["batch"], 2, settings["size"], settings["size"], dtype=dtype)


def step(arm: str, network: HVAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the loss and all gradients as one vector."""
    _, is_plain, options = ARMS[arm]
    generator = torch.Generator().manual_seed(0)
    if is_plain:
        loss = plain.plain_hvae_loss(network, x, generator)
    else:
        loss = hvae_objective(network, x, generator, **options).loss
    network.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])


def resident_mib(field: str) -> float:
    """Read VmRSS (now) or VmHWM (peak) of this process; ru_maxrss would be inherited from the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_memory_mib(arm: str, settings: dict) -> float:
    network, x = build(settings, ARMS[arm][0])
    before = resident_mib("VmRSS")
    for _ in range(2):
        step(arm, network, x)
    return resident_mib("VmHWM") - before


def float64_agreement(settings: dict) -> dict[str, float]:
    """Relative difference of loss and gradients between the plain and the fast arm at equal numerics."""
    network, x = build({**settings, "size": 32, "batch": 2}, True, torch.float64)
    (loss_a, gradient_a), (loss_b, gradient_b) = (step(a, network, x) for a in ("plain_fp32", "fast_fp32"))
    return {
        "loss": ((loss_a - loss_b).abs() / loss_a.abs()).item(),
        "gradients": ((gradient_a - gradient_b).norm() / gradient_a.norm()).item(),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of one HVAE training step.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that the benchmark runs")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "hvae_step.json")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)  # the child process
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = TINY if arguments.tiny else SETTINGS
    if arguments.memory_of:
        print(peak_memory_mib(arguments.memory_of, settings))
        return

    has_bf16 = any(flag in ("avx512_bf16", "amx_bf16") for flag in cpu_flags())
    arms = [arm for arm in ARMS if has_bf16 or not arm.endswith("bf16")]
    networks = {dynamics: build(settings, dynamics) for dynamics in (True, False)}
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for number in range(arguments.rounds + 1):  # the first round warms up
        for arm in arms:
            start = time.perf_counter()
            step(arm, *networks[ARMS[arm][0]])
            if number > 0:
                seconds[arm].append(time.perf_counter() - start)
        print(f"round {number}/{arguments.rounds}", file=sys.stderr, flush=True)

    memory = {}
    for arm in arms:
        command = [sys.executable, __file__, "--memory-of", arm, "--threads", str(arguments.threads)]
        child = subprocess.run(command + ["--tiny"] * arguments.tiny, check=True, capture_output=True, text=True)
        memory[arm] = float(child.stdout.split()[-1])
    results = {}
    for arm in arms:
        speedups = [a / b for a, b in zip(seconds["plain_fp32"], seconds[arm], strict=True)]
        results[arm] = {
            "seconds": spread(seconds[arm]),
            "speedup": spread(speedups),
            "memory_mib": round(memory[arm]),
            "memory_ratio": round(memory[arm] / memory["plain_fp32"], 3),
        }
        target = None if arguments.tiny else TARGETS.get(arm)
        if target:
            met = results[arm]["speedup"]["median"] >= target["speedup"]
            met = met and results[arm]["memory_ratio"] <= target.get("memory", 1.0)
            results[arm].update(target=target, target_met=met)
    report = {
        "command": " ".join(["python", "benchmarks/hvae_step.py", *sys.argv[1:]]),
        "device": {"cpu": cpu_model(), "flags": cpu_flags(), "threads": torch.get_num_threads()},
        "commit": code_revision(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "data": "uniform random numbers in [0, 1], seed 0",
        "settings": {**settings, "parameters": sum(p.numel() for p in networks[True][0].parameters())},
        "rounds": arguments.rounds,
        "float64_relative_difference": float64_agreement(settings),
        "arms": results,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(arguments.output)
    print(f"float64 difference: {report['float64_relative_difference']}")
    print(f"{'arm':<18}{'seconds':>9}{'speed-up (min to max)':>26}{'memory':>11}{'ratio':>8}  target")
    for arm, row in results.items():
        faster = row["speedup"]
        times = f"{faster['median']:.2f} ({faster['min']:.2f} to {faster['max']:.2f})"
        verdict = {None: "", True: "met", False: "MISSED"}[row.get("target_met")]
        size = f"{row['memory_mib']} MiB"
        seconds_here, ratio = row["seconds"]["median"], row["memory_ratio"]
        print(f"{arm:<18}{seconds_here:>9.2f}{times:>26}{size:>11}{ratio:>8.2f}  {verdict}")
    print(arguments.output)


if __name__ == "__main__":
    main()
