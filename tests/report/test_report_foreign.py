"""Foreign text is text, odd files are a page or a sentence, and a page runs its own script only."""

import base64
import hashlib
import json
import random
import re
from pathlib import Path

import pytest
from poisoned import PAYLOADS, write_poisoned
from reading_pages import made
from runfolders import STUDY, lines_of, outcome, write_sweep

import demp.experiments.report
from demp.errors import UsageError
from demp.experiments.report.page import asset
from demp.experiments.report.tags import Markup, tag, together


def test_the_page_needs_no_network(sweep):
    _, reader, _ = made([sweep])
    for kind, attributes in reader.elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:"), kind
    for name in ("page.css", "page.js"):
        code = re.sub(r"\n// .*", "", asset(name))
        assert not re.search(r"https?:|//[a-z]|@import|\bfetch\b|XMLHttpRequest|url\(", code)


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028"


def test_names_are_text_wherever_they_stand(tmp_path):
    record = {"schema": 1, "name": HOSTILE, "labels": {"method": HOSTILE, "x": HOSTILE}, "status": "done"}
    record |= outcome("demp", 0, 10, 0.5, 0.9, machine=HOSTILE, model=HOSTILE, split=HOSTILE, data=HOSTILE)
    record["series"] = {"eval/top1": [[1, 0.5], [2, 0.6]], HOSTILE: [[1, 1], [2, 2]], "train/loss": [[1, 1], [2, 0.5]]}
    other = {**record, "name": "b", "status": "failed", "error": HOSTILE}
    (tmp_path / "r.jsonl").write_text(lines_of([record, other, {**record, "name": "c", "labels": {"method": "d"}}]))
    claim = {"sentence": HOSTILE, "paper": HOSTILE, "ours": HOSTILE, "holds": None}
    table = {"headings": [HOSTILE], "rows": [[HOSTILE]], "notes": [HOSTILE]}
    odd = {name: HOSTILE for name in ("id", "title", "section", "scale", "remark")} | {"table": table}
    (tmp_path / "fig1.json").write_text(json.dumps({**STUDY, **odd, "claims": [claim]}))
    _, reader, data = made([tmp_path])
    assert [tag for tag, _ in reader.elements].count("script") == 2
    assert not any(tag in ("img", "iframe") for tag, _ in reader.elements)
    assert data["runs"]["rows"][0][0] == HOSTILE


NUMBERS = (-1, 0, 1e308, -1e308, 1e-320, 1e39, 1e-39, float("nan"), float("inf"), 10**30, 10**400)
JUNK = (*NUMBERS, None, True, "", "x", "\ud800", [], [1], {}, {"a": {"b": 1}}, [[1, 2]])
ODD_CONFIGS = ("", "half = ", 'method = "x"\nsteps = "many"\n', "[model]\nname = 3\nsteps = -4\n")


def spoiled(value, draw, odds):
    """The same with a few values replaced, removed or added."""
    if draw.random() < odds:
        return draw.choice(JUNK)
    if isinstance(value, dict):
        kept = {k: spoiled(v, draw, odds) for k, v in value.items() if draw.random() > odds / 2}
        return kept | ({"odd": draw.choice(JUNK)} if draw.random() < odds else {})
    if isinstance(value, list):
        return [spoiled(one, draw, odds) for one in value]
    return value


@pytest.mark.parametrize("seed", range(40))
def test_whatever_lies_in_the_files_there_is_a_page_or_a_sentence(tmp_path, seed):
    draw = random.Random(seed)
    folder, odds = write_sweep(tmp_path / "sweep", seeds=1, steps=100), (0.02, 0.1, 0.3)[seed % 3]
    (folder / "fig3.json").write_text(json.dumps(STUDY))
    for file in sorted(folder.rglob("*.json*")):
        if file.suffix == ".json":
            file.write_text(json.dumps(spoiled(json.loads(file.read_text()), draw, odds)))
        else:
            records = [spoiled(json.loads(line), draw, odds) for line in file.read_text().splitlines()]
            file.write_text(lines_of(records))
    for file in sorted(folder.rglob("config.toml")):
        if draw.random() < odds:
            file.write_text(draw.choice(ODD_CONFIGS))
    for path in ([folder], sorted((folder / "runs").iterdir())):
        try:
            _, reader, _ = made(path)
        except UsageError:
            continue
        for _, attributes in reader.elements:
            places = [
                attributes.get(name) or "" for name in ("x", "y", "width", "height", "cx", "cy", "d", "transform")
            ]
            assert not re.search("nan|inf|None", " ".join(places))


def test_a_study_cannot_name_itself_out_of_its_table(tmp_path):
    odd = {**STUDY, "id": HOSTILE, "table": {"headings": ["a"], "rows": [["b"]], "notes": []}}
    (tmp_path / "fig1.json").write_text(json.dumps(odd))
    text, reader, _ = made([tmp_path])
    assert [tag for tag, _ in reader.elements].count("script") == 2 and "<script>alert" not in text
    assert dict(reader.elements[[tag for tag, _ in reader.elements].index("table")][1])


def test_markup_is_made_in_one_place():
    for file in Path(demp.experiments.report.__file__).parent.rglob("*.py"):
        if file.name != "tags.py":
            code = file.read_text()
            assert not re.search(r"""["'>]</?[a-z]+[ >]|\bescape\b""", code), file
            assert "Markup(" not in code.replace("Markup()", "") or file.name in ("page.py", "data.py"), file


def test_text_that_is_added_to_markup_is_escaped():
    made = tag("b", "<x>", tag("i", "&"), title='"') + "<y>"
    assert made == '<b title="&quot;">&lt;x&gt;<i>&amp;</i></b>&lt;y&gt;' and isinstance(made, Markup)
    assert "<z>" + made == f"&lt;z&gt;{made}" and isinstance("" + made, Markup)
    assert tag("p", f"{tag('b', 'x')}") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"
    assert together(("<", Markup("<br>"))) == "&lt;<br>" and tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert tag("td", "a\ud800b") == "<td>a\ufffdb</td>"


def test_the_page_may_run_its_own_script_only(sweep):
    text, reader, _ = made([sweep])
    policy = next(a["content"] for t, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    script, style = (
        re.search(r"<script>(.*?)</script>", text, re.S)[1],
        re.search(r"<style>(.*?)</style>", text, re.S)[1],
    )
    for name, code in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy.split("; ")
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "style=" not in text


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_in_every_string_is_text(tmp_path, payload):
    _, reader, _ = made([write_poisoned(tmp_path / "x", payload)])
    kinds = [tag for tag, _ in reader.elements]
    assert kinds.count("script") == 2 and kinds.count("img") <= 1 and not {"iframe", "textarea"} & set(kinds)
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
