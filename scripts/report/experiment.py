"""The report of an experiment: one page, its figures as PNG and its tables as CSV, from the results of its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .answer import comparison_words, interval_words, mean_and_spread, p_words, patients_words, runs_words, signed
from .experiment_figures import Difference, Panel, Point, difference_figure, number_figure
from .experiment_headline import headline
from .experiment_patients import paired_figures, patient_section
from .experiment_plateau import plateau_section, rising_words
from .experiment_pools import bad_pool_words, one_generator, pool_section, sheets
from .experiment_results import (
    LEVEL,
    MEASURES,
    PRIMARY,
    Results,
    Row,
    arm_summary,
    baseline_comparisons,
    comparisons,
    num_samples,
    other_lengths,
    read_results,
    steps,
)
from .experiment_runs import run_section, unfinished_section
from .experiment_scorecard import cited_split, scorecard_section
from .experiment_split import split_section
from .experiment_tables import write_tables
from .experiment_worth import worth_section
from .figures import save_png, write_whole
from .html import document, escaped, html_figure, html_table

# Up to so many comparisons each has a paragraph of its own; more are told in groups.
FEW = 3
# Why arms have other numbers of steps where the protocol wants it so.
BUDGETS = {"real_exposures": "by arm, so that each sees a real item as often", "epochs": "by arm, in equal epochs"}
_NAMES = {
    "dice": "DSC", "iou": "IoU", "hd95": "HD95 (mm)", "nsd": "NSD", "lesion_sensitivity": "lesions found",
    "false_positive_slices": "false-positive slices",
}  # fmt: skip


def write_experiment_report(run_dir: str | Path) -> Path:
    """Write the report of a run or an experiment, finished or not: report/report.html, its figures and tables.

    Args:
        run_dir: The --output_dir of the run, demo or experiment.

    Raises:
        InputError: the folder holds no experiment.

    Example:
        synthaug report results/lgg_table
    """
    results = read_results(run_dir)
    folder = results.folder / "report"
    settings = results.settings
    about = [*_cases_words(results), f"protocol {settings['name']}, preset {settings['preset']}"]
    about.append(str(results.content["started"]))
    body = [
        f"<h1>{escaped(settings['title'])}</h1>",
        f'<p class="about">{escaped(" · ".join(about))}</p>',
        f"<p>{escaped(settings['question'])}</p>",
        *unfinished_section(results),
    ]
    splits = settings["evaluate"] if settings["segmenters"] else []
    compared = {split: comparisons(results, split) for split in splits}
    for split in splits:
        sentence = headline(compared[split])
        body += [
            '<div class="answer">',
            *([f"<p><strong>{escaped(sentence)}</strong></p>"] if sentence else []),
            *(f"<p>{escaped(w)}</p>" for w in answer_words(results, compared[split], split)),
        ]
        body += ["</div>"]
    body += [f'<p class="loud">{escaped(words)}</p>' for words in (*rising_words(results), *bad_pool_words(results))]
    body += sheets(results, folder) if one_generator(results) else []
    for split in splits:
        body += _segmentation_section(results, split, compared[split], folder)
    body += pool_section(results, folder)
    body += scorecard_section(results, compared[cited_split(splits)] if splits else {})
    body += run_section(results)
    for split in splits:
        body += patient_section(results, split)
    write_tables(results, folder)
    return write_whole(document(settings["title"], body).encode(), folder / "report.html")


def _cases_words(results: Results) -> list[str]:
    data = results.settings["dataset_dir"]
    return [Path(data).name if data else f"a phantom ({results.settings['dataset']['modality']}): no patient data"]


def _segmentation_section(results: Results, split: str, compared: dict[Row, dict[str, Any]], folder: Path) -> list[str]:
    parts = [f"<h2>Segmentation of {split} cases</h2>"]
    tables = {measure: results.patients(measure, split) for measure in MEASURES}
    summaries = {
        measure: {row: arm_summary(results, row, runs) for row, runs in table.items() if runs}
        for measure, table in tables.items()
    }
    primary = summaries[PRIMARY]
    parts += _number_figures(results, split, primary, folder)
    if compared:
        parts.append(_save(_differences(compared), folder / f"differences_{split}.png", _difference_caption(compared)))
        words = f"Each arm against {_reference_name(results)} of the same segmenter and real patients"
        parts.append(_comparison_table(results, list(compared.items()), words))
        if len(compared) <= FEW:
            parts += paired_figures(results, split, compared, folder)
    if against := baseline_comparisons(results, split):
        words = (
            "Each generator's arm with the most samples against those that need no generator, of the same segmenter "
            "and real patients"
        )
        pairs = [(row, c) for (row, _), c in against.items()]
        parts += [
            "<h3>Against classical augmentation and pasted tumours</h3>",
            _comparison_table(results, pairs, words),
        ]
    parts += worth_section(results, split)
    parts += split_section(results, split, folder)
    parts.append(_arm_table(results, summaries))
    return parts + plateau_section(results)


def _reference_name(results: Results) -> str:
    return next((c["settings"]["arm"] for c in results.cells("evaluate") if c["settings"]["reference"]), "real only")


def answer_words(results: Results, compared: dict[Row, dict[str, Any]], split: str = "") -> list[str]:
    """What the comparisons allow to say, each with n, interval and what it is compared with, and on what it rests."""
    reference = _reference_name(results)
    if not compared:
        rows = [row for row in results.rows if not split or row.split == split]
        if len(rows) and all(row == results.reference(row) for row in rows):
            return [f"No arm but “{reference}” was evaluated, so nothing is compared."]
        return [f"No arm can be compared with {reference} yet: the cells are not finished."]
    if len(compared) <= FEW:
        one_label = results.labels[0] if len(results.labels) == 1 else None
        measure = f"Dice of “{one_label}”" if one_label else "Dice, mean over labels"
        words = []
        for row, c in compared.items():
            where = f"{row.segmenter}, {_where(row)}, {row.split} cases. "
            words.append(where + comparison_words(measure, c))
        return [*words, behind_words(results, compared)]
    family = max(c["family"] for c in compared.values())
    first = (
        f"{len(compared)} comparisons with “{reference}” of the same segmenter, by DSC, patient by patient; p adjusted "
        f"by Holm for {family} tests."
    )
    words = [first, behind_words(results, compared)]
    for direction in ("higher", "lower"):
        told = {row: c for row, c in compared.items() if c["conclusion"] == direction}
        for row, c in told.items():
            seeds = ", ".join(f"{signed(value)} (seed {seed})" for seed, value in c["difference_by_seed"].items())
            words.append(
                f"{row.segmenter}, {_where(row)}: DSC was {direction} with “{row.words}” than with “{c['names'][0]}”: "
                f"{signed(c['difference'])} ({interval_words(c)}; {patients_words(c['n'])}; Holm "
                f"{p_words(c['p_holm'])}). By seed: {seeds}."
            )
    few = [row for row, c in compared.items() if c["conclusion"] == "too few"]
    open_ones = [row for row, c in compared.items() if c["conclusion"] == "undecided"]
    if open_ones:
        zero = sum(compared[row]["interval"][0] <= 0 <= compared[row]["interval"][1] for row in open_ones)
        why = [f"for {zero} the interval contains 0"] if zero else []
        if rest := len(open_ones) - zero:
            why.append(f"for {rest} the interval leaves out 0, but the adjusted test does not agree")
        words.append(
            f"No difference from {reference} can be told for {len(open_ones)} of {len(compared)}: {', '.join(why)}. "
            "That is no proof that there is none."
        )
    if few:
        words.append(f"{len(few)} comparisons have too few patients for an interval.")
    return words


def behind_words(results: Results, compared: dict[Row, dict[str, Any]]) -> str:
    """How many trainings stand behind a verdict, and of which length."""
    counts = sorted({len(c["runs"]) for c in compared.values()})
    runs = max((c["runs"] for c in compared.values()), key=len)
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    arms = {(row.segmenter, row.real, row.words) for row in compared}
    total = sum(len(c["runs"]) for c in compared.values())
    references = {results.reference(row) for row in compared}
    total += sum(len(results.rows[row]) for row in references if row is not None)
    generators = sum(cell["id"] in results.results for cell in results.cells("generator"))
    words = (
        f"Behind this stand {total} trainings of segmenters, {each} of each of the {len(arms) + len(references)} arms "
        f"({runs_words(runs)})"
    )
    if generators:
        words += ", and one training of a generator, with one pool" if generators == 1 else ""
        words += f", and {generators} trainings of generators, each with one pool" if generators > 1 else ""
    return f"{words}. {steps_words(results)}"


def steps_words(results: Results) -> str:
    """Whether the arms of each segmenter had the same number of training steps."""
    words = []
    for segmenter, found in steps(results).items():
        numbers = ", ".join(f"{count:,}" for count in sorted(found))
        same = "in every arm" if len(found) == 1 else "DIFFERING between arms"
        if len(found) > 1:
            entry = results.settings["segmenters"].get(segmenter, {})
            same = BUDGETS.get(entry.get("budget", results.settings.get("budget", "steps")), same)
        shorter = "".join(
            f", “{arm}” {', '.join(f'{count:,}' for count in sorted(counts))} ({factor:g} of the epochs)"
            for arm, (factor, counts) in other_lengths(results, segmenter).items()
        )
        words.append(f"{segmenter}: {numbers} training steps {same}{shorter}")
    return "; ".join(words) + "." if words else ""


def _where(row: Row) -> str:
    return "all real patients" if row.real == "all" else f"{row.real} real patients"


def _number_figures(results: Results, split: str, summaries: dict[Row, dict[str, Any]], folder: Path) -> list[str]:
    """DSC against the number of synthetic images, and against the number of real patients, where they vary."""
    parts = []
    ylabel = f"DSC, mean over patients, {100 * LEVEL:g} % interval"
    facts = _n_words(summaries)
    caption = (
        f"DSC of {split} cases, {facts}. Bars: bootstrap percentile intervals of the mean over patients, each averaged "
        "over seeds first; they cover the choice of patients, not of training seeds, generator or fold, and patients "
        "differ more than arms do: whether arms differ is told by the paired differences below."
    )
    if len({row.num_synthetic for row in summaries} - {0}) > 1:
        panels = [_synthetic_panel(results, key, summaries) for key in dict.fromkeys(row[:3] for row in summaries)]
        panels = [panel for panel in panels if panel.lines]
        if panels:
            figure = number_figure(panels, "synthetic samples (0: real only)", ylabel)
            words = "DSC against the number of synthetic images; dashed: arms without. " + caption
            parts.append(_save(figure, folder / f"dsc_by_synthetic_{split}.png", words))
    numbers = [real for real in results.settings["real"] if real != "all"]
    if len(numbers) > 1:
        panels = []
        for segmenter in dict.fromkeys(row.segmenter for row in summaries):
            lines: dict[str, list[Point]] = {}
            for row, one in summaries.items():
                if row.segmenter == segmenter and row.real != "all" and one["n"]:
                    lines.setdefault(row.words, []).append(Point(int(row.real), one["mean"], one["interval"]))
            panels.append(Panel(segmenter, lines, {}))
        figure = number_figure(panels, "real training patients", ylabel)
        words = "DSC against the number of real training patients. " + caption
        parts.append(_save(figure, folder / f"dsc_by_real_{split}.png", words))
    return parts


def _synthetic_panel(results: Results, key: tuple, summaries: dict[Row, dict[str, Any]]) -> Panel:
    """One segmenter and number of real patients; every line starts at real only."""
    rows = {row: one for row, one in summaries.items() if row[:3] == key and one["n"]}
    lines: dict[str, list[Point]] = {}
    levels: dict[str, Point] = {}
    reference = results.reference(next(iter(rows))) if rows else None
    start = None
    if reference in rows:
        start = (reference.arm, Point(0, rows[reference]["mean"], rows[reference]["interval"]))
    for row, one in rows.items():
        point = Point(row.num_synthetic, one["mean"], one["interval"])
        if row.num_synthetic:
            lines.setdefault(row.arm, []).append(point)
        elif row != reference:
            levels[row.arm] = point
    return Panel(
        f"{key[1]}, {_where(next(iter(rows)))}" if rows else "", {k: sorted(v) for k, v in lines.items()}, levels, start
    )


def _n_words(summaries: dict[Row, dict[str, Any]]) -> str:
    """Such as "n = 6 patients, folds 0, seeds 0, 1", or their ranges where rows differ."""

    def span(values: list[int]) -> str:
        low, high = min(values), max(values)
        return str(low) if low == high else f"{low} to {high}"

    if not summaries:
        return "n = 0"
    n = span([one["n"] for one in summaries.values()])
    folds = span([len(one["folds"]) for one in summaries.values()])
    seeds = span([len(one["seeds"]) for one in summaries.values()])
    return f"n = {n} patients, {folds} fold(s), {seeds} seed(s)"


def _differences(compared: dict[Row, dict[str, Any]]) -> Figure:
    groups: dict[str, list[Difference]] = {}
    for row, c in compared.items():
        if c["difference"] is not None:
            one = Difference(row.words, c["difference"], c["interval"], c["conclusion"])
            groups.setdefault(f"{row.segmenter}, {_where(row)}", []).append(one)
    name = next(iter(compared.values()))["names"][0]
    return difference_figure(groups, f"difference in DSC from {name}, mean over patients")


def _difference_caption(compared: dict[Row, dict[str, Any]]) -> str:
    n = sorted({c["n"] for c in compared.values()})
    one = next(iter(compared.values()))
    return (
        f"Paired differences from {one['names'][0]}; n = {', '.join(map(str, n))} patients, each averaged over seeds "
        f"first. Lines: {100 * one['level']:g} % bootstrap percentile intervals of the mean difference, "
        f"{one['resamples']:,} resamples of patients, not adjusted for the number of comparisons. Filled: the "
        "interval leaves out 0 and the signed-rank test adjusted by Holm agrees; open: no difference can be told."
    )


def conclusion_words(c: dict[str, Any]) -> str:
    """What a row of the table of comparisons allows to say."""
    if c["conclusion"] in ("higher", "lower"):
        return c["conclusion"]
    if c["interval"] is None:
        return "too few patients"
    low, high = c["interval"]
    return "interval contains 0" if low <= 0 <= high else f"p (Holm) ≥ {1 - LEVEL:.2g}"


def _comparison_table(results: Results, compared: list[tuple[Row, dict[str, Any]]], words: str) -> str:
    rows = []
    for row, c in compared:
        seeds = ", ".join(signed(value) for value in c["difference_by_seed"].values())
        rows.append([
            row.segmenter, row.real, row.words, c["names"][0], mean_and_spread(c["reference"]),
            mean_and_spread(c["other"]),
            "–" if c["difference"] is None else signed(c["difference"]),
            interval_words(c).removeprefix(f"{100 * c['level']:g} % interval "), conclusion_words(c),
            *(("–", "–") if c["p"] is None else (p_words(c["p"]), p_words(c["p_holm"]))),
            c["n"], len(c["runs"]), f"{c['better']} / {c['worse']} / {c['equal']}", seeds,
        ])  # fmt: skip
    head = ["segmenter", "real patients", "arm", "compared with", "its DSC", "arm's DSC", "difference", "interval",
            "conclusion", "p", "p (Holm)", "n", "runs", "better / worse / equal", "by seed"]  # fmt: skip
    one = compared[0][1]
    family = max(c.get("family", 0) for _, c in compared)
    left_out = sorted({patient for _, c in compared for patient in c["excluded"]})
    caption = (
        f"{words}: DSC{' (mean over ' + ', '.join(results.labels) + ')' if len(results.labels) > 1 else ''}, mean ± SD "
        f"over patients, each averaged over the seeds (and folds) that both have. Interval: {100 * one['level']:g} % "
        f"bootstrap percentile, {one['resamples']:,} resamples of patients. p: Wilcoxon signed-rank over patients, "
        f"two-sided; adjusted by Holm for the {family} test{'s' if family > 1 else ''} of this table. Neither covers "
        "the choice of training seeds, of the generator or of its pool. n: patients; runs: folds x seeds. Conclusion: "
        f"higher or lower where the interval leaves out 0 and the adjusted p is below {1 - LEVEL:.2g}; else why no "
        "difference can be told."
    )
    if left_out:
        caption += f" Left out, not defined in a run: {', '.join(left_out)}."
    return _narrow_table(head, rows, caption)


def _arm_table(results: Results, summaries: dict[str, dict[Row, dict[str, Any]]]) -> str:
    rows = []
    # Earlier results know fewer measures.
    shown = [name for name in MEASURES[1:] if any(one["n"] for one in summaries[name].values())]
    for row, one in summaries[PRIMARY].items():
        had = num_samples(results, row)
        number = "–" if not row.num_synthetic else ", ".join(map(str, had)) or str(row.num_synthetic)
        other = []
        for measure in shown:
            found = summaries[measure][row]
            other.append(mean_and_spread(found) + ("" if found["n"] == one["n"] else f" (n = {found['n']})"))
        spread = "one seed" if one["sd_over_seeds"] is None else f"{one['sd_over_seeds']:.3f}"
        rows.append([
            row.segmenter, row.real, row.arm, number, mean_and_spread(one), spread, *other,
            f"{one['n']} x {len(one['folds'])} x {len(one['seeds'])}", f"{one['runs']} of {one['planned']}",
        ])  # fmt: skip
    head = ["segmenter", "real patients", "arm", "synthetic", "DSC", "SD over seeds",
            *(_NAMES[measure] for measure in shown), "patients x folds x seeds", "runs"]  # fmt: skip
    short = [
        f"{row.segmenter} {row.words}" for row in summaries[PRIMARY]
        if row.num_synthetic and any(number < row.num_synthetic for number in num_samples(results, row))
    ]  # fmt: skip
    caption = (
        "Every arm: mean ± SD over patients, each averaged over seeds (and folds) first; SD over seeds: of the means "
        "over all patients. A patient is in a mean where it is defined in every run of every arm."
    )
    if "lesion_sensitivity" in shown:
        caption += (
            " Lesions found: connected parts of the reference that a prediction touches. False-positive slices: those "
            "with a prediction, of a patient's slices without the label."
        )
    if short:
        caption += f" Fewer synthetic samples than asked for, because the audit left fewer: {', '.join(short)}."
    return _narrow_table(head, rows, caption)


def _narrow_table(head: list[str], rows: list[list[Any]], caption: str) -> str:
    """A table whose first columns stand in the caption instead where every row has the same; text to the left."""
    may_go = ("segmenter", "real patients", "compared with", "runs")
    same = [c for c, name in enumerate(head) if name in may_go and len({str(row[c]) for row in rows}) == 1]
    for column in same:
        caption += f" {head[column].capitalize()}: {rows[0][column]}."
    kept = [column for column in range(len(head)) if column not in same]
    words = ("segmenter", "real patients", "arm", "compared with", "by seed", "conclusion")
    numbers = tuple(place for place, column in enumerate(kept) if head[column] not in words)
    return html_table([head[c] for c in kept], [[row[c] for c in kept] for row in rows], caption, numbers)


def _save(figure: Figure, path: Path, caption: str) -> str:
    return html_figure(save_png(figure, path).read_bytes(), caption, caption.split(".")[0])
