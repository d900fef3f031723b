"""The numbers behind the figures as tables that sort."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from demp.experiments.report.comparable import ComparableRuns
from demp.experiments.report.groups import accuracy, plain, setting_of, share, sparsity
from demp.experiments.report.runs import UNFINISHED, ReportedRun
from demp.experiments.report.studies import StudySummary
from demp.experiments.report.svg import MARKS
from demp.experiments.report.tags import Markup, tag, together
from demp.experiments.report.words import NONE, change, digits, duration, percent, short, times
from demp.files.results import DONE


class Cell(NamedTuple):
    """What a reader sees, and what the column is sorted by; words sort as words."""

    words: str
    key: float | str | None = None


def table(
    name: str, caption: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, text_columns: int = 1
) -> Markup:
    """A table whose headings are buttons; the first columns hold words, the others numbers."""
    head = tag("tr", *(heading(words, at >= text_columns) for at, words in enumerate(headings)))
    lines = [tag("tr", *(cell(one, at, text_columns) for at, one in enumerate(row))) + "\n" for row in rows]
    inside = (tag("caption", caption), tag("thead", head), tag("tbody", "\n", *lines))
    whole = tag("table", *inside, id=name)
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def heading(words: str, numeric: bool) -> Markup:
    """The head of a column: a button that sorts by it."""
    button = tag("button", words, type="button")
    return tag("th", button, scope="col", aria_sort="none", class_="n" if numeric else None)


def cell(one: Cell, at: int, text_columns: int) -> Markup:
    """One of them; the first of a row names it."""
    if at == 0:
        return tag("th", one.words, scope="row", data_v=key_of(one))
    return tag("td", one.words, class_=None if at < text_columns else "n", data_v=key_of(one))


def key_of(one: Cell) -> str | None:
    """What its column is sorted by, as text."""
    return None if one.key is None else str(one.key)


def shown(value: float | None, words: Callable[[float], str]) -> Cell:
    """A number, or a dash that sorts last."""
    return Cell(NONE) if value is None else Cell(words(value), f"{value:.6g}")


def settings_table(families: list[ComparableRuns], split: str) -> Markup:
    """Return the table of all settings, with means over seeds."""
    headings = (
        "method", "setting", "seeds", f"{split} accuracy", "parameters", "neurons removed", "weights removed",
        "weights masked", "FLOPs", "training FLOPs", "training time", "training step",
    )  # fmt: skip
    rows = []
    for group, dense, where in [(group, family.dense, family.name) for family in families for group in family.groups]:
        setting = " · ".join(one for one in (group.setting, where if len(families) > 1 else "") if one)
        spread = f" ± {digits(100 * std, 2)}" if (std := group.std(accuracy)) is not None else ""
        seeds = f"{len(group.done)}" + (f", {group.failed} failed" if group.failed else "")
        rows.append(
            [
                Cell(group.method),
                Cell(setting or NONE),
                Cell(seeds, len(group.done)),
                shown(group.mean(accuracy), lambda value, spread=spread: f"{digits(100 * value, 2)}{spread}\u202f%"),
                shown(group.mean(share("parameters")), change),
                shown(group.mean(plain("neuron_sparsity")), percent),
                shown(group.mean(plain("weight_sparsity")), percent),
                shown(group.mean(plain("masked_share")), percent),
                shown(group.mean(share("flops")), change),
                shown(group.mean(share("train_flops")), times),
                shown(group.mean(partial(dense.over, name="train_seconds")), times),
                shown(group.mean(dense.step_ratio), times),
            ]
        )
    return table("settings", "Settings, means over seeds; × and % are of dense", headings, rows, text_columns=2)


def runs_table(runs: list[ReportedRun], split: str, most: int) -> Markup:
    """Every run, up to so many; the rest is in the data that can be downloaded."""
    headings = (
        "run",
        "setting",
        "status",
        "seed",
        f"{split} accuracy",
        "parameters",
        "FLOPs",
        "weights removed or masked",
    )
    headings = (*headings, "training FLOPs", "training time", "step at end, ms")
    rows = [
        [
            Cell(run.name),
            Cell(" ".join(part for part in (run.method, setting_of(run)) if part)),
            Cell(run.status),
            Cell(NONE if run.seed is None else str(run.seed), run.seed),
            shown(accuracy(run), lambda value: percent(value, 2)),
            shown(run.value("parameters"), short),
            shown(run.value("flops"), short),
            shown(sparsity(run), percent),
            shown(run.share("train_flops"), times),
            shown(run.value("train_seconds"), duration),
            shown(run.value("step_ms_at_end"), lambda value: digits(value, 1)),
        ]
        for run in runs[:most]
    ]
    more = f"; the first {most:,} of {len(runs):,}, the others are in the CSV" if len(runs) > most else ""
    return table("runs", f"Runs{more}", headings, rows, text_columns=3)


def costs_table(run: ReportedRun, at: int) -> Markup:
    """One run beside the dense network that it started from."""
    rows = []
    names = (
        ("neurons", "neurons"), ("parameters", "parameters"), ("flops", "FLOPs per image, exact"),
        ("paper_flops", "FLOPs per image, the paper's convention"), ("bytes", "bytes in memory"),
        ("train_flops", "training FLOPs"),
    )  # fmt: skip
    for name, words in names:
        now, dense = run.value(name), run.value(f"{name}_dense")
        if now is not None:
            row = [Cell(words), shown(now, short), shown(dense, short), shown(run.share(name), times)]
            rows.append([*row, shown(run.share(name), change)])
    headings = ("cost", "now", "dense", "ratio", "change")
    return table(f"costs-{at}", f"{run.name} beside the dense network", headings, rows)


def cuts_table(run: ReportedRun, at: int) -> Markup:
    """Every check of one run that removed something."""
    headings = (
        "step", "neurons removed", "dead", "saturated", "neurons left", "parameters left", "FLOPs of a forward",
        "seconds",
    )  # fmt: skip
    rows = [
        [
            Cell(digits(cut.step, 0), cut.step),
            Cell(digits(cut.removed, 0), cut.removed),
            shown(cut.dead, lambda value: digits(value, 0)),
            shown(cut.saturated, lambda value: digits(value, 0)),
            shown(cut.neurons, lambda value: digits(value, 0)),
            shown(cut.parameters, short),
            shown(cut.flops, short),
            shown(cut.seconds, lambda value: digits(value, 2)),
        ]
        for cut in run.cuts
        if cut.removed
    ]
    return table(f"cuts-{at}", f"Cuts of {run.name}", headings, rows, text_columns=0) if rows else Markup()


def claims_table(studies: list[StudySummary]) -> Markup:
    """A table of claims with the paper's number beside ours."""
    signs = {True: "✓ ", False: "✗ ", None: "? "}
    rows = [
        [
            Cell(f"{study.id}: {claim.sentence}" if len(studies) > 1 else claim.sentence),
            Cell(claim.paper or NONE),
            Cell(claim.ours or NONE),
            Cell(signs[claim.holds] + claim.verdict, claim.verdict),
        ]
        for study in studies
        for claim in study.claims
    ]
    return table(
        "claims", "The paper's number beside ours", ("claim", "paper", "ours", "verdict"), rows, text_columns=4
    )


