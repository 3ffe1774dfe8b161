"""What a conditional generator is asked for: nine numbers that describe the tumour (Kebaili et al. 2024b, section 2.3).

What a user leaves open is drawn from a smoothed joint of what the training masks measured, never number by number: a
large volume in a small box is nothing that a mask can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from ..runtime.errors import InputError, nearest
from .mask_features import mask_features
from .training_set import TrainingSet

# Columns of each feature; three of them are depth, height, width. Millimetres, squared or cubed.
FEATURES = {
    "volume": slice(0, 1), "surface_area": slice(1, 2), "sphericity": slice(2, 3), "centre": slice(3, 6),
    "extent": slice(6, 9),
}  # fmt: skip
NUM_FEATURES = 9
UNITS = {"volume": " mm³", "surface_area": " mm²", "sphericity": "", "centre": " mm", "extent": " mm"}
SWEEP = ("feature", "start", "stop", "steps")
# All but the place on a log scale: tumours differ by factors, and there the relation of volume, surface and
# sphericity, log(sphericity) = _BALL + 2/3 log(volume) - log(surface), is linear.
_LOG = np.array([True] * 3 + [False] * 3 + [True] * 3)
_BALL = math.log(math.pi ** (1 / 3) * 6 ** (2 / 3))

BANDWIDTH = 0.4  # of a kernel, as a share of the training cases' own spread
RIDGE = 0.1  # share of a kernel's variance without correlation: few cases seem to tie features that are not tied
MARGIN = 0.1  # how far beyond the training range a request may go, as a share of the range
TRIES, _BLOCK = 20_000, 500


class Sweep(NamedTuple):
    """A feature and its values `(steps, 1)`, or `(steps, 3)` of a centre or extent, even on the feature's scale."""

    feature: str
    values: np.ndarray

    @property
    def middle(self) -> np.ndarray:
        """Halfway between the ends, on the feature's scale."""
        first, last = self.values[0], self.values[-1]
        return (first + last) / 2 if self.feature == "centre" else np.sqrt(first * last)


class Request(NamedTuple):
    """A condition that was checked; `given` is `(9,)` with NaN where it is open."""

    condition: Mapping | None
    given: np.ndarray
    sweep: Sweep | None


def to_vector(features: Mapping) -> np.ndarray:
    """Features as `mask_features` names them, all or some, to `(9,)` with NaN for what is not there."""
    vector = np.full(NUM_FEATURES, np.nan)
    for name, columns in FEATURES.items():
        if name in features:
            vector[columns] = features[name]
    return vector


def to_features(vector: np.ndarray) -> dict:
    """The opposite of `to_vector`, for a whole vector."""
    values = {name: [float(value) for value in vector[columns]] for name, columns in FEATURES.items()}
    return {name: value if len(value) > 1 else value[0] for name, value in values.items()}


