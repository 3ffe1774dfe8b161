"""What a comparison allows to say, in words that claim no more than the patients and trainings allow."""

from collections.abc import Mapping, Sequence
from typing import Any


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


def runs_words(runs: Sequence[tuple[int | str, int]]) -> str:
    """Write the folds and seeds of trainings: "fold 0, seeds 0, 1"."""
    folds = list(dict.fromkeys(str(fold) for fold, _ in runs))
    return f"fold{'' if len(folds) == 1 else 's'} {', '.join(folds)}, {seeds_words(sorted({s for _, s in runs}))}"


def comparison_words(measure: str, c: Mapping[str, Any]) -> str:
    """Say in one paragraph what both arms reached, how they differ, and what that allows to say.

    Args:
        measure: what was measured, such as "Dice of “tumour”".
        c: of `scripts.report.experiment_results.compare_rows`.
    """
    reference, other = c["names"]
    n = patients_words(c["n"])
    left_out = f", {len(c['excluded'])} left out as not defined" if c["excluded"] else ""
    if not c["n"]:
        return f"{measure} is defined for no patient in both “{reference}” and “{other}”{left_out}."
    facts = (
        f"{measure}: {mean_and_spread(c['reference'])} with “{reference}”, {mean_and_spread(c['other'])} "
        f"with “{other}” (mean ± SD over {n}{left_out}; {runs_words(c['runs'])}). Paired difference "
        f"{signed(c['difference'])} ({interval_words(c)}, {n}"
    )
    if c["p"] is not None:
        facts += f"; Wilcoxon signed-rank {p_words(c['p'])}"
        facts += f", by Holm {p_words(c['p_holm'])}" if c["family"] > 1 else ""
    return f"{facts}). {conclusion_words(c)}"


def conclusion_words(c: Mapping[str, Any]) -> str:
    """Say what a comparison allows and leaves open; belongs behind its interval."""
    n = patients_words(c["n"])
    if c["conclusion"] == "too few":
        return f"No difference can be told from {n}: too few for an interval."
    low, high = c["interval"]
    if c["conclusion"] == "undecided":
        why = "the interval holds 0"
        if low > 0 or high < 0:
            test = "the rank test" if c["family"] == 1 else "the rank test adjusted by Holm"
            why = f"the interval leaves out 0, but {test} ({p_words(c['p_holm'])}) does not agree"
        return f"No difference can be told from {n}: {why}. That is no proof that there is none."
    told = f"On {n} Dice was {c['conclusion']} with “{c['names'][1]}”"
    if len(c["runs"]) < 2:
        return (
            f"{told}. With one training of each this tells two trained networks apart; it does not tell "
            "whether the synthetic samples or the chance of training made the difference."
        )
    told += ". The interval covers the choice of patients, not of training seeds"
    return f"{told}; the difference {by_training_words(c)}."


def by_training_words(c: Mapping[str, Any]) -> str:
    """Write the difference of each seed, or with one seed of each fold."""
    if len(c["difference_by_seed"]) > 1:
        values = ", ".join(f"{signed(value)} (seed {seed})" for seed, value in c["difference_by_seed"].items())
        return f"by seed was {values}"
    values = ", ".join(f"{signed(value)} (fold {fold})" for fold, value in c["difference_by_fold"].items())
    return f"by fold was {values}"
