"""`synthaug audit`: judge every sample of a pool against real cases before it may train a segmenter."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..networks.features import train_segmentation_features
from ..pool.adopt import user_word
from ..pool.writing import read_pool, write_record
from ..report.figures import save_png
from ..runtime.errors import InputError
from ..runtime.files import write_json
from ..runtime.settings import local_device
from .agreement import SegmenterSettings, find_agreement
from .duplicates import find_duplicates
from .items import load_audit_data
from .memorisation import find_copies
from .painted import painted_alone
from .pictures import TITLES, audit_figure
from .plausibility import plausibility_checks
from .result import AuditResult, percent
from .thresholds import check_levels
from .usefulness import UsefulnessSettings, find_usefulness, usefulness_words

logger = logging.getLogger(__name__)

EXTRACTOR_STEPS = 200
# Added to the seed: a generator must not be judged by the extractor of its own loss, which its own seed made.
EXTRACTOR_SEED = 7919


def audit_pool(
    pool_dir: str | Path,
    dataset_dir: str | Path,
    thresholds: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    seed: int = 0,
    segmenter: SegmenterSettings | None = None,
    extractor_steps: int = EXTRACTOR_STEPS,
    progress: bool = True,
    usefulness: UsefulnessSettings | None = None,
) -> str:
    """Judge every sample, and write decisions to `pool.json`, and `audit.json` and `audit.png` beside it.

    The same command again gives the same files; other thresholds overwrite the audit's own decisions. A sample that
    somebody else dropped, or gave a reason of their own, keeps its decision.

    Args:
        pool_dir: a finished pool.
        dataset_dir: the data set that its generator was trained on, as then.
        thresholds: levels by name, see `LEVELS`: which share of real items a check may drop.
        dry_run: write nothing.
        seed: of segmenters, extractor and bootstrap.
        segmenter: how long the segmenters are trained; its seed is replaced by `seed`.
        extractor_steps: training steps of the feature extractor.
        progress: show bars with the time left.
        usefulness: how the pool's usefulness is measured; None: not at all.

    Returns:
        What was found, in words.

    Raises:
        InputError: pool, data set or thresholds cannot be used, or the pool changed meanwhile; nothing is written.
    """
    if not isinstance(dry_run, bool):  # the command line makes a (true) string of "false"
        raise InputError(f"--dry_run {dry_run!r}", "True or False", "write --dry_run, or leave it out")
    result = run_audit(pool_dir, dataset_dir, thresholds, seed, segmenter, extractor_steps, progress, usefulness)
    lines = audit_words(result)
    if dry_run:
        return "\n".join([*lines, "Dry run: nothing was written."])
    folder = Path(pool_dir)
    if read_pool(folder) != result.audit.record:
        raise InputError(
            f"{folder} changed while it was audited", "a pool that stays as it is", "run the audit again"
        )  # fmt: skip
    save_png(audit_figure(result), folder / "audit.png")
    write_record(folder / "pool.json", {**result.audit.record, "samples": result.decide()})
    write_json(folder / "audit.json", {**result.as_record(), "words": lines})
    return "\n".join([*lines, str(folder / "audit.json"), str(folder / "audit.png")])


def run_audit(
    pool_dir: str | Path,
    dataset_dir: str | Path,
    thresholds: Mapping[str, Any] | None = None,
    seed: int = 0,
    segmenter: SegmenterSettings | None = None,
    extractor_steps: int = EXTRACTOR_STEPS,
    progress: bool = True,
    usefulness: UsefulnessSettings | None = None,
) -> AuditResult:
    """All checks of a pool, see `audit_pool`; writes nothing."""
    levels = check_levels(thresholds)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"--seed {seed!r}", "a whole number of at least 0", "mend --seed")

    def track(items: Sequence, title: str) -> Iterable:
        return tqdm(items, desc=title, disable=not progress)

    settings = replace(segmenter or SegmenterSettings(), seed=seed)
    device = local_device()
    audit = load_audit_data(pool_dir, dataset_dir, track)
    plausibility = plausibility_checks(audit, levels, track)
    training = audit.real.subset(~audit.held_out)
    images, masks = training.images.float(), training.masks.float()
    if images.ndim == 5:  # the extractor sees slices
        images, masks = (x.movedim(4, 1).flatten(0, 1) for x in (images, masks))
        chosen = masks.flatten(1).any(dim=1)
        images, masks = images[chosen], masks[chosen]
    with tqdm(total=extractor_steps, desc="training the feature extractor", disable=not progress) as bar:
        extractor = train_segmentation_features(
            images,
            masks,
            steps=extractor_steps,
            seed=EXTRACTOR_SEED + seed,
            device=device,
            progress=lambda *_: bar.update(),  # type: ignore[arg-type, return-value]
        ).cpu()
    compared = audit if audit.painted is None else painted_alone(audit)
    memorisation = find_copies(compared, extractor, levels, track)
    pixels = memorisation.real["pixels"], memorisation.nearest["pixels"]
    duplicates = find_duplicates(compared, *pixels, levels, track)
    agreement = find_agreement(audit, levels, settings, device, track)
    result = AuditResult(audit, levels, seed, plausibility, agreement, memorisation, duplicates, extractor.name)
    if usefulness is None:
        return result
    return replace(result, usefulness=find_usefulness(audit, result.kept, usefulness, seed, device, track))


def audit_words(result: AuditResult) -> list[str]:
    """What an audit found, a line each."""
    dropped, real = result.share(result.dropped), result.real_dropped
    word = user_word(result.audit.record)
    lines = [
        *([word] if word else []),
        f"{dropped['n'] - dropped['flagged']} of {dropped['n']} samples are kept, {dropped['flagged']} dropped: "
        f"{percent(dropped)}. Of unseen real items the same checks would drop {percent(real)} "
        f"({real['patients']} patients).",
    ]
    for name, flagged in (
        ("cannot be used", np.isin(result.names, list(result.audit.broken))),
        ("empty mask", result.empty),
    ):
        if flagged.any():
            lines.append(f"  {name}: {percent(result.share(flagged))}")
    for check in result.checks:
        pool = percent(result.share(result.flagged(check)))
        real_share = percent(result.real_share(check.real_flagged, check.defined))
        lines.append(f"  {check.key} ({TITLES[check.key]}): {pool}; real {real_share}")
    cases = sorted({result.memorisation.copied(i)["case"] for i in np.flatnonzero(result.copies).tolist()})
    lines.append(
        f"Copies of training cases: {percent(result.share(result.copies))}"
        + (f", of {', '.join(cases)}" if cases else "")
        + f". As near to another patient are {percent(result.real_copies)} real items."
    )
    lines.append(
        f"The segmenters' median Dice on real items that they did not see is "
        f"{result.agreement.record['median_dice']['real']:.2f}; the lower, the less the agreement tells."
    )
    if result.usefulness is not None:
        lines.append(usefulness_words(result.usefulness))
    pairs = [f"{' and '.join(pair['patients'])} ({pair['relative_distance']:.2f})" for pair in result.closest_real(3)]
    lines.append(
        f"Real patients nearest to each other: {', '.join(pairs)}. If two of them are one person, leave one out: they "
        "make these thresholds lax."
    )
    if blind := result.memorisation.blind:
        lines.append(
            f"Blind here: {', '.join(blind)}. Two real patients are as near to each other as a copy is to its "
            "original, or real items show too little to be compared, so that exact copies are found at most."
        )
    if result.foreign.any():
        lines.append(f"{int(result.foreign.sum())} samples were decided on by others and stay as they are.")
    if few := [check.key for check in result.checks if check.defined.sum() * check.level < 1]:
        lines.append(
            f"Few real items: the thresholds of {', '.join(few)} are the furthest one that was seen, and may drop more "
            "than their level says."
        )
    return lines
