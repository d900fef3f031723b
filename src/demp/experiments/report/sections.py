"""The parts of a page: figures with their answers, studies, single runs, tables, what was left out."""

import base64
from collections.abc import Sequence

from demp.experiments.report.comparable import ComparableRuns
from demp.experiments.report.figures.course import course
from demp.experiments.report.figures.layers import layers
from demp.experiments.report.figures.looks import Looks
from demp.experiments.report.figures.speed import speed
from demp.experiments.report.figures.spending import cost, size
from demp.experiments.report.figures.survival import revival, survival
from demp.experiments.report.runs import ReportedRun
from demp.experiments.report.sources import Material
from demp.experiments.report.studies import StudySummary
from demp.experiments.report.svg import HALF, NARROW, WIDE, Figure, Panel
from demp.experiments.report.tables import (
    claims_table,
    costs_table,
    cuts_table,
    failures,
    runs_table,
    settings_table,
    study_table,
    swatch,
    under_way,
)
from demp.experiments.report.tags import Markup, tag, together
from demp.experiments.report.words import plural

FAMILIES = 4
"""Of so many, figures are drawn; the tables have all."""
FIGURES = 1_200_000
"""Bytes of the studies' own figures, together."""


def split_of(material: Material) -> str:
    """The name of the split on which accuracies were measured."""
    return next((str(run.outcome["split"]) for run in material.runs if run.outcome.get("split")), "test")


def comparisons(families: list[ComparableRuns], material: Material, rows: int) -> Markup:
    """The figures that show runs side by side, for every set of comparable runs."""
    split, index = split_of(material), {id(run): at for at, run in enumerate(material.runs[:rows])}
    parts = []
    for at, family in enumerate(families[:FAMILIES]):
        groups, dense = family.groups, family.dense
        looks, own = Looks.of(groups, f"-{at}"), {id(run) for run in family.runs}
        shown = [run for run in material.shown if id(run) in own]
        figures = [
            size(groups, dense, looks, index, split),
            cost(groups, dense, looks, index, split, shown),
            survival(groups, looks) if len(family.runs) > 1 else None,
            speed(groups, dense, shown),
        ]
        drawn = together(figure(one, f"family-{at}-{number}") for number, one in enumerate(figures) if one is not None)
        if drawn and len(families) > 1:
            parts.append(tag("section", tag("h2", family.name or "Other runs", class_="part")))
        parts.append(drawn)
    return together(parts)


def figure(one: Figure, prefix: str) -> Markup:
    """A question, its answer, its figures."""
    name = f"{prefix}-{one.id}"
    parts = [
        tag("h2", one.title, id=name),
        tag("p", one.answer, class_="answer"),
        tag("ul", *(key(kind, words) for kind, words in one.legend), class_="legend") if len(one.legend) > 1 else "",
        tag("div", *(panel(each, len(one.panels)) for each in one.panels), class_="panels"),
        tag("p", one.note, class_="note") if one.note else "",
    ]
    return tag("section", *parts, class_="figure", aria_labelledby=name) + "\n"


def key(kind: str, words: str) -> Markup:
    """One entry of a legend: a mark and its name."""
    return tag("li", tag("button", swatch(kind), words, type="button", data_m=words, aria_pressed="false"))


def panel(one: Panel, count: int) -> Markup:
    """A figure at two widths, of which the page shows one; ``count`` figures stand together."""
    half = one.half and count > 1
    wide, narrow = one.draw(HALF if half else WIDE), one.draw(NARROW)
    both = (tag("div", wide, class_="wide"), tag("div", narrow, class_="narrow"))
    return tag("div", *both, class_="panel half" if half else "panel")


def details(shown: Sequence[ReportedRun], several: bool) -> Markup:
    """What single runs did, one at a time where there are several."""
    articles, options = [], []
    for at, run in enumerate(shown):
        figures = [one for one in (course(run), layers(run), revival(run)) if one is not None]
        inside = together(figure(one, f"run-{at}") for one in figures)
        tables = (costs_table(run, at) if run.outcome else Markup()) + folded("Cuts", cuts_table(run, at))
        if not inside and not tables:
            continue
        articles.append(tag("article", inside, tables, class_="run", id=f"run-{at}", aria_label=run.name))
        options.append(tag("option", run.name, value=f"run-{at}"))
    if not articles:
        return Markup()
    if not several:
        return articles[0]
    pick = tag("label", "Run ", tag("select", *options, id="pick"), class_="pick")
    return tag("section", tag("h2", "One run at a time", class_="part"), pick, *articles, class_="detail")


def folded(words: str, content: Markup) -> Markup:
    """A part of the page that a reader opens with a click."""
    return tag("details", tag("summary", words), content) if content else Markup()


def numbers(families: list[ComparableRuns], material: Material, rows: int) -> Markup:
    """Return the section with the tables of all settings and all runs."""
    if len(material.runs) < 2:
        return Markup()
    split, count = split_of(material), plural(len(material.runs), "run")
    tables = settings_table(families, split) + folded(f"All {count}", runs_table(material.runs, split, rows))
    note = tag("p", "A heading sorts its column.", class_="note")
    return tag("section", tag("h2", "All numbers", class_="part"), note, tables)


def studies(found: Sequence[StudySummary]) -> Markup:
    """Claims with the paper's number beside ours, then every study's own figure and table."""
    parts = []
    if any(study.claims for study in found):
        parts.append(tag("section", tag("h2", "What the paper claims, and what we see"), claims_table(list(found))))
    left = FIGURES
    for study in found:
        left -= len(study.figure)
        inside = figure_of(study) if left >= 0 else Markup()
        table = study_table(study)
        inside += folded("Its table", table) if inside else table
        if inside or study.remark:
            about = " · ".join(one for one in (study.section, f"{study.scale} scale", study.runs) if one)
            words = (tag("p", about, class_="note"), tag("p", study.remark, class_="answer"))
            parts.append(tag("section", tag("h2", f"{study.id}: {study.title}"), *words, inside))
    return together(parts)


def figure_of(study: StudySummary) -> Markup:
    """Its figure as an image, which can run no script."""
    if not study.figure:
        return Markup()
    code = base64.b64encode(study.figure).decode()
    source = f"data:image/svg+xml;base64,{code}"
    return tag("div", tag("img", src=source, alt=f"{study.id}: {study.title}"), class_="paper")


def left_out(material: Material) -> Markup:
    """Runs that failed or have not ended, lines that were skipped."""
    faults = together(tag("li", str(fault)) for fault in material.skipped)
    skipped = f"{plural(material.lines_skipped, 'line')} skipped" if material.lines_skipped else "Files not read"
    lists = {"Runs that failed": failures(material.runs), "Runs that have not ended": under_way(material.runs)}
    parts = [
        tag("h3", words) + tag("ul", entries, class_="plain")
        for words, entries in (*lists.items(), (skipped, faults))
        if entries
    ]
    head = tag("h2", "Not in the figures", class_="part")
    return tag("section", head, *parts, id="left-out") if parts else Markup()
