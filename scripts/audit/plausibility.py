"""Whether masks and images are like those of the training cases: pieces, body, size, shape, place, intensities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from ..data.mask_features import mask_features
from ..data.scaling import MASK_MARGIN
from .items import AuditData, Items, Track
from .thresholds import Check

# How wide a feature spreads on either side of its median: to these quantiles, so that skewed ones are judged fairly.
SIDES = (0.05, 0.95)
AXES = ("height", "width", "depth")
SMALLEST_PART = 0.1  # of the body's largest part; smaller ones are noise in the background

# Of the reference (items, features) and of others (items, features): their scores (items,), and which feature it was.
Judge = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def plausibility_checks(audit: AuditData, levels: dict[str, float], track: Track) -> list[Check]:
    """All checks of this module. A mask without foreground has no scores: it is dropped for that."""
    body = Body.fit(audit)
    real = _measure(audit.real, audit.spacing, body, track, "measuring real masks")
    samples = _measure(audit.samples, audit.spacing, body, track, "measuring masks of samples")
    training = ~audit.held_out & audit.judged
    mask_names = _mask_names(len(audit.spacing))
    image_names = [
        f"{name} of {channel}"
        for name in ("mean", "spread")
        for channel in audit.data.cases.description.channel_names.values()
    ]

    def check(
        key: str, words: str, low: bool, of_real: np.ndarray, of_samples: np.ndarray, notes: list[str] | None = None
    ) -> Check:
        return Check(
            key, words, low, levels[key], of_real, of_samples, audit.real.groups, audit.held_out, notes=notes or []
        )

    def judged(key: str, words: str, table: str, judge: Judge, names: list[str]) -> Check:
        scores = np.where(audit.judged[:, None], real[table], np.nan)
        of_real, of_samples, which = _judge(judge, scores, samples[table], audit.real.groups, training)
        return check(key, words, False, of_real, of_samples, [names[i] for i in which] if names else None)

    return [
        check("fragments", "pieces of the mask:", False, real["pieces"], samples["pieces"]),
        check(
            "largest_fragment", "share of the mask's largest piece:", True, real["largest"], samples["largest"]
        ),
        check("outside_body", "share of the mask outside the body:", False, real["outside"], samples["outside"]),
        judged(
            "mask_range", "mask out of range, in spreads from the median:", "mask", range_scores, mask_names
        ),
        judged(
            "mask_joint", "mask's size, shape and place together, Mahalanobis distance:", "mask", joint_scores, []
        ),
        judged(
            "image_range", "image out of range, in spreads from the median:", "image", range_scores, image_names
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Body:
    """Where an image is not background.

    In a masked space, where it is not 0. Elsewhere above the background's peak in the histogram of all training
    items (the triangle method, Zack et al. 1977), in any channel, closed and without holes. An image without
    background gives a body that means nothing, and then real masks leave it too, so that no sample is dropped for it.

    Attributes:
        thresholds: of each channel, in [0, 1].
    """

    thresholds: np.ndarray

    @classmethod
    def fit(cls, audit: AuditData) -> Body:
        """Thresholds for the audit's images."""
        from skimage.filters import threshold_triangle

        channels = audit.real.images[~audit.held_out].float().swapaxes(0, 1).flatten(1).numpy()
        if audit.data.scaling.masked:
            return cls(np.full(len(channels), MASK_MARGIN / 2))
        return cls(np.array([threshold_triangle(channel) for channel in channels]))

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Body (*grid) bool of an image (channels, *grid); of a part the foreground of `mask` (*grid) counts nothing.

        So a bright lesion in the background is no body of its own, unless there is nothing else.
        """
        found = (image > self.thresholds.reshape(-1, *[1] * (image.ndim - 1))).any(axis=0)
        radius = max(1, round(max(found.shape) / 32))
        # The border is padded with itself: a body that the image cuts is closed there.
        padded = ndimage.binary_closing(np.pad(found, radius, mode="edge"), iterations=radius)
        closed = ndimage.binary_fill_holes(padded[(slice(radius, -radius),) * found.ndim])
        parts, _ = ndimage.label(closed)
        own = np.bincount(parts[~mask], minlength=parts.max() + 1) if mask is not None else np.zeros(1, int)
        sizes = own if own[1:].any() else np.bincount(parts.ravel())
        sizes[0] = 0
        return (sizes >= SMALLEST_PART * sizes.max())[parts] & closed


def _measure(items: Items, spacing: tuple[float, ...], body: Body, track: Track, title: str) -> dict[str, np.ndarray]:
    foreground = items.foreground
    rows = [_measure_one(items.images[i], foreground[i], spacing, body) for i in track(list(range(len(items))), title)]
    return {key: np.array([row[key] for row in rows], float) for key in rows[0]}


def _measure_one(image: Tensor, foreground: Tensor, spacing: tuple[float, ...], body: Body) -> dict:
    x, mask = image.float().numpy(), foreground.numpy()
    flat = x.reshape(len(x), -1)
    found = {"image": np.concatenate([flat.mean(axis=1), flat.std(axis=1)])}
    if not mask.any():
        return {
            **found, "pieces": np.nan, "largest": np.nan, "outside": np.nan,
            "mask": np.full(len(_mask_names(mask.ndim)), np.nan),
        }  # fmt: skip
    parts, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    features = mask_features(mask, spacing)
    # Factors matter for sizes; the surface follows from volume and sphericity.
    sizes = np.log([features["volume"], features["sphericity"], *features["extent"]])
    return {
        **found,
        "pieces": count,
        "largest": np.bincount(parts.ravel())[1:].max() / mask.sum(),
        "outside": (mask & ~body(x, mask)).sum() / mask.sum(),
        "mask": np.concatenate([sizes, features["centre"]]),
    }


def _mask_names(dimension: int) -> list[str]:
    axes = AXES[:dimension]
    return ["volume" if dimension == 3 else "area", "sphericity" if dimension == 3 else "circularity",
            *(f"extent in {axis}" for axis in axes), *(f"place in {axis}" for axis in axes)]  # fmt: skip


def _judge(
    judge: Judge, real: np.ndarray, samples: np.ndarray, groups: np.ndarray, training: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of real items, each against the training cases of the other patients, of samples, and their features."""
    known = ~np.isnan(real).any(axis=1)
    of_real = np.full(len(real), np.nan)
    for group in np.unique(groups[known]):
        own = known & (groups == group)
        of_real[own] = judge(real[known & training & (groups != group)], real[own])[0]
    scores, which = np.full(len(samples), np.nan), np.zeros(len(samples), int)
    whole = ~np.isnan(samples).any(axis=1)
    if whole.any():
        scores[whole], which[whole] = judge(real[known & training], samples[whole])
    return of_real, scores, which


def range_scores(reference: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far (items,) the furthest of the features (items, features) is from the reference's median, and which.

    In units of the reference's distance from the median to its 5 % or 95 % quantile, on the item's side.
    """
    low, middle, high = np.quantile(reference, [SIDES[0], 0.5, SIDES[1]], axis=0)
    least = 0.1 * reference.std(axis=0) + 1e-6  # most items may share a value
    away = np.where(others > middle, (others - middle) / np.maximum(high - middle, least),
                    (middle - others) / np.maximum(middle - low, least))  # fmt: skip
    return away.max(axis=1), away.argmax(axis=1)


def joint_scores(reference: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mahalanobis distance (items,) from the reference, whose covariance is shrunk (Ledoit and Wolf 2004)."""
    from sklearn.covariance import LedoitWolf

    centre, spread = reference.mean(axis=0), reference.std(axis=0) + 1e-6
    fitted = LedoitWolf().fit((reference - centre) / spread)
    return np.sqrt(fitted.mahalanobis((others - centre) / spread)), np.zeros(len(others), int)
