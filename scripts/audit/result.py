"""What an audit found: decisions with their reasons, and the record of how they came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from nnunet_plugin.pool_format import AUDITED

from ..data.provenance import code_revision, package_versions
from .agreement import Agreement
from .duplicates import Duplicates
from .items import AuditData
from .memorisation import Memorisation
from .thresholds import Check, patient_interval, wilson_interval

FORMAT, FORMAT_VERSION = "synthaug-audit", 1
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
CLOSEST = 10


@dataclass(frozen=True)
class AuditResult:
    """All checks of a pool.

    Attributes:
        audit: what was compared.
        levels: of the checks.
        seed: of segmenters, extractor and intervals.
        plausibility: checks of masks and images.
        agreement, memorisation, duplicates: the others.
        extractor: the name of the feature extractor.
        usefulness: of `find_usefulness`; None where it was not asked for.
    """

    audit: AuditData
    levels: dict[str, float]
    seed: int
    plausibility: list[Check]
    agreement: Agreement
    memorisation: Memorisation
    duplicates: Duplicates
    extractor: str
    usefulness: dict[str, Any] | None = None

    @property
    def checks(self) -> list[Check]:
        """All checks, in the order of `LEVELS`."""
        others = [self.memorisation.unlike, self.agreement.check, *self.memorisation.checks, self.duplicates.check]
        return [*self.plausibility, *others]

    @property
    def names(self) -> list[str]:
        """Ids of the samples."""
        return self.audit.samples.names

    @cached_property
    def empty(self) -> np.ndarray:
        """Samples without any mask on the generator's grid: (samples,) bool."""
        return np.isin(self.names, list(self.audit.empty))

    @property
    def left_out(self) -> np.ndarray:
        """Samples that the pool drops so far: (samples,) bool."""
        return np.array([sample.get("decision", "keep") != "keep" for sample in self.audit.record["samples"]])

    @cached_property
    def foreign(self) -> np.ndarray:
        """Samples on which somebody else decided, be it to drop one without a word: (samples,) bool."""
        reasons = [str(sample.get("reason") or "") for sample in self.audit.record["samples"]]
        return (self.left_out | np.array([bool(x) for x in reasons])) & ~np.array(
            [x.startswith(AUDITED) for x in reasons]
        )

    @cached_property
    def reasons(self) -> list[list[str]]:
        """Why each sample is dropped; an empty list where it stays."""
        found: list[list[str]] = [[] for _ in self.names]
        for index, name in enumerate(self.names):
            found[index] += [reasons[name] for reasons in (self.audit.broken, self.audit.empty) if name in reasons]
        for check in self.checks:
            if check is not self.duplicates.check:
                for index in np.flatnonzero(check.flagged).tolist():
                    found[index].append(check.reason(index))
        for index, stays in self.duplicate_of.items():
            found[index].append(f"duplicate of {self.names[stays]}, {self.duplicates.check.reason(index)}")
        return found

    @cached_property
    def duplicate_of(self) -> dict[int, int]:
        """Duplicates among the samples that stay otherwise, each with the one that stays for it."""
        out = self.empty | np.array([name in self.audit.broken for name in self.names])
        out |= self.left_out & self.foreign
        for check in self.checks:
            if check is not self.duplicates.check:
                out |= check.flagged
        return self.duplicates.drop(~out)

    @cached_property
    def dropped(self) -> np.ndarray:
        """Which samples the audit drops, whatever others decided: (samples,) bool."""
        return np.array([bool(reasons) for reasons in self.reasons])

    @property
    def kept(self) -> np.ndarray:
        """Which samples train a segmenter after this audit: (samples,) bool."""
        return np.where(self.foreign, ~self.left_out, ~self.dropped)

    def flagged(self, check: Check) -> np.ndarray:
        """Samples that a check drops, (samples,) bool; of duplicates one stays."""
        if check is not self.duplicates.check:
            return check.flagged
        return np.isin(np.arange(len(self.names)), list(self.duplicate_of))

    def decide(self) -> list[dict]:
        """The pool's sample records with scores and decisions; what others decided stays."""
        samples = []
        for index, sample in enumerate(self.audit.record["samples"]):
            scores = {check.key: _rounded(check.samples[index]) for check in self.checks}
            new = {**sample, "scores": {**sample.get("scores", {}), "audit": scores}}
            if not self.foreign[index]:
                new["decision"] = "drop" if self.reasons[index] else "keep"
                new["reason"] = AUDITED + "; ".join(self.reasons[index]) if self.reasons[index] else None
            samples.append(new)
        return samples

    @cached_property
    def closest(self) -> list[int]:
        """The ten samples that are nearest to a training item, nearest first."""
        return [int(i) for i in np.argsort(self.memorisation.closeness, kind="stable")[:CLOSEST]]

    @cached_property
    def copies(self) -> np.ndarray:
        """Samples that are a copy by one comparison or more: (samples,) bool."""
        return np.any([check.flagged for check in self.memorisation.checks], axis=0)

    @property
    def real_copies(self) -> dict[str, Any]:
        """Real items that look as near to another patient, by thresholds of all other patients: chance alone."""
        flagged = np.any([check.real_flagged for check in self.memorisation.checks], axis=0)
        return self.real_share(flagged, self.audit.judged)

    def closest_real(self, count: int = 5) -> list[dict[str, Any]]:
        """The pairs of real patients that are nearest to each other: are they one person?"""
        real, training, groups = self.memorisation.real["pixels"], self.memorisation.training, self.audit.real.groups
        pairs: dict[tuple[str, str], dict[str, Any]] = {}
        for index in np.argsort(np.where(self.audit.judged, real.relative, np.inf), kind="stable").tolist():
            match = int(real.match[index])
            first, second = sorted((str(groups[index]), str(training.groups[match])))
            items = [self.audit.real.names[index], training.names[match]]
            pairs.setdefault((first, second), {"items": items, "relative_distance": _rounded(real.relative[index])})
            if len(pairs) == count:
                break
        return [{"patients": list(patients), **found} for patients, found in pairs.items()]

    def share(self, flagged: np.ndarray) -> dict[str, Any]:
        """Count, share and Wilson interval of samples (samples,) bool, as independent draws of one generator."""
        count, n = int(flagged.sum()), len(flagged)
        return {"flagged": count, "n": n, "share": count / n, "interval": wilson_interval(count, n)}

    def real_share(self, flagged: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
        """The same of the chosen real items, with the bootstrap interval over patients."""
        values, groups = flagged[chosen], self.audit.real.groups[chosen]
        return {
            "flagged": int(values.sum()),
            "n": len(values),
            "patients": len(np.unique(groups)),
            "share": float(values.mean()) if len(values) else None,
            "interval": patient_interval(values, groups, self.seed) if len(values) else None,
        }

    @property
    def real_dropped(self) -> dict[str, Any]:
        """Real items with foreground that any check flags, by thresholds of all other patients."""
        flagged = np.any([check.real_flagged for check in self.checks], axis=0)
        return self.real_share(flagged, self.audit.judged)

    def as_record(self) -> dict[str, Any]:
        """The content of `audit.json`."""
        record, provenance, held_out = self.audit.record, self.audit.record["provenance"], self.audit.held_out
        groups, near = self.audit.real.groups, self.duplicates.check
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "pool": {
                "samples": len(self.names),
                "dimension": record["dimension"],
                "bundle": provenance["bundle"],
                "weights_sha256": provenance.get("weights_sha256"),
                "sampling_seed": record["sampling"].get("seed"),
            },
            "dataset": provenance["dataset"],
            "fold": provenance["fold"],
            "grid": list(self.audit.real.images.shape[2:]),
            "grid_spacing_mm": list(self.audit.spacing),
            "real": {
                name: {"patients": len(np.unique(groups[chosen])), "items": int(chosen.sum())}
                for name, chosen in (("training", ~held_out), ("held_out", held_out))
            },
            "decisions": {
                **self.share(self.dropped),
                "broken": len(self.audit.broken),
                "empty": int(self.empty.sum()),
                "left_to_others": int(self.foreign.sum()),
            },
            "real_dropped": self.real_dropped,
            "checks": {check.key: self._check_record(check) for check in self.checks},
            "memorisation": {
                **self.share(self.copies),
                "real": self.real_copies,
                "extractor": self.extractor,
                "closest_real": self.closest_real(),
                "copies": [self._copy_record(i) for i in np.flatnonzero(self.copies).tolist()],
                "closest": [self._copy_record(i) for i in self.closest],
            },
            "duplicates": [
                {"sample": self.names[i], "of": self.names[j], "relative_distance": _rounded(near.samples[i])}
                for i, j in self.duplicate_of.items()
            ],
            "agreement": self.agreement.record,
            "usefulness": self.usefulness,
            "intervals": "95 %: of samples Wilson, as independent draws of one trained generator with these "
            "thresholds; of real items bootstrap over patients, each judged by the thresholds of the others (Wilson's "
            "with patients as items where none or all are flagged)",
            "seed": self.seed,
            "code_revision": code_revision(),
            "packages": package_versions(),
        }  # fmt: skip

    def _check_record(self, check: Check) -> dict[str, Any]:
        scores = {"real": check.real[check.defined], "pool": check.samples[~np.isnan(check.samples)]}
        return {
            "meaning": check.words.rstrip(":"),
            "suspicious": "low" if check.low else "high",
            "level": self.levels[check.key],
            "level_used": check.level,
            "threshold": [_rounded(value) for value in check.thresholds],
            "pool": self.share(self.flagged(check)),
            "real": self.real_share(check.real_flagged, check.defined),
            "held_out": self.real_share(check.real_flagged, check.defined & check.held_out),
            "quantiles": {
                "levels": list(QUANTILES),
                **{
                    name: [_rounded(v) for v in np.quantile(x, QUANTILES)] if len(x) else None
                    for name, x in scores.items()
                },
            },
        }

    def _copy_record(self, index: int) -> dict[str, Any]:
        found = self.memorisation.copied(index)
        found.pop("index")
        numbers = {key: _rounded(value) for key, value in found.items() if isinstance(value, float)}
        return {"sample": self.names[index], **found, **numbers, "copy": bool(self.copies[index])}


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.6g}")


def percent(share: Mapping[str, Any]) -> str:
    """A share in words, with its interval."""
    if share["share"] is None:
        return "none to judge"
    words = f"{100 * share['share']:.1f} %"
    if share["interval"] is not None:
        low, high = (f"{100 * value:.1f}" for value in share["interval"])
        words += f" ({low} to {high} %)"
    return f"{words} of {share['n']}"
