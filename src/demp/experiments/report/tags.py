"""The one place that makes markup: everything else is text, and is escaped on its way in."""

from collections.abc import Iterable
from html import escape
from typing import Any

from demp.files import HALVES

ALONE = frozenset({"meta", "link", "img"})
"""Elements of HTML that have no end."""
SHAPES = frozenset({"path", "rect", "circle"})
"""Elements of SVG that hold nothing."""


class Markup(str):
    """Text that is markup already. Anything that is added to it and is not is escaped."""

    __slots__ = ()

    def __add__(self, other: str) -> "Markup":
        return together((self, other))

    def __radd__(self, other: str) -> "Markup":
        return together((other, self))


def escaped(text: str) -> str:
    """Text as it stands between tags and in attributes; markup as it is."""
    if isinstance(text, Markup):
        return text
    return escape(text) if text.isascii() else HALVES.sub("\ufffd", escape(text))


def together(parts: Iterable[str]) -> Markup:
    """Markup and texts one after another."""
    return Markup("".join(map(escaped, parts)))


def num(value: float) -> str:
    """A place, to a tenth of a pixel."""
    text = f"{value:.1f}"
    return text.removesuffix(".0") if text != "-0.0" else "0"


def tag(name: str, /, *content: str, **attributes: Any) -> Markup:
    """An element; ``class_`` and ``data_x`` become class and data-x, None is left out; what is no markup is escaped."""
    parts = []
    for key, value in attributes.items():
        if value is None:
            continue
        shown = num(value) if isinstance(value, float) else escaped(str(value))
        parts.append(f' {key.rstrip("_").replace("_", "-")}="{shown}"')
    start = f"<{name}{''.join(parts)}"
    if name in ALONE:
        return Markup(f"{start}>")
    inside = together(content)
    return Markup(f"{start}/>" if name in SHAPES and not inside else f"{start}>{inside}</{name}>")