def study_table(study: StudySummary) -> Markup:
    """Its own table, as the study words it."""
    if not study.rows:
        return Markup()
    rows = [[Cell(cell) for cell in row] for row in study.rows]
    notes = together(tag("p", note, class_="note") for note in study.notes)
    return table(f"table-{study.id}", study.title, study.headings, rows, text_columns=len(study.headings)) + notes


def failures(runs: list[ReportedRun]) -> Markup:
    """Runs that did not reach their end, and why."""
    failed = [run for run in runs if run.status != DONE and run.error]
    return together(tag("li", tag("b", run.name), f": {run.error}") for run in failed)


def under_way(runs: list[ReportedRun]) -> Markup:
    """Runs without a summary, and how far they are."""
    going = [run for run in runs if run.status == UNFINISHED]
    return together(
        tag("li", tag("b", run.name), f": step {digits(run.step, 0)} of {digits(run.steps, 0)}") for run in going
    )


def swatch(kind: str) -> Markup:
    """Colour and mark of a legend's entry."""
    colour, shape = kind.split()
    box, drawn = "-6 -6 12 12", {"class_": "mark"}
    if int(shape) >= len(MARKS):
        box, drawn = "-9 -6 18 12", {"class_": "line", "d": "M-8 0H8"}
    path = tag("path", **{"d": MARKS[int(shape) % len(MARKS)], **drawn})
    return tag("svg", path, class_=f"swatch {colour}", viewBox=box, aria_hidden="true")
