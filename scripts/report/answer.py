"""What a run says about its question, in words that claim no more than the patients and seeds allow."""

from collections.abc import Mapping
from typing import Any

from ..metrics.comparison import Runs, compare_paired, mean_over_labels, summarise
from ..runtime.errors import InputError


def signed(value: float) -> str:
    """Write a difference with its sign and three decimals: +0.012, −0.012."""
    return f"{value:+.3f}".replace("-", "−")


def mean_and_spread(summary: Mapping[str, Any]) -> str:
    """Write "0.612 ± 0.110", the mean alone for one patient, "not defined" for none."""
    if summary["mean"] is None:
        return "not defined"
    return f"{summary['mean']:.3f}" + ("" if summary["sd"] is None else f" ± {summary['sd']:.3f}")


def interval_words(comparison: Mapping[str, Any]) -> str:
    """Write "95 % interval −0.010 to +0.051", or that there is none."""
    if comparison["interval"] is None:
        return "no interval, too few patients"
    low, high = comparison["interval"]
    return f"{100 * comparison['level']:g} % interval {signed(low)} to {signed(high)}"


def p_words(p: float) -> str:
    """Write a p value with two figures that mean something."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def patients_words(n: int) -> str:
    """Write "n = 8 patients"."""
    return f"n = {n} patient{'' if n == 1 else 's'}"


def seeds_words(seeds: list[int]) -> str:
    """Write "seed 0" or "seeds 0, 1"."""
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(str(seed) for seed in seeds)}"


def both_seeds_words(comparison: Mapping[str, Any]) -> str:
    """Write the seeds of both arms of a comparison, once if they are the same."""
    sides = (seeds_words(sorted(comparison[side]["seed_means"])) for side in ("reference", "other"))
    return " against ".join(dict.fromkeys(sides))


def compare_arms(record: Mapping[str, Any]) -> dict[str, Any]:
    """Compare every arm of a run record (see `scripts.report.page`) with the one without synthetic samples.

    Returns {"reference": name, "labels": [...], "values": {measure: {arm: {seed: {patient: Dice}}}},
    "summary": {measure: `summarise` of the reference}, "arms": {arm: {measure: `compare_paired`}}}; measures
    are the labels and, if there are two or more, "mean over labels" before them.

    Raises `InputError` for no or several arms of share 0, a seed twice in an arm, cases whose labels differ,
    and whatever `compare_paired` raises.
    """
    arms = record.get("segmentation", {}).get("arms", {})
    references = [name for name, arm in arms.items() if arm["share"] == 0]
    if len(references) != 1:
        raise InputError(
            f"{len(references)} arms with share 0 among {', '.join(arms) or 'no arms'}",
            "exactly one arm with share 0: the comparison's reference",
            "evaluate one arm that was trained on real cases only",
        )
    values = {name: _runs(name, arm) for name, arm in arms.items()}
    labels = _labels(values)
    measures: dict[str, Mapping[str, Runs]] = {
        label: {
            name: {seed: {patient: dice[label] for patient, dice in cases.items()} for seed, cases in seeds.items()}
            for name, seeds in values.items()
        }
        for label in labels
    }
    if len(labels) > 1:
        measures = {"mean over labels": mean_over_labels(values), **measures}
    reference = references[0]
    return {
        "reference": reference,
        "labels": labels,
        "summary": {measure: summarise(runs[reference], reference) for measure, runs in measures.items()},
        "arms": {
            name: {
                measure: compare_paired(runs[reference], runs[name], (reference, name))
                for measure, runs in measures.items()
            }
            for name in arms
            if name != reference
        },
        "values": measures,
    }


def _runs(name: str, arm: Mapping[str, Any]) -> dict[int, Mapping[str, Mapping[str, float | None]]]:
    seeds = [run["seed"] for run in arm["runs"]]
    if len(set(seeds)) < len(seeds) or not seeds:
        raise InputError(f"arm {name!r} with the seeds {seeds}", "each seed once, one or more", "keep one run a seed")
    return {run["seed"]: run["dice"] for run in arm["runs"]}


def _labels(values: Mapping[str, Mapping[int, Mapping[str, Mapping[str, float | None]]]]) -> list[str]:
    found = {
        tuple(dice): f"{patient} in {name!r}"
        for name, seeds in values.items()
        for cases in seeds.values()
        for patient, dice in cases.items()
    }
    if len({frozenset(labels) for labels in found}) != 1 or not all(found):
        raise InputError(
            "; ".join(f"labels {', '.join(labels) or 'none'} for {where}" for labels, where in found.items())
            or "no cases",
            "the same labels, one or more, for every case of every run",
            "evaluate every run with the same dataset.json; write null where Dice is not defined",
        )
    return list(next(iter(found)))


def steps_words(record: Mapping[str, Any]) -> str:
    """Say whether the arms had equal training steps, from the arms' "steps"."""
    steps = {name: arm.get("steps") for name, arm in record["segmentation"]["arms"].items()}
    if None in steps.values():
        return "training steps not recorded"
    if len(set(steps.values())) == 1:
        return f"equal training steps, {next(iter(steps.values())):,} each"
    return "unequal training steps: " + ", ".join(f"{name} {count:,}" for name, count in steps.items())


