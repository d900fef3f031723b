"""The page: headline, pictures with their answers, tables, what was left out; one file, no network."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from html import escape
from importlib import resources

from demp import __version__
from demp.report.data import data, embedded
from demp.report.groups import Dense, groups_of
from demp.report.headline import Headline, headline
from demp.report.pictures.course import course
from demp.report.pictures.layers import layers
from demp.report.pictures.looks import Looks
from demp.report.pictures.speed import speed
from demp.report.pictures.spending import cost, size
from demp.report.pictures.survival import revival, survival
from demp.report.runs import Run
from demp.report.sources import Material
from demp.report.svg import Figure, Panel
from demp.report.tables import (
    claims_table,
    costs_table,
    cuts_table,
    failures,
    runs_table,
    settings_table,
    swatch,
    under_way,
)
from demp.report.words import plural

WIDE, HALF, NARROW = 960.0, 462.0, 340.0
"""Pixels of a picture across the page, of two side by side, and on a phone."""
LARGEST = 2_900_000
"""Bytes that a page shall not pass, so that it goes by mail."""
SIZES = ((8, 2000), (4, 1000), (2, 300), (1, 100))
"""(runs shown one by one, runs in the table and as points): the first that fits is taken."""


def page(material: Material, *, refresh: float | None = None) -> str:
    """The whole file. With ``refresh`` it loads itself again after so many seconds."""
    text = ""
    for shown, rows in SIZES:
        text = drawn(replace(material, shown=material.shown[:shown]), rows, refresh)
        if len(text.encode()) <= LARGEST:
            break
    return text


def drawn(material: Material, rows: int, refresh: float | None) -> str:
    """The page with at most so many single runs in tables and pictures."""
    groups, dense = groups_of(material.runs), Dense(material.runs)
    top = headline(material.runs, material.studies, groups, dense)
    split = next((str(run.outcome["split"]) for run in material.runs if run.outcome.get("split")), "test")
    looks = Looks.of(groups)
    index = {id(run): at for at, run in enumerate(material.runs[:rows])}
    several = len(material.runs) > 1
    sections = [claims_section(material)]
    figures = [
        size(groups, dense, looks, index, split),
        cost(groups, dense, looks, index, split, material.shown),
        survival(groups, looks) if several else None,
        speed(groups, dense, material.shown),
    ]
    sections += [figure(one, at) for at, one in enumerate(figures) if one is not None]
    sections += [details(material.shown, several)]
    sections += [numbers(material, split, rows), left_out(material)]
    return document(top, "".join(sections), material, refresh)


def document(top: Headline, content: str, material: Material, refresh: float | None) -> str:
    """Head and body around the sections."""
    again = f'<noscript><meta http-equiv="refresh" content="{refresh:g}"></noscript>' if refresh else ""
    live = f' data-refresh="{refresh:g}"' if refresh else ""
    note = (
        f'<p class="live" role="status">Follows a live run: this page loads again every {refresh:g} s.</p>'
        if refresh
        else ""
    )
    figures = "".join(
        f"<div><dt>{escape(n.words)}</dt><dd>{escape(n.value)}</dd><dd class=detail>{escape(n.detail)}</dd></div>"
        for n in top.numbers
    )
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    paths = ", ".join(escape(str(path)) for path in material.paths)
    return f"""<!doctype html>
<html lang="en"{live}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(top.title)} · demp</title>{again}
<style>
{asset("page.css")}</style>
</head>
<body>
<header>
<div class="bar"><span class="brand">demp report</span><span class="tools">
<button type="button" id="csv">CSV</button><button type="button" id="json">JSON</button>
<button type="button" id="theme" aria-label="Colours: as the system">◐</button></span></div>
<h1>{escape(top.title)}</h1>
<p class="subject">{escape(top.subject)}</p>
{note}<dl class="numbers">{figures}</dl>
</header>
<main>
{content}
</main>
<footer>{paths} · {plural(len(material.runs), "run")} · demp {escape(__version__)} · {escape(made)}</footer>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">{embedded(data(material))}</script>
<script>
{asset("page.js")}</script>
</body>
</html>
"""


def asset(name: str) -> str:
    """Style or script of the page."""
    return (resources.files("demp.report") / name).read_text(encoding="utf-8")


def figure(one: Figure, at: int, prefix: str = "figure") -> str:
    """A question, its answer, its pictures."""
    legend = "".join(key(kind, words) for kind, words in one.legend)
    keys = f"<ul class=legend>{legend}</ul>" if len(one.legend) > 1 else ""
    panels = "".join(panel(each, len(one.panels)) for each in one.panels)
    small = f"<p class=note>{escape(one.note)}</p>" if one.note else ""
    name = f"{prefix}-{at}-{one.id}"
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
        inside = "".join(figure(one, index, f"run-{at}") for index, one in enumerate(figures))
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


def numbers(material: Material, split: str, rows: int) -> str:
    """All settings and runs."""
    if len(material.runs) < 2:
        return ""
    groups, dense = groups_of(material.runs), Dense(material.runs)
    tables = settings_table(groups, dense, split) + folded(
        f"All {plural(len(material.runs), 'run')}", runs_table(material.runs, split, rows)
    )
    return f"<section><h2 class=part>All numbers</h2><p class=note>A heading sorts its column.</p>{tables}</section>"


def claims_section(material: Material) -> str:
    """Claims of the paper, where a study was given."""
    if not any(study.claims for study in material.studies):
        return ""
    return f"<section><h2>What the paper claims, and what we see</h2>{claims_table(material.studies)}</section>"


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
