"""The page: headline, pictures with their answers, tables, what was left out; one file, no network."""

from dataclasses import replace
from datetime import datetime
from html import escape
from importlib import resources

from demp import __version__
from demp.report.data import data, embedded
from demp.report.headline import Headline, headline
from demp.report.sections import comparisons, details, left_out, numbers, studies
from demp.report.sources import Material
from demp.report.words import plural
from demp.report.worlds import worlds_of

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
    worlds = worlds_of(material.runs)
    content = [
        studies(material.studies),
        comparisons(worlds, material, rows),
        details(material.shown, len(material.runs) > 1),
        numbers(worlds, material, rows),
        left_out(material),
    ]
    return document(headline(material.runs, material.studies, worlds), "".join(content), material, refresh)


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