def answer(record: Mapping[str, Any], compared: Mapping[str, Any] | None = None) -> str:
    """Answer in one line an arm: Dice without and with synthetic samples, the difference, what it allows.

    record: see `scripts.report.page`; compared: of `compare_arms`, made if not given.
    """
    compared = compared or compare_arms(record)
    main = next(iter(compared["summary"]))
    measure = "Dice, mean over labels" if main == "mean over labels" else f"Dice of “{main}”"
    reference = compared["summary"][main]
    if not compared["arms"]:
        return (
            f"{measure}, {compared['reference']}: {mean_and_spread(reference)} (mean ± SD over "
            f"{patients_words(reference['n'])}, {seeds_words(list(reference['seed_means']))}). "
            "No arm with synthetic samples was evaluated, so nothing is compared."
        )
    paragraphs = [_arm_words(measure, comparisons[main]) for comparisons in compared["arms"].values()]
    paragraphs[0] = f"Arms compared at {steps_words(record)}. {paragraphs[0]}"
    if len(paragraphs) > 1:
        paragraphs.append(f"{len(paragraphs)} arms share one reference; the intervals are not adjusted for that.")
    return "\n".join(paragraphs)


def _arm_words(measure: str, c: Mapping[str, Any]) -> str:
    reference, other = c["names"]
    n = patients_words(c["n"])
    left_out = f", {len(c['excluded'])} left out as not defined" if c["excluded"] else ""
    if not c["n"]:
        return f"{measure} is defined for no patient in both “{reference}” and “{other}”{left_out}."
    seeds = both_seeds_words(c)
    facts = (
        f"{measure}: {mean_and_spread(c['reference'])} with “{reference}”, {mean_and_spread(c['other'])} "
        f"with “{other}” (mean ± SD over {n}{left_out}; {seeds}). Paired difference "
        f"{signed(c['difference'])} ({interval_words(c)}, {n}"
    )
    facts += "). " if c["p"] is None else f"; Wilcoxon signed-rank {p_words(c['p'])}). "
    return facts + conclusion_words(c)


def conclusion_words(c: Mapping[str, Any]) -> str:
    """Say what a comparison (of `compare_paired`) allows and leaves open; belongs behind its interval."""
    n = patients_words(c["n"])
    if c["conclusion"] == "too few":
        return f"No difference can be told from {n}: too few for an interval."
    low, high = c["interval"]
    if c["conclusion"] == "undecided":
        why = "the interval holds 0"
        if low > 0 or high < 0:
            why = f"the interval leaves out 0, but the rank test ({p_words(c['p'])}) does not agree"
        return f"No difference can be told from {n}: {why}. That is no proof that there is none."
    direction = "higher" if c["conclusion"] == "higher" else "lower"
    told = f"On {n} Dice was {direction} with “{c['names'][1]}”"
    if min(len(c[side]["seed_means"]) for side in ("reference", "other")) < 2:
        return (
            f"{told}. With one training seed this tells two trained networks apart; it does not tell "
            "whether the synthetic samples or the chance of training made the difference."
        )
    told += ". The interval covers the choice of patients, not of training seeds"
    by_seed = [f"{signed(value)} (seed {seed})" for seed, value in c["difference_by_seed"].items()]
    return f"{told}; the difference by seed was {', '.join(by_seed)}." if by_seed else f"{told}."
