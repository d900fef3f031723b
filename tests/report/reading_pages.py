"""Read a page of the report: its elements, its texts, its data."""

import json
import re
from html.parser import HTMLParser

from demp.experiments.report import gather, page

EMPTY = {"meta", "link", "img", "br", "input", "path", "rect", "circle"}


class Reader(HTMLParser):
    """Elements, their texts, and whether every one that was opened is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def made(paths, **more):
    """The page of what lies there: its text, its elements, its data."""
    text = page(gather(paths), **more)
    reader = Reader(text)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))
    return text, reader, data


def words(reader, tag):
    """The texts of all elements of a kind, spaces made plain."""
    return [text.replace("\u202f", " ").strip() for text in reader.texts.get(tag, []) if text.strip()]
