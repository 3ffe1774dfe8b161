"""The `synthaug` block of a plans configuration: parsed once, every key and value checked."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

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


class Schedule:
    """What part of each epoch's samples is of one kind, in [0, 1].

    `share` is that part: throughout (`constant`), at the start of the way to `share_end` (`linear`, `cosine`), or
    before the first of the `steps`, each a pair `[epoch, share]`. The first `warmup_epochs` are of this kind only, the
    last `finish_epochs` have none of it; the schedule spans the epochs between.
    """

    share: float
    schedule: str
    share_end: float | None
    steps: tuple[tuple[int, float], ...] | None
    warmup_epochs: int
    finish_epochs: int | None

    _where: ClassVar[str] = ""

    def __post_init__(self) -> None:
        where = self._where
        _check_number(f"{where}share", self.share, 0.0, 1.0)
        if self.schedule not in SCHEDULES:
            raise _bad_value(f"{where}schedule", self.schedule, ", ".join(SCHEDULES))
        if (self.share_end is not None) != (self.schedule in ("linear", "cosine")):
            allowed = "a share in [0, 1] with the schedules linear and cosine, absent with the others"
            raise _bad_value(f"{where}share_end", self.share_end, f"{allowed} (the schedule is {self.schedule})")
        if (self.steps is not None) != (self.schedule == "steps"):
            allowed = "pairs [epoch, share] with the schedule steps, absent with the others"
            raise _bad_value(f"{where}steps", self.steps, f"{allowed} (the schedule is {self.schedule})")
        if self.share_end is not None:
            _check_number(f"{where}share_end", self.share_end, 0.0, 1.0)
        for step in self.steps or ():
            _check_whole(f"{where}steps: epoch", step[0], 0)
            _check_number(f"{where}steps: share", step[1], 0.0, 1.0)
        epochs = [step[0] for step in self.steps or ()]
        if self.steps is not None and (not epochs or epochs != sorted(set(epochs))):
            raise _bad_value(f"{where}steps", self.steps, "at least one pair [epoch, share], epochs increasing")
        _check_whole(f"{where}warmup_epochs", self.warmup_epochs, 0)
        if self.finish_epochs is not None or not isinstance(self, TransplantSettings):
            _check_whole(f"{where}finish_epochs", self.finish_epochs, 0)

    def finish(self, num_epochs: int) -> int:
        """Return how many epochs at the end have none of this kind: a fifth where nothing else is set."""
        return round(num_epochs / 5) if self.finish_epochs is None else self.finish_epochs

    def check_length(self, num_epochs: int) -> None:
        """Raise `InputError` when warm-up and finish need more than `num_epochs`."""
        if self.warmup_epochs + self.finish(num_epochs) > num_epochs:
            raise InputError(
                f"{self._where}warmup_epochs {self.warmup_epochs} + finish_epochs {self.finish(num_epochs)}",
                f"together at most the {num_epochs} epochs of the training",
                "shorten the warm-up or the finish, or train longer",
            )


@dataclass(frozen=True)
class TransplantSettings(Schedule):
    """Lesions of one patient in another, made while training; a part `decoys` of them is healthy tissue instead.

    By default the last fifth of the epochs has none, so that training ends on real cases. `labels` are those of the
    lesions; a configuration from before they were kept has none, and takes whatever its bank was made of.
    """

    share: float = 0.3
    schedule: str = "constant"
    share_end: float | None = None
    steps: tuple[tuple[int, float], ...] | None = None
    warmup_epochs: int = 0
    finish_epochs: int | None = None
    decoys: float = 0.25
    labels: tuple[int, ...] | None = None

    _where: ClassVar[str] = "transplant."

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("transplant.decoys", self.decoys, 0.0, 1.0)
        if self.labels is None:
            return
        for label in self.labels:
            _check_whole("transplant.labels: label", label, 1)
        if not self.labels or sorted(set(self.labels)) != list(self.labels):
            raise _bad_value("transplant.labels", list(self.labels), "at least one label, each once, in their order")


@dataclass(frozen=True)
class SynthAugSettings(Schedule):
    """How synthetic cases of an imported pool, transplants, or both are mixed in.

    Share and schedule are those of the pool; without a pool they say nothing.
    """

    pool: str | None = None
    share: float = 0.5
    schedule: str = "constant"
    share_end: float | None = None
    steps: tuple[tuple[int, float], ...] | None = None
    warmup_epochs: int = 0
    finish_epochs: int | None = 0
    seed: int = 0
    training: TrainingSettings = TrainingSettings()
    transplant: TransplantSettings | None = None

    def __post_init__(self) -> None:
        if self.pool is None and self.transplant is not None:
            _check_no_pool_settings(self)
        elif not isinstance(self.pool, str) or not self.pool:
            raise _bad_value("pool", self.pool, "the name of an imported pool")
        super().__post_init__()
        _check_whole("seed", self.seed, 0)
        if self.training.num_epochs is not None:
            self.check_length(self.training.num_epochs)

    def check_length(self, num_epochs: int) -> None:
        """Raise `InputError` when a warm-up and a finish need more than `num_epochs`."""
        super().check_length(num_epochs)
        if self.transplant is not None:
            self.transplant.check_length(num_epochs)


def _check_no_pool_settings(settings: SynthAugSettings) -> None:
    """Raise `InputError` for a share or schedule of a pool that there is none of."""
    none = {f.name: f.default for f in fields(SynthAugSettings)} | {"share": 0.0}
    given = [name for name in Schedule.__annotations__ if name in none and getattr(settings, name) != none[name]]
    if given:
        raise InputError(
            f"{', '.join(given)} of a pool, in a synthaug block without `pool`",
            "these settings beside a pool, or within `transplant`",
            "move them into the transplant block, or name a pool",
        )


def parse_settings(block: object) -> SynthAugSettings:
    """Check a `synthaug` block as read from JSON; unknown keys are refused with the nearest known one."""
    block = _checked_keys(block, SynthAugSettings, "synthaug")
    transplant = block.pop("transplant", None)
    if "pool" not in block:
        if transplant is None:
            raise InputError(
                "a synthaug block without `pool` and without `transplant`",
                "the name of an imported pool, or transplants",
                "run add-pool or transplant",
            )
        block.setdefault("share", 0.0)
    if transplant is not None:
        transplant = _with_pairs(_checked_keys(transplant, TransplantSettings, "transplant"))
        if (labels := transplant.get("labels")) is not None:
            if not isinstance(labels, (list, tuple)):
                raise _bad_value("transplant.labels", labels, "a list of labels")
            transplant["labels"] = tuple(labels)
        block["transplant"] = TransplantSettings(**transplant)
    block = _with_pairs(block)
    training = block.pop("training", None)
    training = TrainingSettings(**_checked_keys({} if training is None else training, TrainingSettings, "training"))
    return SynthAugSettings(**block, training=training)


def settings_block(settings: SynthAugSettings) -> dict:
    """Return the block that `parse_settings` reads back, without what is left at its default."""
    block: dict = {}
    if settings.pool is not None:
        block = {"pool": settings.pool, **_schedule_block(settings)}
    if settings.transplant is not None:
        block["transplant"] = {**_schedule_block(settings.transplant), "decoys": settings.transplant.decoys}
        if settings.transplant.labels is not None:
            block["transplant"]["labels"] = list(settings.transplant.labels)
    block["seed"] = settings.seed
    training = {f.name: getattr(settings.training, f.name) for f in fields(settings.training)}
    training = {key: value for key, value in training.items() if value is not None}
    if training:
        block["training"] = training
    return block


def _schedule_block(settings: Schedule) -> dict:
    block: dict = {"share": settings.share, "schedule": settings.schedule}
    if settings.share_end is not None:
        block["share_end"] = settings.share_end
    if settings.steps is not None:
        block["steps"] = [list(step) for step in settings.steps]
    defaults = {f.name: f.default for f in fields(type(settings))}  # type: ignore[arg-type]
    for name in ("warmup_epochs", "finish_epochs"):
        if getattr(settings, name) != defaults[name]:
            block[name] = getattr(settings, name)
    return block


def _checked_keys(block: object, kind: type, where: str) -> dict:
    known = [f.name for f in fields(kind)]
    if not isinstance(block, dict):
        raise InputError(f"{where}: {block!r}", f"settings by name: {', '.join(known)}", "write it as a JSON object")
    for key in block:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise InputError(
                f"unknown setting `{key}` in the {where} settings", ", ".join(known), f"did you mean `{near}`?"
            )
    return dict(block)


def _with_pairs(block: dict) -> dict:
    return {**block, "steps": _pairs(block["steps"])} if block.get("steps") is not None else block


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
