"""The page: headline, figures with their answers, tables, what was left out; one file, no network."""

import base64
import hashlib
from dataclasses import replace
from datetime import datetime
from importlib import resources

from demp import __version__
from demp.experiments.report.comparable import comparable_runs
from demp.experiments.report.data import data, embedded
from demp.experiments.report.headline import Headline, headline
from demp.experiments.report.sections import comparisons, details, left_out, numbers, studies
from demp.experiments.report.sources import Material
from demp.experiments.report.tags import Markup, tag, together
from demp.experiments.report.words import plural

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
    """The page with at most so many single runs in tables and figures."""
    families = comparable_runs(material.runs)
    content = [
        studies(material.studies),
        comparisons(families, material, rows),
        details(material.shown, len(material.runs) > 1),
        numbers(families, material, rows),
        left_out(material),
    ]
    return document(headline(material.runs, material.studies, families), together(content), material, refresh)


def document(top: Headline, content: Markup, material: Material, refresh: float | None) -> str:
    """Head and body around the sections."""
    style, script = Markup(f"\n{asset('page.css')}"), Markup(f"\n{asset('page.js')}")
    again = tag("noscript", tag("meta", http_equiv="refresh", content=f"{refresh:g}")) if refresh else ""
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{top.title} · demp") + again,
        tag("style", style),
    )
    body = (
        beginning(top, refresh),
        tag("main", "\n", content, "\n"),
        footer(material),
        tag("div", id="tip", role="status", hidden=""),
        tag("script", embedded(data(material)), type="application/json", id="data"),
        tag("script", script),
    )
    parts = [
        tag(name, "\n", *(line for one in inside for line in (one, "\n")))
        for name, inside in (("head", head), ("body", body))
    ]
    live = f"{refresh:g}" if refresh else None
    return Markup("<!doctype html>\n") + tag("html", "\n", *parts, lang="en", data_refresh=live) + "\n"


def policy(style: str, script: str) -> str:
    """What the page may do: its own style and script, figures that it holds, nothing else, whatever it says."""
    own = {name: sha256_of(code) for name, code in (("style-src", style), ("script-src", script))}
    rules = ["default-src 'none'", *(f"{name} 'sha256-{code}'" for name, code in own.items()), "img-src data:"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def sha256_of(code: str) -> str:
    """As a content security policy has it."""
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def beginning(top: Headline, refresh: float | None) -> Markup:
    """What was found, in large print."""
    download = [tag("button", name.upper(), type="button", id=name) for name in ("csv", "json")]
    theme = tag("button", "◐", type="button", id="theme", aria_label="Colours: as the system")
    tools = tag("span", *download, "\n", theme, class_="tools")
    live = f"Follows a live run: this page loads again every {refresh:g} s." if refresh else ""
    figures = [
        tag("div", tag("dt", n.words), tag("dd", n.value), tag("dd", n.detail, class_="detail")) for n in top.numbers
    ]
    return tag(
        "header",
        tag("div", tag("span", "demp report", class_="brand"), tools, class_="bar"),
        tag("h1", top.title),
        tag("p", top.subject, class_="subject"),
        tag("p", live, class_="live", role="status") if live else "",
        tag("dl", *figures, class_="numbers"),
    )


def footer(material: Material) -> Markup:
    """From which files, by which version, when."""
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    paths = ", ".join(str(path) for path in material.paths)
    return tag("footer", " · ".join((paths, plural(len(material.runs), "run"), f"demp {__version__}", made)))


def asset(name: str) -> str:
    """Style or script of the page."""
    return (resources.files("demp.experiments.report") / name).read_text(encoding="utf-8")
