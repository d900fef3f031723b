"""The parts of a page: figures with their answers, studies, single runs, tables, what was left out."""

import base64
from collections.abc import Sequence
from html import escape

from demp.report.pictures.course import course
from demp.report.pictures.layers import layers
from demp.report.pictures.looks import Looks
from demp.report.pictures.speed import speed
from demp.report.pictures.spending import cost, size
from demp.report.pictures.survival import revival, survival
from demp.report.runs import Run
from demp.report.sources import Material
from demp.report.studies import Study
from demp.report.svg import Figure, Panel
from demp.report.tables import (
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
from demp.report.words import plural
from demp.report.worlds import World

WIDE, HALF, NARROW = 960.0, 462.0, 340.0
"""Pixels of a picture across the page, of two side by side, and on a phone."""
WORLDS = 4
"""Of so many, pictures are drawn; the tables have all."""
PICTURES = 1_200_000
"""Bytes of the studies' own pictures, together."""


def split_of(material: Material) -> str:
    """What the accuracies are of."""
    return next((str(run.outcome["split"]) for run in material.runs if run.outcome.get("split")), "test")


def comparisons(worlds: list[World], material: Material, rows: int) -> str:
    """The pictures that show runs side by side, for every world."""
    split, index = split_of(material), {id(run): at for at, run in enumerate(material.runs[:rows])}
    parts = []
    for at, world in enumerate(worlds[:WORLDS]):
        groups, dense = world.groups, world.dense
        looks, own = Looks.of(groups, f"-{at}"), {id(run) for run in world.runs}
        shown = [run for run in material.shown if id(run) in own]
        figures = [
            size(groups, dense, looks, index, split),
            cost(groups, dense, looks, index, split, shown),
            survival(groups, looks) if len(world.runs) > 1 else None,
            speed(groups, dense, shown),
        ]
        drawn = "".join(figure(one, f"world-{at}-{number}") for number, one in enumerate(figures) if one is not None)
        if drawn and len(worlds) > 1:
            parts.append(f"<section><h2 class=part>{escape(world.name or 'Other runs')}</h2></section>")
        parts.append(drawn)
    return "".join(parts)


def figure(one: Figure, prefix: str) -> str:
    """A question, its answer, its pictures."""
    legend = "".join(key(kind, words) for kind, words in one.legend)
    keys = f"<ul class=legend>{legend}</ul>" if len(one.legend) > 1 else ""
    panels = "".join(panel(each, len(one.panels)) for each in one.panels)
    small = f"<p class=note>{escape(one.note)}</p>" if one.note else ""
    name = f"{prefix}-{one.id}"
    return (
        f'<section class="figure" aria-labelledby="{name}"><h2 id="{name}">{escape(one.title)}</h2>'
        f"<p class=answer>{escape(one.answer)}</p>{keys}<div class=panels>{panels}</div>{small}</section>\n"
    )


def key(kind: str, words: str) -> str:
    """An entry of a legend."""
    name = escape(words)
    return f'<li><button type="button" data-m="{name}" aria-pressed="false">{swatch(kind)}{name}</button></li>'


def panel(one: Panel, together: int) -> str:
    """A picture at two widths, of which the page shows one."""
    half = one.half and together > 1
    wide, narrow = one.draw(HALF if half else WIDE), one.draw(NARROW)
    kind = "panel half" if half else "panel"
    return f'<div class="{kind}"><div class=wide>{wide}</div><div class=narrow>{narrow}</div></div>'


def details(shown: Sequence[Run], several: bool) -> str:
    """What single runs did, one at a time where there are several."""
    articles, options = [], []
    for at, run in enumerate(shown):
        figures = [one for one in (course(run), layers(run), revival(run)) if one is not None]
        inside = "".join(figure(one, f"run-{at}") for one in figures)
        tables = (costs_table(run, at) if run.outcome else "") + folded("Cuts", cuts_table(run, at))
        if not inside and not tables:
            continue
        articles.append(
            f'<article class="run" id="run-{at}" aria-label="{escape(run.name)}">{inside}{tables}</article>'
        )
        options.append(f'<option value="run-{at}">{escape(run.name)}</option>')
    if not articles:
        return ""
    if not several:
        return articles[0]
    pick = f'<label class=pick>Run <select id="pick">{"".join(options)}</select></label>'
    return f'<section class="detail"><h2 class=part>One run at a time</h2>{pick}{"".join(articles)}</section>'


def folded(words: str, content: str) -> str:
    """Something that a reader opens."""
    return f"<details><summary>{escape(words)}</summary>{content}</details>" if content else ""


def numbers(worlds: list[World], material: Material, rows: int) -> str:
    """All settings and runs."""
    if len(material.runs) < 2:
        return ""
    split, count = split_of(material), plural(len(material.runs), "run")
    tables = settings_table(worlds, split) + folded(f"All {count}", runs_table(material.runs, split, rows))
    return f"<section><h2 class=part>All numbers</h2><p class=note>A heading sorts its column.</p>{tables}</section>"


def studies(found: Sequence[Study]) -> str:
    """Claims with the paper's number beside ours, then every study's own picture and table."""
    parts = []
    if any(study.claims for study in found):
        parts.append(f"<section><h2>What the paper claims, and what we see</h2>{claims_table(list(found))}</section>")
    left = PICTURES
    for study in found:
        left -= len(study.picture)
        inside = picture_of(study) if left >= 0 else ""
        table = study_table(study)
        inside += folded("Its table", table) if inside else table
        if inside or study.remark:
            about = " · ".join(one for one in (study.section, f"{study.scale} scale", study.runs) if one)
            parts.append(
                f"<section><h2>{escape(f'{study.id}: {study.title}')}</h2><p class=note>{escape(about)}</p>"
                f"<p class=answer>{escape(study.remark)}</p>{inside}</section>"
            )
    return "".join(parts)


def picture_of(study: Study) -> str:
    """Its figure as an image, which can run no script."""
    if not study.picture:
        return ""
    code = base64.b64encode(study.picture).decode()
    source = f"data:image/svg+xml;base64,{code}"
    return f'<div class="paper"><img src="{source}" alt="{escape(f"{study.id}: {study.title}")}"></div>'


def left_out(material: Material) -> str:
    """Runs that failed or have not ended, lines that were skipped."""
    failed = failures(material.runs)
    parts = [f"<h3>Runs that failed</h3><ul class=plain>{failed}</ul>"] if failed else []
    going = under_way(material.runs)
    parts += [f"<h3>Runs that have not ended</h3><ul class=plain>{going}</ul>"] if going else []
    if material.skipped:
        faults = "".join(f"<li>{escape(str(fault))}</li>" for fault in material.skipped)
        said = f"{plural(material.lines_skipped, 'line')} skipped" if material.lines_skipped else "Files not read"
        parts.append(f"<h3>{said}</h3><ul class=plain>{faults}</ul>")
    return f'<section id="left-out"><h2 class=part>Not in the pictures</h2>{"".join(parts)}</section>' if parts else ""