@dataclass(frozen=True)
class ConditionModel:
    """The conditions of the training cases, and requests like them.

    Volume, surface area, sphericity and extent are scaled on a log scale, the centre as it is, each so that the
    training cases span [0, 1]. New requests come from a mixture of Gaussian kernels in that scaled space, one at each
    training case, whose covariance is `BANDWIDTH`^2 times that of the training cases. A kernel reaches beyond the
    training range and beyond what a mask can be; it is cut off there and keeps its weight, or else cases at an edge
    would count less, and sizes and correlations shrink.

    Attributes:
        table: `(cases, 9)` features in millimetres, in the order of the training set. A case without foreground has
            none and is a row of NaN: it is trained on with the null embedding.
        field_of_view: `(3,)` millimetres of a sample along depth, height, width.
    """

    table: np.ndarray
    field_of_view: np.ndarray

    @classmethod
    def fit(cls, data: TrainingSet) -> ConditionModel:
        """Measure the training masks as samples are measured: back from the grid, at the cases' spacing.

        Those of warped copies, too: they are learnt from, and may be asked for.

        Raises:
            InputError: the data are slices, or no case has foreground.
        """
        if len(data.geometry.spatial_size) != 3:
            raise InputError("slices", "volumes: their masks have nine features", "set spatial_size to [H, W, D]")
        description, spacing = data.cases.description, data.cases.spacing
        masks = (data.geometry.from_grid(item["image"][None, data.num_image_channels :])[0] for item in data.training)
        labels = (description.to_label_map(mask.numpy()) for mask in masks)
        foreground = [np.any(description.to_channels(label), axis=0) for label in labels]
        features = [mask_features(mask, spacing) if mask.any() else {} for mask in foreground]
        if not any(features):
            raise InputError(
                f"{len(features)} training cases, none with foreground", "annotated cases", "check the labels"
            )
        return cls(np.array([to_vector(row) for row in features]), np.multiply(foreground[0].shape, spacing))

    def as_record(self) -> dict:
        """The fields that the provenance stores."""
        rows = [None if np.isnan(row).any() else to_features(row) for row in self.table]
        return {"cases": rows, "field_of_view": self.field_of_view.tolist()}

    @classmethod
    def from_record(cls, record: dict) -> ConditionModel:
        """The model that `as_record` stored."""
        return cls(np.array([to_vector(row or {}) for row in record["cases"]]), np.array(record["field_of_view"]))

    def scale(self, features: Mapping) -> np.ndarray:
        """Features to `(9,)`: 0 and 1 are the least and the largest of the training cases, NaN is not given."""
        return self._scaled(to_vector(features))

    def unscale(self, scaled: np.ndarray) -> np.ndarray:
        """Scaled `(..., 9)` back to millimetres."""
        return _from_log(scaled * self._width + self._low)

    def training_conditions(self) -> torch.Tensor:
        """Scaled conditions `(cases, 9)` in the order of the training set; NaN for a case without foreground."""
        return torch.tensor(self._scaled(self.table), dtype=torch.float32)

    def check(self, condition: Any) -> None:
        """Raise `InputError` for a condition that cannot be asked for; says what can."""
        self._draw(np.random.default_rng(0), self._parse(condition))

    def draw(self, rng: np.random.Generator, given: Mapping | None = None) -> dict:
        """Features like those of the training cases, given some of them.

        The exact conditional of the mixture: a kernel by the density that it gives to what is given, then the rest
        from that kernel. What lies outside the training range or cannot be a mask is drawn again.

        Args:
            rng: where the randomness comes from.
            given: some of the features in millimetres, which come back as they are.

        Raises:
            InputError: `given` cannot be used, or nothing goes with it.
        """
        return to_features(self._draw(rng, self._parse(given))[0])

    def for_candidate(self, condition: Mapping | None, seed: int, index: int) -> tuple[dict, int]:
        """What candidate `index` of a pool is asked for, and the index that its noise is drawn with.

        A function of (condition, seed, index) alone. In a sweep of n steps candidate i has step i % n; the steps of
        group i // n share the noise and everything that the sweep does not change. With the volume the same shape
        grows: extent and surface follow unless they were given, centre and sphericity stay.
        """
        request = self._parse(condition)
        group, step = divmod(index, 1 if request.sweep is None else len(request.sweep.values))
        rng = np.random.default_rng(np.random.SeedSequence([seed, group], spawn_key=(1,)))
        features = to_features(self._draw(rng, request)[step])
        if request.sweep is not None:
            features["sweep"] = {"feature": request.sweep.feature, "step": step, "group": group}
        return features, group

    @cached_property
    def _known(self) -> np.ndarray:
        """Transformed features of the cases that have them."""
        return _to_log(self.table[~np.isnan(self.table).any(axis=1)])

    @cached_property
    def _low(self) -> np.ndarray:
        return self._known.min(axis=0)

    @cached_property
    def _width(self) -> np.ndarray:
        width = np.ptp(self._known, axis=0)
        return np.where(width > 0, width, 1.0)

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return (_to_log(x) - self._low) / self._width

    def _draw(self, rng: np.random.Generator, request: Request) -> np.ndarray:
        """Features of one sample `(1, 9)`, or of one group of a sweep `(steps, 9)`."""
        anchor = request.given.copy()
        if request.sweep is not None:
            anchor[FEATURES[request.sweep.feature]] = request.sweep.middle
        for _ in range(TRIES // _BLOCK):
            steps = self._steps(self._mixture(rng, anchor), request)
            margin = 0.0 if request.sweep is None else MARGIN
            good = self._good(steps, ~np.isnan(request.given), margin).all(axis=1)
            if good.any():
                return steps[good.argmax()]
        raise InputError(
            f"condition {request.condition}, with which no mask inside the training range went in {TRIES} draws",
            "features that go together",
            "ask for fewer of them, or narrow the sweep",
        )

    def _mixture(self, rng: np.random.Generator, given: np.ndarray) -> np.ndarray:
        """`_BLOCK` draws of the mixture given some features, `(_BLOCK, 9)` in millimetres, unchecked."""
        centres, covariance = self._centres, self._covariance
        known, free = ~np.isnan(given), np.isnan(given)
        off = (self._scaled(given) - centres)[:, known]
        gain = np.linalg.solve(covariance[np.ix_(known, known)], covariance[np.ix_(known, free)])
        distance = (off * np.linalg.solve(covariance[np.ix_(known, known)], off.T).T).sum(axis=1)
        rest = covariance[np.ix_(free, free)] - covariance[np.ix_(free, known)] @ gain
        kernel = rng.choice(len(centres), _BLOCK, p=softmax(-distance / 2 - self._log_kept))
        noise = rng.standard_normal((_BLOCK, free.sum())) @ np.linalg.cholesky(rest).T
        drawn = np.zeros((_BLOCK, NUM_FEATURES))
        drawn[:, free] = centres[kernel][:, free] + off[kernel] @ gain + noise
        return self._finish(drawn, given)

    def _finish(self, scaled: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Scaled draws `(..., 9)` in millimetres, with what is given and what never varied as it is."""
        scaled[..., np.ptp(self._known, axis=0) == 0] = 0
        return _agree(np.where(np.isnan(given), self.unscale(scaled), given), ~np.isnan(given))

    @cached_property
    def _centres(self) -> np.ndarray:
        return (self._known - self._low) / self._width

    @cached_property
    def _covariance(self) -> np.ndarray:
        """Of a kernel."""
        spread = np.cov(self._centres.T) if len(self._centres) > 1 else np.zeros((NUM_FEATURES, NUM_FEATURES))
        own = np.diag(np.diag(spread))
        return BANDWIDTH**2 * ((1 - RIDGE) * spread + RIDGE * own + 1e-6 * np.eye(NUM_FEATURES))

    @cached_property
    def _log_kept(self) -> np.ndarray:
        """Logarithm of the share of each kernel that is not cut off, by draws of a fixed seed."""
        noise = np.random.default_rng(0).standard_normal((2 * _BLOCK, NUM_FEATURES))
        noise, nothing = noise @ np.linalg.cholesky(self._covariance).T, np.full(NUM_FEATURES, np.nan)
        kept = [
            self._good(self._finish(centre + noise, nothing), np.isfinite(nothing), 0.0) for centre in self._centres
        ]
        return np.log(np.maximum(np.mean(kept, axis=1), 1 / len(noise)))

    def _good(self, x: np.ndarray, given: np.ndarray, margin: float) -> np.ndarray:
        """Whether `(..., 9)` is a mask's and, but for what was given, inside the training range and a margin."""
        scaled = self._scaled(x)
        inside = (scaled >= -margin - 1e-9) & (scaled <= 1 + margin + 1e-9)
        return (inside | given).all(axis=-1) & self._possible(x)

    @staticmethod
    def _steps(drawn: np.ndarray, request: Request) -> np.ndarray:
        """Draws `(n, 9)` to the steps of their sweeps `(n, steps, 9)`; one step without a sweep."""
        if request.sweep is None:
            return drawn[:, None]
        feature, values = request.sweep
        fixed = ~np.isnan(request.given) | _columns(feature)
        steps = np.repeat(drawn[:, None], len(values), axis=1)
        steps[..., FEATURES[feature]] = values
        steps = _agree(steps, fixed)
        growth = np.cbrt(steps[..., :1] / drawn[:, None, :1])
        return np.where(fixed | ~_columns("extent"), steps, steps * growth)

    def _possible(self, x: np.ndarray) -> np.ndarray:
        """Whether masks can have the features `(..., 9)`; what is NaN is not looked at."""
        centre, extent = x[..., FEATURES["centre"]], x[..., FEATURES["extent"]]
        # An uneven mask beside the border reaches beyond its box around the centre of mass: as far as the training's.
        known = _from_log(self._known)
        allowed = np.maximum(0, self._overhang(known[:, FEATURES["centre"]], known[:, FEATURES["extent"]]).max(axis=0))
        return (
            ~(x[..., 0] > extent.prod(axis=-1) * 1.001)
            & ~(x[..., 2] > max(1.0, np.exp(self._known[:, 2].max())) * 1.001)  # above 1 for a few voxels
            & ~(self._overhang(centre, extent) > allowed + 1e-6).any(axis=-1)
        )

    def _overhang(self, centre: np.ndarray, extent: np.ndarray) -> np.ndarray:
        return np.maximum(extent / 2 - centre, centre + extent / 2 - self.field_of_view)

    def _parse(self, condition: Any) -> Request:
        if not isinstance(condition or {}, Mapping):
            raise InputError(
                f"condition {condition!r}, which is no JSON object",
                """such as '{"volume": 5000, "centre": [40, 90, 100]}'""",
                "mend the quotes and brackets of --condition",
            )
        content = dict(condition or {})
        sweep = content.pop("sweep", None)
        _check_names(content, (*FEATURES, "sweep"), "condition")
        given = to_vector({name: self._checked(name, value) for name, value in content.items()})
        if np.isnan(given[:3]).sum() == 1:
            given = _agree(given, ~np.isnan(given))
            for name in ("volume", "surface_area", "sphericity"):
                self._checked(name, float(given[FEATURES[name]][0]), f"{name} (as the other two say)")
        agreed = _agree(given, ~np.isnan(given) & ~_columns("sphericity"))
        if not np.isnan(agreed[:3]).any() and abs(agreed[2] / given[2] - 1) > 0.02:
            raise InputError(
                f"sphericity {given[2]:.4g} with this volume and surface area",
                f"{agreed[2]:.4g}, which follows from them",
                "leave one of the three out",
            )
        if not self._possible(given):
            raise InputError(
                f"condition {condition}, which no mask can have",
                f"a volume below the product of the extents, a sphericity up to 1, centre +- extent / 2 inside "
                f"{_words(self.field_of_view)} mm",
                "mend the condition",
            )
        swept = None if sweep is None else self._parse_sweep(sweep)
        if swept is not None and not np.isnan(given[FEATURES[swept.feature]]).any():
            raise InputError(
                f"condition {condition}: {swept.feature} is both swept and given (or it follows from what is given)",
                "one of the two",
                "leave one out",
            )
        return Request(condition, given, swept)

    def _parse_sweep(self, sweep: Any) -> Sweep:
        if not isinstance(sweep, Mapping) or not set(SWEEP) <= set(sweep):
            example = """{"feature": "volume", "start": 1000, "stop": 9000, "steps": 6}"""
            raise InputError(f"sweep {sweep}", example, "give all four")
        _check_names(sweep, SWEEP, "sweep")
        feature, steps = sweep["feature"], sweep["steps"]
        _check_names([feature], tuple(FEATURES), "feature of a sweep")
        if not isinstance(steps, int) or isinstance(steps, bool) or not 2 <= steps <= 1000:
            raise InputError(f"sweep of {steps} steps", "a whole number from 2 to 1000", "set steps")
        columns = FEATURES[feature]
        start, stop = (
            to_vector({feature: self._checked(feature, sweep[end], f"{end} of the sweep")}) for end in ("start", "stop")
        )
        values = _from_log(np.linspace(_to_log(start), _to_log(stop), steps))
        values[0], values[-1] = start, stop  # to the last digit
        return Sweep(feature, values[:, columns])

    def _checked(self, name: str, value: Any, called: str | None = None) -> Any:
        """The value, if it is of the right length and within the training range and its margin."""
        columns = FEATURES[name]
        length = columns.stop - columns.start
        numbers = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(numbers) != length or not all(isinstance(n, Real) and not isinstance(n, bool) for n in numbers):
            allowed = "one number" if length == 1 else "three numbers: depth, height, width"
            raise InputError(f"{called or name} {value!r}", f"{allowed}, in{UNITS[name] or ' no unit'}", "mend it")
        reach = MARGIN * np.ptp(self._known, axis=0) + 1e-6 * self._width
        low, high = (_from_log(edge)[columns] for edge in (self._low - reach, self._known.max(axis=0) + reach))
        if not np.all((low <= numbers) & (numbers <= high)):
            raise InputError(
                f"{called or name} {value}{UNITS[name]}",
                f"{_words(low)} to {_words(high)}{UNITS[name]}: what the training masks had, and a tenth of the range "
                "more at either end",
                "ask for something that the generator has seen",
            )
        return value


def _to_log(x: np.ndarray) -> np.ndarray:
    return np.where(_LOG, np.log(np.where(_LOG, x, 1.0)), x)


def _from_log(x: np.ndarray) -> np.ndarray:
    return np.where(_LOG, np.exp(np.where(_LOG, x, 0.0)), x)


def _columns(name: str) -> np.ndarray:
    """Mask `(9,)` of a feature's columns."""
    return np.isin(np.arange(NUM_FEATURES), np.arange(NUM_FEATURES)[FEATURES[name]])


def _agree(x: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Make volume, surface and sphericity of `(..., 9)` agree, by one that is not `fixed`; as they are if all are."""
    volume, surface, sphericity = (np.log(x[..., i]) for i in range(3))
    result = x.copy()
    if not fixed[1]:
        result[..., 1] = np.exp(_BALL + 2 / 3 * volume - sphericity)
    elif not fixed[2]:
        result[..., 2] = np.exp(_BALL + 2 / 3 * volume - surface)
    elif not fixed[0]:
        result[..., 0] = np.exp(1.5 * (sphericity + surface - _BALL))
    return result


def _check_names(names: Any, known: tuple[str, ...], called: str) -> None:
    for name in names:
        if name not in known:
            near = nearest(name, known)
            remedy = f"did you mean {near!r}?" if near else "see the bundle's docs"
            raise InputError(f"{called} {name!r}", ", ".join(known), remedy)


def _words(values: np.ndarray) -> str:
    words = ", ".join(f"{value:.4g}" for value in values)
    return words if len(values) == 1 else f"[{words}]"
