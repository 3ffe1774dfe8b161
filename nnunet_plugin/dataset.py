"""The training data set that nnU-Net's loader sees: real cases, some of them replaced by synthetic ones."""

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from .mixing import REAL, TRANSPLANT, draw_fingerprint, epoch_plan
from .settings import SynthAugSettings

MOST_OPEN = 64  # cases that a worker keeps open
ROOM = 64e6  # bytes of their classes' locations, all together


class CaseSource(Protocol):
    """What of nnU-Net's data sets is used here."""

    identifiers: Sequence[str]

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Return data, segmentation, previous segmentation and properties of a case."""


@dataclass(frozen=True)
class EpochPlans:
    """Everything that the plans of one rank's epochs depend on."""

    settings: SynthAugSettings
    samples: tuple[str, ...] = field(repr=False)  # nnU-Net writes every attribute's repr to debug.json
    num_epochs: int
    batches: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def of(self, epoch: int) -> np.ndarray:
        """Return the plan of an epoch: (batches, batch_size) sample numbers, -1 for a real case, -2 a transplant."""
        return epoch_plan(
            self.settings,
            epoch,
            self.num_epochs,
            len(self.samples),
            self.batches,
            self.batch_size,
            self.rank,
            self.world_size,
        )

    def name(self, number: int) -> str:
        """Return what a number other than that of a real case stands for, in the fingerprint of a draw."""
        return "a transplant" if number == TRANSPLANT else self.samples[number]


class TransplantSource(Protocol):
    """Makes transplants; see `transplant.cases`."""

    def load(self, epoch: int, batch: int, place: int) -> tuple[Any, Any, Any, dict] | None:
        """Return the transplant of a place of an epoch as a case, or `None` where none could be made."""


class Loaded(NamedTuple):
    """What was loaded for an epoch: samples of each kind, and the sum of the draws' fingerprints."""

    real: int
    synthetic: int
    draws: int
    transplants: int = 0


def planned(plans: EpochPlans, epoch: int) -> Loaded:
    """Return what an epoch loads when all goes to plan."""
    plan = plans.of(epoch)
    drawn = [(b, p, plans.name(plan[b, p])) for b, p in np.argwhere(plan != REAL)]
    draws = sum(draw_fingerprint(b, p, sample) for b, p, sample in drawn) % 2**64
    transplants = int((plan == TRANSPLANT).sum())
    return Loaded(plan.size - len(drawn), len(drawn) - transplants, draws, transplants)


class Ledger:
    """Memory shared by the background workers: the next batch to load, and what was loaded for each epoch.

    Workers run ahead of the training, so they cannot ask it for its epoch. They take batches by number
    instead, and the number says the epoch, whichever worker loads it and whenever.
    """

    def __init__(self, first_epoch: int, num_epochs: int, batches: int):
        self.first_epoch, self.num_epochs, self.batches = first_epoch, num_epochs, batches
        # nnU-Net throws the first batch away to start its workers: batch -1 belongs to no epoch.
        self._next = multiprocessing.Value("q", -1)
        self._loaded = multiprocessing.RawArray("Q", len(Loaded._fields) * max(num_epochs - first_epoch, 0))

    def take_batch(self) -> tuple[int, int]:
        """Return (epoch, batch of the epoch) of the next batch; the thrown-away one is (first epoch, -1)."""
        with self._next.get_lock():
            number = self._next.value
            self._next.value += 1
        if number < 0:
            return self.first_epoch, -1
        return self.first_epoch + number // self.batches, number % self.batches

    def record(self, epoch: int, kind: str, fingerprint: int = 0) -> None:
        """Count one loaded sample, a `kind` of `Loaded`; epochs after the last are loaded in advance and never used."""
        if epoch >= self.num_epochs:
            return
        first = len(Loaded._fields) * (epoch - self.first_epoch)
        draws = first + Loaded._fields.index("draws")
        with self._next.get_lock():
            self._loaded[first + Loaded._fields.index(kind)] += 1
            self._loaded[draws] = (self._loaded[draws] + fingerprint) % 2**64

    def loaded(self, epoch: int) -> Loaded:
        """Return what has been loaded for an epoch so far."""
        first = len(Loaded._fields) * (epoch - self.first_epoch)
        with self._next.get_lock():
            return Loaded(*self._loaded[first : first + len(Loaded._fields)])


class MixedDataset:
    """Real training cases; `load_case` returns another one in its stead where the epoch's plan says so.

    That is a sample of the pool (`synthetic`) or a transplant. The loader draws real identifiers as ever, so that with
    none of them its random numbers, and so its batches, are those of stock nnU-Net.
    """

    def __init__(
        self,
        real: CaseSource,
        synthetic: CaseSource | None,
        plans: EpochPlans,
        ledger: Ledger,
        transplants: TransplantSource | None = None,
    ):
        self.identifiers = real.identifiers
        self._real, self._synthetic, self._transplants = real, synthetic, transplants
        self._plans, self._ledger = plans, ledger
        self._place = 0  # in the batch under way; every worker has its own copy of this object
        self._epoch = self._batch = -1
        self._plan = np.empty((0, 0), np.int64)  # of the epoch under way

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Return what nnU-Net's data sets return, of this case or of the one in its place."""
        if self._place == 0:
            epoch, self._batch = self._ledger.take_batch()
            if epoch != self._epoch:
                self._epoch, self._plan = epoch, self._plans.of(epoch)
        place, self._place = self._place, (self._place + 1) % self._plans.batch_size
        number = self._plan[self._batch, place]
        kind, case = "real", None
        if number == TRANSPLANT and self._transplants is not None:
            case = self._transplants.load(self._epoch, self._batch, place)
            kind = "real" if case is None else "transplants"
        elif number >= 0 and self._synthetic is not None:
            kind, case = "synthetic", self._synthetic.load_case(self._plans.name(number))
        if self._batch >= 0:
            is_real = kind == "real"
            fingerprint = 0 if is_real else draw_fingerprint(self._batch, place, self._plans.name(number))
            self._ledger.record(self._epoch, kind, fingerprint)
        return self._real.load_case(identifier) if case is None else case


class OpenCases:
    """Cases that stay open: of a 2D batch of nnU-Net's loader a quarter of the time goes into opening their files."""

    def __init__(self, cases: CaseSource):
        self.identifiers, self._cases = cases.identifiers, cases
        self._load: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_load": None}  # every worker opens the files itself

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Return what nnU-Net's data sets return."""
        if self._load is None:
            _, _, _, properties = self._cases.load_case(str(identifier))
            size = sum(np.asarray(where).nbytes for where in properties.get("class_locations", {}).values())
            self._load = lru_cache(int(min(MOST_OPEN, ROOM // max(size, 1))))(self._cases.load_case)
        return self._load(str(identifier))  # nnU-Net draws numpy's texts, which are other keys


class WritableCases:
    """Cases of nnU-Net's older .npz format, whose loader and transforms write into the arrays that it maps read-only.

    With a patch as large as the case that ends the process; here each array is mapped copy-on-write.
    """

    def __init__(self, cases: CaseSource):
        self.identifiers, self._cases = cases.identifiers, cases

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        """Return what nnU-Net's data sets return."""
        data, seg, previous, properties = self._cases.load_case(identifier)
        return _writable(data), _writable(seg), previous, properties


def _writable(array: Any) -> Any:
    is_mapped = isinstance(array, np.memmap) and not array.flags.writeable
    return np.load(array.filename, mmap_mode="c") if is_mapped else array
