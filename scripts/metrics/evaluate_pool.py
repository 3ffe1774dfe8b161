"""All figures of a pool against real cases, and of held-out real cases as the ceiling."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.provenance import code_revision, package_versions
from ..networks.features import AlexNetFeatures, FeatureExtractor, train_segmentation_features
from ..pool.adopt import user_word
from ..runtime.errors import InputError
from .distributions import frechet_distance, in_doubles, kernel_distance, kernel_distance_subsets, parts
from .extractors import pooled_features, pretrained_extractors
from .fidelity import (
    HIGHEST_PSNR,
    LearnedPerceptualDistance,
    PairMeasure,
    PerceptualDistance,
    mean_squared_differences,
    nearest_items,
    pair_values,
    psnr,
    random_items,
    ssim,
)
from .item_sets import ItemSet, OpenedPool, mask_channels, open_pool, read_cases, read_samples
from .masks import SMOOTHING, empty_share, feature_distance, feature_unit, mask_divergences
from .prdc import prdc
from .resampling import Bootstrap

logger = logging.getLogger(__name__)

FORMAT, FORMAT_VERSION = "synthaug-pool-metrics", 1
# Not a seed that anyone gives to a training: a generator must not be judged by the extractor of its own loss.
EXTRACTOR_SEED = 7919
DATA_RANGE = "range=0..1"
IMAGES, PAIRS = 32, 2**23  # that are looked at at once
BOUNDS = {  # possible values; the others are distances, from 0 on
    "psnr": (-np.inf, HIGHEST_PSNR),
    "ssim": (-1.0, 1.0),
    "kid": (-np.inf, np.inf),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "coverage": (0.0, 1.0),
    "jsd": (0.0, np.log(2)),
    "empty-masks": (0.0, 1.0),
}
HIGHER_IS_BETTER = ("psnr", "ssim", "precision", "recall", "density", "coverage")
PACKAGES = ("torchmetrics", "lpips", "torchvision", "scipy")


@dataclass(frozen=True)
class Comparison:
    """Candidates against a reference; the figures' names carry their numbers in this order."""

    key: str
    candidates: ItemSet
    reference: ItemSet
    meaning: str


@dataclass(frozen=True)
class EvaluationSettings:
    """How figures are computed.

    Attributes:
        neighbours: k of precision, recall, density and coverage.
        resamples: of the bootstrap.
        level: of its intervals.
        seed: of the bootstrap, the random pairs and the subsets.
        feature_steps: training steps of the project's own extractor.
    """

    neighbours: int = 5
    resamples: int = 500
    level: float = 0.95
    seed: int = 0
    feature_steps: int = 200


