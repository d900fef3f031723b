"""What stands in the pages: blocks of Python with their hidden set-up, and command lines.

A page is one namespace, its blocks run in order, as a reader would type them. What a reader is assumed to have (a
model, a loader) is Python in a comment that begins with ``<!-- python``. Blocks of prompts are examples of `doctest`.
Thirty lines instead of a library: pages stay plain Markdown, and a traceback names the line of the page.
"""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(
    r"^```(?P<kind>\w*)\n(?P<code>.*?)^```$|^<!-- python\n(?P<hidden>.*?)^-->$", re.MULTILINE | re.DOTALL
)
SHELL = ("", "sh", "console")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Language, text and first line of each fenced block and hidden set-up."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        group = "hidden" if found["hidden"] is not None else "code"
        kind = "python" if group == "hidden" else found["kind"]
        yield kind, found[group], text[: found.start(group)].count("\n") + 1


def run(page: Path) -> dict[str, Any]:
    """Every block of Python in order, in one namespace."""
    names: dict[str, Any] = {"__name__": "__page__"}
    for kind, code, line in blocks(page):
        if kind != "python":
            continue
        if code.startswith(">>> "):
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line - 1)
            said: list[str] = []
            runner.run(test, out=said.append, clear_globs=False)
            names.update(test.globs)
            assert not runner.failures, "".join(said)
            continue
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
    return names


def shell_lines(page: Path) -> list[str]:
    """Commands of the shell blocks, continued lines joined, comments, loops and prompts taken away."""
    found = []
    for kind, code, _ in blocks(page):
        if kind in SHELL:
            text = code.replace("\\\n", " ")
            found += [part.strip() for line in text.splitlines() for part in re.sub(r"\s#.*", "", line).split(";")]
    return [re.sub(r"^(\$ |do |then )+", "", line) for line in found if line]


def spoken(page: Path) -> list[str]:
    """Commands in the prose, between backticks."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`((?:demp|make) [^`]+)`(?!`)", text)]
