"""Whether a pool alone teaches what the real cases teach: a gate before hours of training with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..metrics.comparison import FEWEST_PATIENTS
from ..runtime.errors import InputError
from .agreement import batch_size_of, predict_logits, train_segmenter
from .items import AuditData, Items, Track

STEPS = {2: 300, 3: 100}  # on slices, and on volumes; about a minute of one core at 64 x 64
THRESHOLD = 0.85
# A network that hardly segments when it learns from real cases says nothing about a pool.
LEAST_DICE = 0.1
RESAMPLES = 2000


@dataclass(frozen=True)
class UsefulnessSettings:
    """How usefulness is measured.

    Attributes:
        steps: training steps of each of the two networks; None: 300 on slices, 100 on volumes.
        threshold: the ratio of Dice below which mixing is called unlikely to help. A guess: over six pools a like ratio
            (whole test volumes, longer trainings) ranked the gains with a Spearman correlation of 0.83 (p = 0.06), and
            the best pool, which did not help, reached 0.81.

    Raises:
        InputError: no whole number of steps from 1, or no threshold from 0.
    """

    steps: int | None = None
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        whole = isinstance(self.steps, int) and not isinstance(self.steps, bool)
        if self.steps is not None and (not whole or self.steps < 1):
            raise InputError(f"usefulness_steps {self.steps!r}", "a whole number from 0 (0: not at all)", "such as 300")
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not number or not 0 <= self.threshold < float("inf"):
            raise InputError(f"usefulness_threshold {self.threshold!r}", "a number from 0", f"such as {THRESHOLD}")


def usefulness_settings(steps: int | None = None, threshold: float = THRESHOLD) -> UsefulnessSettings | None:
    """The settings, as a command takes them: None, not to be measured, for 0 steps.

    Raises:
        InputError: see `UsefulnessSettings`.
    """
    settings = UsefulnessSettings(steps or None, threshold)
    return None if steps == 0 else settings


def find_usefulness(
    audit: AuditData, kept: np.ndarray, settings: UsefulnessSettings, seed: int, device: torch.device, track: Track
) -> dict[str, Any]:
    """Dice on held-out patients of a network that learnt from the pool alone, over that of one on real items alone.

    Both have the same steps, batches and augmentation, and learn from items with foreground: a pool has few others,
    and those of real patients stand beside it in any mixture. So they are also measured on the slices with foreground
    of each patient whom neither saw, taken together (volumes whole).

    Args:
        audit: pool and real cases.
        kept: (samples,) bool, those that would train a segmenter.
        settings: see there.
        seed: of weights, batches and bootstrap.
        device: where to compute.
        track: shows a bar.

    Returns:
        A record that JSON holds: "ratio" and its "interval" (95 %, patients resampled), None where they are not
        defined, with "why"; "useful": True, False where the whole interval is below the threshold (the ratio, of fewer
        than five patients), or None where it cannot be told; and what they come from.
    """
    judged = audit.real.subset(audit.held_out & audit.judged)
    real = audit.real.subset(~audit.held_out & audit.judged)
    chosen = kept & audit.samples.foreground.flatten(1).any(dim=1).numpy()
    steps = settings.steps or STEPS[audit.samples.images.ndim - 2]
    record: dict[str, Any] = {
        "ratio": None, "interval": None, "useful": None, "threshold": float(settings.threshold),
        "steps": steps, "samples": int(chosen.sum()), "real_items": len(real),
        "patients": len(np.unique(judged.groups)),
    }  # fmt: skip
    if not chosen.any() or not len(judged):
        why = "no sample is kept" if len(judged) else "no patient is held out (fold all)"
        return {**record, "why": why}
    bar = iter(track(list(range(2 * steps)), "training on the pool alone, and on real cases alone"))
    size, dice = batch_size_of(audit.real), {}
    for name, items in (("pool", audit.samples.subset(chosen)), ("real", real)):
        network = train_segmenter(items, steps, size, seed, device, bar)
        dice[name] = patient_dice(network, judged, size, device)
    next(bar, None)  # the bar ends
    # A patient whom one network cannot be judged on is judged on neither.
    defined = ~np.isnan(dice["pool"]) & ~np.isnan(dice["real"])
    pool, reference = dice["pool"][defined], dice["real"][defined]
    record |= {"pool_dice": float(pool.mean()), "real_dice": float(reference.mean())}
    if reference.mean() < LEAST_DICE:
        return {**record, "why": f"the network on real cases reaches a Dice of {reference.mean():.2f} alone"}
    ratio = float(pool.mean() / reference.mean())
    interval = _ratio_interval(pool, reference, seed)
    # Of fewer patients than an interval needs, the ratio itself is all there is.
    surely_below = (
        ratio < settings.threshold
        if len(pool) < FEWEST_PATIENTS
        else (interval is not None and interval[1] < settings.threshold)
    )
    useful = True if ratio >= settings.threshold else False if surely_below else None
    return {**record, "ratio": ratio, "interval": interval, "useful": useful}


def usefulness_words(record: dict[str, Any]) -> str:
    """What `find_usefulness` found, in a line."""
    if record["ratio"] is None:
        return f"Usefulness cannot be told: {record['why']}."
    interval = record["interval"]
    between = "without an interval" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
    words = (
        f"Usefulness {record['ratio']:.2f} ({between}): Dice {record['pool_dice']:.2f} on {record['patients']} unseen "
        f"patients after {record['steps']} steps on the pool alone, {record['real_dice']:.2f} on real cases alone"
    )
    if record["useful"]:
        return f"{words}; at least {record['threshold']:g}, so that mixing may help."
    if record["useful"] is None:
        return f"{words}; below {record['threshold']:g}, but not surely, so that it cannot be told."
    return f"{words}. BELOW {record['threshold']:g}: MIXING THIS POOL IN IS UNLIKELY TO HELP."


@torch.no_grad()
def patient_dice(network: nn.Module, items: Items, batch_size: int, device: torch.device) -> np.ndarray:
    """Dice of each patient over all of its items, mean over labels: (patients,), sorted by name.

    A label that neither mask nor prediction (logit above 0) holds in a patient is left out; NaN where all are.
    """
    predicted = torch.cat([
        (predict_logits(network, images.float().to(device)) > 0).cpu() for images in items.images.split(batch_size)
    ])  # fmt: skip
    hits, sizes = (predicted & items.masks).flatten(2).sum(2), (predicted.int() + items.masks.int()).flatten(2).sum(2)
    found = []
    for group in np.unique(items.groups):
        own = torch.from_numpy(items.groups == group)
        together = sizes[own].sum(0)
        labels = together > 0
        dice = 2 * hits[own].sum(0)[labels] / together[labels]
        found.append(float(dice.mean()) if labels.any() else float("nan"))
    return np.array(found)


def _ratio_interval(pool: np.ndarray, real: np.ndarray, seed: int) -> list[float] | None:
    """95 % percentile interval of the ratio of means, patients drawn with replacement; None for too few.

    None, too, where patients can be drawn on whom real cases alone teach next to nothing: the ratio has no bound then.
    """
    if len(pool) < FEWEST_PATIENTS:
        return None
    drawn = np.random.default_rng(seed).integers(len(pool), size=(RESAMPLES, len(pool)))
    below = real[drawn].mean(axis=1)
    if below.min() < LEAST_DICE:
        return None
    low, high = np.percentile(pool[drawn].mean(axis=1) / below, [2.5, 97.5])
    return [float(low), float(high)]