def evaluate_pool(
    pool_dir: str | Path,
    dataset_dir: str | Path,
    *,
    weights_inception: str | Path | None = None,
    weights_alexnet: str | Path | None = None,
    weights_vgg: str | Path | None = None,
    num_samples: int | None = None,
    settings: EvaluationSettings | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compare a pool with the generator's training cases and with held-out ones.

    Images are compared slice by slice at the pool's resolution, in the generator's scaling to [0, 1]: slices with
    foreground of real cases and of volumes, every sample of a pool of slices. Masks are compared as slices or
    volumes, as the pool holds them; real volumes are stretched to the pool's depth for the class probabilities
    only.

    Args:
        pool_dir: a finished pool; samples that its audit dropped are left out.
        dataset_dir: the data set that the generator was trained on, as then.
        weights_inception, weights_alexnet, weights_vgg: weights files; None for those in the torch hub cache, if
            they lie there. Nothing is downloaded.
        num_samples: compare so many samples, spread evenly over the pool, instead of all.
        settings: see `EvaluationSettings`.
        progress: show bars with the time left.

    Returns:
        The record, which JSON can hold, and the first two principal components of the own extractor's features,
        name of set -> (slices, 2).

    Raises:
        InputError: pool, data set, weights or settings cannot be used.
    """
    settings = settings or EvaluationSettings()
    if min(settings.neighbours, settings.feature_steps) < 1 or settings.resamples < 2 or not 0 < settings.level < 1:
        raise InputError(
            f"{settings}",
            "neighbours and feature_steps at least 1, resamples at least 2, level between 0 and 1",
            "mend the setting",
        )
    pool = open_pool(pool_dir, dataset_dir, num_samples)
    extractors = pretrained_extractors(weights_inception, weights_alexnet, weights_vgg)
    with_lpips = any(isinstance(extractor, AlexNetFeatures) for extractor in extractors)
    least = 31 if with_lpips else 11  # what AlexNet's pooling needs, and the window of SSIM
    if min(pool.shape[1:]) < least:
        raise InputError(
            f"slices of {pool.shape[1]} x {pool.shape[2]} pixels",
            f"at least {least} a side" + (" (AlexNet)" if with_lpips else " (the window of SSIM)"),
            "sample at a larger size" + (", or go without AlexNet's weights" if with_lpips else ""),
        )
    measures: dict[str, PairMeasure] = {"psnr": psnr, "ssim": ssim}
    if with_lpips:
        measures["lpips"] = LearnedPerceptualDistance(weights_alexnet)
    bars = _Progress(progress)
    sets = [read_samples(pool, bars.track), read_cases(pool, "training", pool.training, bars.track)]
    if pool.held_out:
        sets.append(read_cases(pool, "held-out", pool.held_out, bars.track))
    own = _own_extractor(sets[1], pool, settings, bars)
    extractors.insert(0, own)
    measures["perceptual"] = PerceptualDistance(own)
    for extractor in extractors:
        for items in sets:
            if len(items.images):
                title = f"{extractor.name.split('(')[0]} of {items.name}"
                batches = bars.track(items.images.split(IMAGES), title, -(-len(items.images) // IMAGES))
                items.pooled[extractor.name] = pooled_features(extractor, batches)
    comparisons = _comparisons(sets, settings.seed)
    figures = [f for c in comparisons for f in _figures(c, pool, measures, extractors, settings, bars)]
    return _record(pool, comparisons, figures, extractors, settings), _components(sets, own.name)


def _own_extractor(training: ItemSet, pool: OpenedPool, settings: EvaluationSettings, bars: _Progress):
    masks = mask_channels(training, pool.description)
    with bars.count("own extractor", settings.feature_steps) as advance:
        return train_segmentation_features(
            training.images, masks, steps=settings.feature_steps, seed=EXTRACTOR_SEED, progress=lambda *_: advance(1)
        )


def _comparisons(sets: list[ItemSet], seed: int) -> list[Comparison]:
    """Who is compared with whom; the ceiling and its companion of equal n only where cases are held out."""
    synthetic, training = sets[:2]
    found = [Comparison("synthetic vs training", synthetic, training, "the pool against what its generator saw")]
    if len(sets) == 2:
        return found
    held_out = sets[2]
    ceiling = "real against real: what a perfect generator would reach with as many items"
    found.append(Comparison("held-out vs training", held_out, training, ceiling))
    wanted = len(held_out.masks)
    if wanted <= len(synthetic.ids):  # the figures of fewer samples than held-out items do not compare with theirs
        chosen = np.sort(np.random.default_rng(seed).permutation(len(synthetic.ids))[:wanted])
        matched = "a random part of the pool of the held-out cases' size, to compare with the ceiling"
        found.append(Comparison("synthetic (n of held-out) vs training", synthetic.subset(chosen), training, matched))
    unseen = "the pool against cases that its generator never saw; copies of training cases gain nothing here"
    return [*found, Comparison("synthetic vs held-out", synthetic, held_out, unseen)]


def _figures(
    comparison: Comparison,
    pool: OpenedPool,
    measures: dict[str, PairMeasure],
    extractors: list[FeatureExtractor],
    settings: EvaluationSettings,
    bars: _Progress,
) -> Iterator[dict[str, Any]]:
    candidates, reference = comparison.candidates, comparison.reference
    bootstrap = Bootstrap(settings.resamples, settings.seed, settings.level)

    def figure(metric: str, values: np.ndarray, of: str, pairing: str, n: tuple[int, int], **more) -> dict[str, Any]:
        groups = [len(candidates.ids), len(reference.ids)]
        words = [of, pairing, *filter(None, [more.pop("qualifier", "")]), f"n={n[0]}/{n[1]}"]
        return {
            "name": f"{metric}[{','.join(words)}]",
            "metric": metric,
            "comparison": comparison.key,
            "of": of,
            "pairing": pairing,
            "n": list(n),
            "groups": groups,
            "unit": "",
            "better": "higher" if metric in HIGHER_IS_BETTER else "lower",
            **bootstrap.summary(values, min(groups), BOUNDS.get(metric, (0.0, np.inf))),
            **more,
        }

    if len(candidates.images):
        wc, wr = bootstrap.weights(candidates.slice_groups, 0), bootstrap.weights(reference.slice_groups, 1)
        n = (len(candidates.images), len(reference.images))
        yield from _paired_figures(candidates, reference, wc, wr, measures, settings, bars, figure, n)
        for extractor in extractors:
            title = f"{extractor.name.split('(')[0]}, {comparison.key}"
            with bars.count(title, len(wc) + 2 * (2 * n[0] + n[1])) as advance:
                yield from _feature_figures(
                    candidates.pooled[extractor.name], reference.pooled[extractor.name], wc, wr, extractor.name,
                    settings, figure, advance,
                )  # fmt: skip
    wc, wr = bootstrap.weights(candidates.mask_groups, 0), bootstrap.weights(reference.mask_groups, 1)
    n = (len(candidates.masks), len(reference.masks))
    kind = "slices" if pool.dimension == 2 else "volumes"
    with bars.count(f"masks, {comparison.key}", 1 + len(candidates.tumours)) as advance:
        divergences = mask_divergences(candidates.masks, reference.masks, pool.classes, wc, wr)
        advance(1)
        classes = f"classes={'|'.join(map(str, pool.classes))}"
        yield figure(
            "jsd", divergences["jsd"], f"mask-{kind}", "unpaired", n, qualifier=f"per-pixel,{classes}", unit="nats"
        )
        qualifier = f"per-pixel,KL(reference||candidates),smoothing={SMOOTHING:g},{classes}"
        yield figure("kld", divergences["kld"], f"mask-{kind}", "unpaired", n, qualifier=qualifier, unit="nats")
        for name, values in candidates.tumours.items():
            distances = feature_distance(values, reference.tumours[name], wc, wr)
            advance(1)
            unit = feature_unit(name, pool.dimension)
            used = (_not_empty(values), _not_empty(reference.tumours[name]))
            yield figure(
                f"wasserstein-{name}", distances, f"mask-{kind}", "unpaired", used, qualifier="not-empty", unit=unit
            )
        share = empty_share(values, wc)
        yield figure("empty-masks", share, f"mask-{kind}", "unpaired", n)


def _not_empty(values: np.ndarray) -> int:
    return int((~np.isnan(values)).sum())


def _paired_figures(
    candidates: ItemSet, reference: ItemSet, wc: np.ndarray, wr: np.ndarray, measures: dict[str, PairMeasure],
    settings: EvaluationSettings, bars: _Progress, figure: Callable[..., dict], n: tuple[int, int],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    partner = random_items(*n, settings.seed)
    names = ("nearest-by-mse", "random-pairs")
    sums = {(metric, pairing): np.zeros((2, len(wc))) for metric in measures for pairing in names}  # values, weights
    identical = dict.fromkeys(names, 0)
    with bars.count(f"image pairs, {candidates.name} vs {reference.name}", n[0]) as advance:
        for rows in parts(n[0], min(PAIRS // n[1], 1024)):
            images, by_chance = candidates.images[rows], partner[None, rows]
            distances = mean_squared_differences(images, reference.images)
            nearest = nearest_items(distances, reference.slice_groups, wr)
            drawn = in_doubles(wc[:, rows])
            for pairing, chosen, weights in (
                ("nearest-by-mse", nearest, drawn),
                ("random-pairs", by_chance, drawn * wr[:, partner[rows]]),
            ):
                for metric, measure in measures.items():
                    values = pair_values(measure, images, reference.images, chosen)
                    sums[metric, pairing] += (values * weights).sum(axis=1), weights.sum(axis=1)
                    if metric == "psnr":
                        identical[pairing] += int((values[0] >= HIGHEST_PSNR).sum())
            advance(len(images))
    for (metric, pairing), (total, weight) in sums.items():
        of, unit = getattr(measures[metric], "name", "pixels"), "dB" if metric == "psnr" else ""
        more: dict[str, Any] = {"unit": unit, "qualifier": DATA_RANGE}
        if metric == "psnr":  # in the name, because a mean with copies in it depends on the bound
            more["qualifier"] += f",at-most-{HIGHEST_PSNR:g}"
            more["identical_pairs"] = identical[pairing]
        values = np.divide(total, weight, out=np.full(len(wc), np.nan), where=weight > 0)
        yield figure(metric, values, of, pairing, n, **more)


def _feature_figures(
    candidates: np.ndarray, reference: np.ndarray, wc: np.ndarray, wr: np.ndarray, of: str,
    settings: EvaluationSettings, figure: Callable[..., dict], advance: Callable[[int], None],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    n, size = (len(candidates), len(reference)), candidates.shape[1]
    singular = (
        f"{min(n)} items for {size} features: a covariance of theirs is singular, and FID is biased upwards"
        if min(n) <= size
        else None
    )
    if singular:
        logger.warning("fid of %s: %s", of, singular)
    fid = frechet_distance(candidates, reference, wc, wr, advance)
    yield figure("fid", fid, of, "unpaired", n, qualifier=DATA_RANGE, features=size, warning=singular)
    kid = kernel_distance(candidates, reference, wc, wr, advance)
    subsets = kernel_distance_subsets(candidates, reference, seed=settings.seed) if min(n) > 1 else None
    yield figure("kid", kid, of, "unpaired", n, qualifier=f"unbiased,{DATA_RANGE}", features=size, over_subsets=subsets)
    k = settings.neighbours
    if min(n) <= k:
        missing = f"{min(n)} items on one side, not more than k = {k}"
        nothing = np.full(len(wc), np.nan)
        found = dict.fromkeys(("precision", "recall", "density", "coverage"), nothing)
    else:
        missing, found = None, prdc(candidates, reference, wc, wr, k, advance)
    for metric, values in found.items():
        yield figure(metric, values, of, "unpaired", n, qualifier=f"k={k},{DATA_RANGE}", features=size, warning=missing)


def _components(sets: list[ItemSet], extractor: str) -> dict[str, np.ndarray]:
    """First two principal components of the training slices' features, and every set in them."""
    training = in_doubles(sets[1].pooled[extractor])
    centre, spread = training.mean(axis=0), training.std(axis=0) + 1e-12
    axes = np.linalg.svd((training - centre) / spread, full_matrices=False)[2][:2]
    turn = axes.T / spread[:, None]
    pooled = {s.name: s.pooled[extractor] for s in sets if extractor in s.pooled}
    return {name: in_doubles(found) @ turn - centre @ turn for name, found in pooled.items()}


def _record(
    pool: OpenedPool, comparisons: list[Comparison], figures: list[dict[str, Any]],
    extractors: list[FeatureExtractor], settings: EvaluationSettings,
) -> dict[str, Any]:  # fmt: skip
    provenance, scaling = pool.record["provenance"], pool.record["provenance"]["scaling"]
    notes = [
        "Figures with other n, extractor, pairing or data range do not compare. FID, KID and the distances of the "
        "project's own extractor are not on the scale of the published ones, which are of Inception and AlexNet.",
        "PSNR and SSIM reward blur: a blurred slice is nearer to the nearest real one than another patient's is.",
        "Intervals cover the choice of patients and samples, not another training of the generator; with fewer than "
        "some twenty patients they are too short.",
        "A pool that copies its training cases may look better than the ceiling: read it beside the audit.",
    ]
    if word := user_word(pool.record):
        said = ", of fold 0, which it did not see" if provenance["adopted"]["saw"] == "none" else ""
        notes.insert(0, f'{word} Its "training" cases here are {len(pool.training)}{said}.')
    if not pool.held_out:
        notes.append("The generator saw every case: there is no ceiling.")
    in_loss = str(provenance.get("training", {}).get("feature_extractor", ""))
    if shared := [e.name for e in extractors if e.name == in_loss or in_loss.split("(")[0] == e.name.split("(")[0]]:
        same = shared[0] == in_loss
        notes.append(
            f"The generator was trained with the features of {in_loss}: figures of {shared[0]}"
            + (" favour it." if same else ", which is of the same kind, may favour it.")
        )
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "pool": {
            "name": pool.folder.resolve().name,
            "dimension": pool.dimension,
            "bundle": provenance["bundle"],
            "weights_sha256": provenance.get("weights_sha256"),
            "sampling_seed": pool.record["sampling"].get("seed"),
            "samples": len(pool.record["samples"]),
            "evaluated": len(pool.kept),
            "dropped": sum(s.get("decision", "keep") != "keep" for s in pool.record["samples"]),
            "audited": any("audit" in s.get("scores", {}) for s in pool.record["samples"]),
        },
        "dataset": pool.description.name,
        "fold": provenance["fold"],
        "training_cases": pool.training,
        "held_out_cases": pool.held_out,
        "data_range": {
            "scaled": [0.0, 1.0],
            "low": scaling["low"],
            "high": scaling["high"],
            "per_case": scaling["per_case"],
            "meaning": "0 and 1 are these intensities of the pool's space, fixed for all images; beyond, clipped"
            + ("; each real case is scaled by its own percentiles instead" if scaling["per_case"] else ""),
        },
        "settings": {**asdict(settings), "extractor_seed": EXTRACTOR_SEED, "smoothing": SMOOTHING},
        "extractors": [extractor.name for extractor in extractors],
        "comparisons": [
            {"key": c.key, "meaning": c.meaning, "groups": [len(c.candidates.ids), len(c.reference.ids)]}
            for c in comparisons
        ],
        "intervals": f"{100 * settings.level:g} % bootstrap, {settings.resamples} resamples, seed {settings.seed}: "
        "real cases drawn by patient, synthetic ones by sample, moved onto the figure by `shift`",
        "figures": figures,
        "notes": notes,
        "code_revision": code_revision(),
        "packages": {**package_versions(), **versions},
    }


class _Progress:
    """Bars with the time left, or none."""

    def __init__(self, show: bool):
        self._hidden = not show

    def track(self, items: Iterable, title: str, total: int | None = None) -> Iterable:
        return tqdm(items, desc=title, total=total, disable=self._hidden, leave=False)

    @contextmanager
    def count(self, title: str, total: int) -> Iterator[Callable[[int], Any]]:
        """A bar whose context is the function that advances it."""
        with tqdm(total=total, desc=title, disable=self._hidden, leave=False) as shown:
            yield shown.update
