"""The `synthaug` block of a plans configuration: parsed once, every key and value checked."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from .errors import InputError

SCHEDULES = ("constant", "linear", "cosine", "steps")
OPTIMIZERS = ("SGD", "AdamW")
AUTOCAST = ("auto", "bfloat16", None)


@dataclass(frozen=True)
class TrainingSettings:
    """What a short comparison changes in nnU-Net's training; `None` is nnU-Net's own value.

    `autocast` is for the CPU, where nnU-Net trains in float32 (on a GPU it has its own float16): "bfloat16", or "auto":
    bfloat16 where the CPU has it in hardware.
    """

    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    optimizer: str | None = None
    initial_lr: float | None = None
    weight_decay: float | None = None
    seed: int | None = None
    autocast: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            if getattr(self, name) is not None:
                _check_whole(f"training.{name}", getattr(self, name), 1)
        if self.optimizer is not None and self.optimizer not in OPTIMIZERS:
            raise _bad_value("training.optimizer", self.optimizer, " or ".join(OPTIMIZERS))
        if self.initial_lr is not None:
            _check_number("training.initial_lr", self.initial_lr, low=0.0, open_low=True)
        if self.weight_decay is not None:
            _check_number("training.weight_decay", self.weight_decay, low=0.0)
        if self.seed is not None:
            _check_whole("training.seed", self.seed, 0)
        if self.autocast not in AUTOCAST:
            raise _bad_value("training.autocast", self.autocast, "auto, bfloat16 or null")


@dataclass(frozen=True)
class SynthAugSettings:
    """How synthetic cases are mixed in.

    `share` is the synthetic part of each epoch's samples, in [0, 1]: the value throughout (`constant`), at
    the start of the way to `share_end` (`linear`, `cosine`), or before the first of the `steps`, each a pair
    `[epoch, share]`. The first `warmup_epochs` are synthetic only, the last `finish_epochs` real only; the
    schedule spans the epochs between.
    """

    pool: str
    share: float = 0.5
    schedule: str = "constant"
    share_end: float | None = None
    steps: tuple[tuple[int, float], ...] | None = None
    warmup_epochs: int = 0
    finish_epochs: int = 0
    seed: int = 0
    training: TrainingSettings = TrainingSettings()

    def __post_init__(self) -> None:
        if not isinstance(self.pool, str) or not self.pool:
            raise _bad_value("pool", self.pool, "the name of an imported pool")
        _check_number("share", self.share, 0.0, 1.0)
        if self.schedule not in SCHEDULES:
            raise _bad_value("schedule", self.schedule, ", ".join(SCHEDULES))
        if (self.share_end is not None) != (self.schedule in ("linear", "cosine")):
            allowed = "a share in [0, 1] with the schedules linear and cosine, absent with the others"
            raise _bad_value("share_end", self.share_end, f"{allowed} (the schedule is {self.schedule})")
        if (self.steps is not None) != (self.schedule == "steps"):
            allowed = "pairs [epoch, share] with the schedule steps, absent with the others"
            raise _bad_value("steps", self.steps, f"{allowed} (the schedule is {self.schedule})")
        if self.share_end is not None:
            _check_number("share_end", self.share_end, 0.0, 1.0)
        for step in self.steps or ():
            _check_whole("steps: epoch", step[0], 0)
            _check_number("steps: share", step[1], 0.0, 1.0)
        epochs = [step[0] for step in self.steps or ()]
        if self.steps is not None and (not epochs or epochs != sorted(set(epochs))):
            raise _bad_value("steps", self.steps, "at least one pair [epoch, share], epochs increasing")
        for name in ("warmup_epochs", "finish_epochs", "seed"):
            _check_whole(name, getattr(self, name), 0)
        if self.training.num_epochs is not None:
            self.check_length(self.training.num_epochs)

    def check_length(self, num_epochs: int) -> None:
        """Raise `InputError` when warm-up and finish need more than `num_epochs`."""
        if self.warmup_epochs + self.finish_epochs > num_epochs:
            raise InputError(
                f"warmup_epochs {self.warmup_epochs} + finish_epochs {self.finish_epochs}",
                f"together at most the {num_epochs} epochs of the training",
                "shorten the warm-up or the finish, or train longer",
            )


def parse_settings(block: object) -> SynthAugSettings:
    """Check a `synthaug` block as read from JSON; unknown keys are refused with the nearest known one."""
    block = _checked_keys(block, SynthAugSettings, "synthaug")
    if "pool" not in block:
        raise InputError("a synthaug block without `pool`", "the name of an imported pool", "run add-pool")
    if block.get("steps") is not None:
        block["steps"] = _pairs(block["steps"])
    training = block.pop("training", None)
    training = TrainingSettings(**_checked_keys({} if training is None else training, TrainingSettings, "training"))
    return SynthAugSettings(**block, training=training)


def settings_block(settings: SynthAugSettings) -> dict:
    """Return the block that `parse_settings` reads back, without what is left at its default."""
    block = {
        "pool": settings.pool,
        "share": settings.share,
        "schedule": settings.schedule,
        "seed": settings.seed,
    }
    if settings.share_end is not None:
        block["share_end"] = settings.share_end
    if settings.steps is not None:
        block["steps"] = [list(step) for step in settings.steps]
    for name in ("warmup_epochs", "finish_epochs"):
        if getattr(settings, name):
            block[name] = getattr(settings, name)
    training = {f.name: getattr(settings.training, f.name) for f in fields(settings.training)}
    training = {key: value for key, value in training.items() if value is not None}
    if training:
        block["training"] = training
    return block


def _checked_keys(block: object, kind: type, where: str) -> dict:
    known = [f.name for f in fields(kind)]
    if not isinstance(block, dict):
        raise InputError(f"{where}: {block!r}", f"settings by name: {', '.join(known)}", "write it as a JSON object")
    for key in block:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise InputError(
                f"unknown setting `{key}` in the {where} settings",
                ", ".join(known),
                f"did you mean `{near}`?",
            )
    return dict(block)


def _pairs(steps: object) -> tuple[tuple[int, float], ...]:
    is_list = isinstance(steps, Iterable) and not isinstance(steps, (str, dict))
    pairs = list(steps) if is_list else None  # type: ignore[call-overload]
    if pairs is None or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise _bad_value("steps", steps, "a list of pairs [epoch, share]")
    return tuple((pair[0], pair[1]) for pair in pairs)


def _check_number(name: str, value: object, low: float, high: float = math.inf, open_low: bool = False) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        allowed = f"a number above {low:g}" if open_low else f"a number from {low:g}"
        raise _bad_value(name, value, allowed + ("" if math.isinf(high) else f" to {high:g}"))


def _check_whole(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise _bad_value(name, value, f"a whole number from {low}")


def _bad_value(name: str, value: object, allowed: str) -> InputError:
    return InputError(f"{name} = {value!r}", allowed, f"correct `{name}`")
