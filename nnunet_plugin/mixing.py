"""Which samples of an epoch are synthetic, and which ones: pure functions of (seed, rank, epoch)."""

import math
from hashlib import blake2b

import numpy as np

from .errors import InputError
from .settings import Schedule, SynthAugSettings

REAL, TRANSPLANT = -1, -2
MOST_OF_ONE = 0.02  # of all that a network sees, one sample: a 25th of a half


def share_at(settings: Schedule, epoch: int, num_epochs: int) -> float:
    """Return the share in [0, 1] of an epoch; past the last epoch the last one's."""
    epoch = min(epoch, num_epochs - 1)
    if epoch < settings.warmup_epochs:
        return 1.0
    finish = settings.finish(num_epochs)
    if epoch >= num_epochs - finish:
        return 0.0
    if settings.schedule == "steps":
        passed = [share for start, share in settings.steps or () if start <= epoch]
        return float(passed[-1] if passed else settings.share)
    if settings.share_end is None:
        return float(settings.share)
    span = num_epochs - finish - settings.warmup_epochs - 1
    progress = (epoch - settings.warmup_epochs) / max(span, 1)
    if settings.schedule == "cosine":
        progress = 0.5 * (1.0 - math.cos(math.pi * progress))
    return settings.share + (settings.share_end - settings.share) * progress


def transplant_share_at(settings: SynthAugSettings, epoch: int, num_epochs: int) -> float:
    """Return the share of transplants in [0, 1] of an epoch."""
    return 0.0 if settings.transplant is None else share_at(settings.transplant, epoch, num_epochs)


def few_samples_words(settings: Schedule, samples: int) -> str | None:
    """What to tell of a pool so small that the network sees each of its samples again and again; None: it is not."""
    share = max(settings.share, settings.share_end or 0.0, *(part for _, part in settings.steps or ()), 0.0)
    if share <= MOST_OF_ONE * samples:
        return None
    return (
        f"WARNING: a pool of {samples} samples at a share of {100 * share:g} %: each is {100 * share / samples:.2g} % "
        f"of all that the network sees. Sample more, {math.ceil(share / MOST_OF_ONE)} or so, or take a smaller share."
    )


def check_shares(settings: SynthAugSettings, num_epochs: int) -> None:
    """Raise `InputError` when samples of the pool and transplants are more than an epoch has."""
    for epoch in range(num_epochs):
        shares = share_at(settings, epoch, num_epochs), transplant_share_at(settings, epoch, num_epochs)
        if sum(shares) > 1 + 1e-9:
            raise InputError(
                f"in epoch {epoch} a share {shares[0]:g} of the pool and a share {shares[1]:g} of transplants",
                "together at most 1 in every epoch",
                "lower a share, or shorten a warm-up",
            )


def draw(pool_size: int, count: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Draw `count` sample numbers, int64 in [0, pool_size): none twice, over all ranks, while the pool lasts.

    The ranks deal from one shuffled deck; a deck that runs out is shuffled anew.
    """
    decks = [
        np.random.default_rng([seed, epoch, deck]).permutation(pool_size)
        for deck in range(math.ceil(count * world_size / max(pool_size, 1)))
    ]
    return np.concatenate([np.empty(0, np.int64), *decks])[rank::world_size][:count]


def epoch_plan(
    settings: SynthAugSettings,
    epoch: int,
    num_epochs: int,
    pool_size: int,
    batches: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> np.ndarray:
    """Plan one epoch of one rank: int64 (batches, batch_size) of sample numbers, -1 for a real case, -2 a transplant.

    The synthetic count is the share of batches * batch_size, rounded to the nearest whole number, and so is that of
    the transplants. Both are spread evenly over the batches, so that batches which overtake one another in the
    background workers leave the shares of an epoch as they are. The places inside a batch are random, because nnU-Net
    oversamples the foreground by place.
    """
    total = batches * batch_size
    count = math.floor(share_at(settings, epoch, num_epochs) * total + 0.5)
    transplants = math.floor(transplant_share_at(settings, epoch, num_epochs) * total + 0.5)
    both = min(count + transplants, total)
    # The draws of all ranks come from (seed, epoch); this generator is for the places, of one rank.
    generator = np.random.default_rng([settings.seed, epoch, rank, total])
    order = generator.permutation(batches)
    places = generator.permuted(np.tile(np.arange(batch_size), (batches, 1)), axis=1)
    plan = np.full((batches, batch_size), REAL, np.int64)
    # The pool's places are what they would be without transplants, which come next to them.
    plan[places < _quota(both, order)] = TRANSPLANT
    plan[places < _quota(count, order)] = draw(pool_size, count, settings.seed, epoch, rank, world_size)
    return plan


def _quota(count: int, order: np.ndarray) -> np.ndarray:
    """Return how many of `count` samples each batch has, int64 (batches, 1); the first of `order` have one more."""
    quota = np.full((len(order), 1), count // len(order))
    quota[order[: count % len(order)]] += 1
    return quota


def draw_fingerprint(batch: int, place: int, sample: str) -> int:
    """Return a 64-bit hash of one draw; the sum modulo 2**64 identifies an epoch's draws in any order."""
    return int.from_bytes(blake2b(f"{batch} {place} {sample}".encode(), digest_size=8).digest(), "little")
