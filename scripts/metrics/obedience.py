"""How far the masks of a conditional generator are from what was asked for, beside requests that were shuffled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..data.conditions import FEATURES, to_vector
from ..runtime.errors import InputError
from .comparison import FEWEST_PATIENTS


class Measure(NamedTuple):
    """What a number says, its unit, whether less or more of it is better (0: neither), and its worst value."""

    words: str
    unit: str
    better: int
    worst: float


MEASURES = {
    "volume_ratio": Measure("volume, measured / asked for", "", 0, 0.0),
    "volume_factor": Measure("factor between the two volumes, whichever is larger", "", -1, np.inf),
    "centre_distance": Measure("distance between the centres", " mm", -1, np.inf),
    "box_iou": Measure("overlap (IoU) of the bounding boxes", "", 1, 0.0),
}


def compare_features(asked: np.ndarray, measured: np.ndarray) -> dict[str, np.ndarray]:
    """The `MEASURES` of each sample, `(samples,)`, from features `(samples, 9)` as of `to_vector`.

    A box is `extent` around `centre` (of mass), on both sides. An empty mask gets the worst values (ratio and overlap
    0, factor and distance infinite) rather than none, so that nothing is left out.
    """
    centre, place = (side[:, FEATURES["centre"]] for side in (measured, asked))
    size, room = (side[:, FEATURES["extent"]] for side in (measured, asked))
    shared = np.minimum(centre + size / 2, place + room / 2) - np.maximum(centre - size / 2, place - room / 2)
    shared = shared.clip(min=0).prod(axis=1)
    ratio, empty = measured[:, 0] / asked[:, 0], measured[:, 0] == 0
    factor = np.exp(np.abs(np.log(np.where(empty, 1.0, ratio))))
    return {
        "volume_ratio": ratio,
        "volume_factor": np.where(empty, np.inf, factor),
        "centre_distance": np.where(empty, np.inf, np.linalg.norm(centre - place, axis=1)),
        "box_iou": shared / (size.prod(axis=1) + room.prod(axis=1) - shared),
    }


def summarise_obedience(
    record: Mapping[str, Any], level: float = 0.95, resamples: int = 1000, shuffles: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Obedience of a pool of volumes: medians with intervals, beside the same requests shuffled between its samples.

    The interval is the bootstrap percentile interval of the median over samples of this one generator; the groups of
    a sweep, whose steps share their noise, are resampled whole. It covers neither other trainings nor other
    requests, and is a little short (nominal 95 % covers about 93 % at n = 5 to 20 and 94 % at 50, for a normal).
    The shuffled baseline is what a generator would reach that makes the same masks without listening.

    Samples that the sampler rejected, for having hardly any mask, are not in the pool. They may be the least
    obedient, so the medians are also given with each of them counted as an empty mask, which is the worst case.

    Args:
        record: of the pool, see `read_pool`.
        level: of the intervals and of the baseline's range.
        resamples, shuffles: of the bootstrap and of the baseline.
        seed: of both.

    Returns a dict that JSON can hold, null standing for infinite: "n", "groups" (those resampled), "sweep" (feature or
    None), "empty", "candidates", "rejected", "measures" {name: {"median", "quartiles", "interval" (None below
    `FEWEST_PATIENTS` groups), "median_with_rejected", "shuffled": {"median", "range"}, "verdict"}} and "samples".
    The verdict is "closer" or "farther" only where the interval lies wholly beyond the range of the shuffles, else
    "undecided"; "too few" without an interval, None for the ratio, whose median shuffling need not change.

    Raises:
        InputError: a pool of slices, or one that nothing was asked of.
    """
    samples = record["samples"]
    if record["dimension"] != 3 or any(sample["condition"] is None for sample in samples):
        raise InputError(
            f"a pool of {'slices' if record['dimension'] == 2 else 'volumes'} drawn without conditions",
            "volumes of a conditional generator",
            "sample a pool with the bundle sbldm",
        )
    asked, measured = (np.array([to_vector(sample[key]) for sample in samples]) for key in ("condition", "features"))
    sweep = samples[0]["condition"].get("sweep")
    names = [sample["condition"]["sweep"]["group"] if sweep else i for i, sample in enumerate(samples)]
    groups = [np.flatnonzero(np.equal(names, name)) for name in dict.fromkeys(names)]
    rng = np.random.default_rng(seed)
    picks = [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(resamples)]
    values = compare_features(asked, measured)
    shuffled = [compare_features(asked[rng.permutation(len(asked))], measured) for _ in range(shuffles)]
    rejected = record["sampling"]["candidates"] - len(samples)
    tails = [(1 - level) / 2, (1 + level) / 2]
    measures = {}
    for name, measure in MEASURES.items():
        own, others = values[name], np.array([np.median(other[name]) for other in shuffled])
        boot = np.array([np.median(own[pick]) for pick in picks])
        enough = len(groups) >= FEWEST_PATIENTS
        interval = np.quantile(boot, tails, method="inverted_cdf") if enough else None
        baseline = np.quantile(others, tails, method="inverted_cdf")
        measures[name] = {
            "median": _json(np.median(own)),
            "quartiles": [_json(v) for v in np.quantile(own, [0.25, 0.75], method="inverted_cdf")],
            "interval": None if interval is None else [_json(v) for v in interval],
            "median_with_rejected": _json(np.median(np.append(own, [measure.worst] * rejected))),
            "shuffled": {"median": _json(np.median(others)), "range": [_json(v) for v in baseline]},
            "verdict": _verdict(interval, baseline, measure.better) if measure.better else None,
        }
    return {
        "n": len(samples),
        "groups": len(groups),
        "sweep": sweep and sweep["feature"],
        "empty": int((measured[:, 0] == 0).sum()),
        "candidates": record["sampling"]["candidates"],
        "rejected": rejected,
        "min_foreground": record["sampling"].get("min_foreground"),
        "level": level,
        "resamples": resamples,
        "shuffles": shuffles,
        "seed": seed,
        "measures": measures,
        "samples": [
            {"id": sample["id"], **{name: _json(values[name][i]) for name in MEASURES}}
            for i, sample in enumerate(samples)
        ],
    }


def _verdict(interval: np.ndarray | None, baseline: np.ndarray, better: int) -> str:
    if interval is None:
        return "too few"
    above, below = interval[0] > baseline[1], interval[1] < baseline[0]
    closer, farther = (above, below) if better > 0 else (below, above)
    return "closer" if closer else "farther" if farther else "undecided"


def _json(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
