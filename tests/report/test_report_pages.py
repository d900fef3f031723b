"""The page: whole, self-contained, the numbers those of the files, whatever lies in the files."""

import base64
import hashlib
import importlib
import json
import math
import random
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
from poisoned import PAYLOADS, write_poisoned
from runfolders import STUDY, append, lines_of, outcome, write_run, write_sweep

import demp.experiments.report
from demp.errors import UsageError
from demp.experiments.report import gather, page, write, written
from demp.experiments.report.page import asset
from demp.experiments.report.tags import Markup, tag, together

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


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweep") / "sweep")


def test_the_headline_of_a_sweep(sweep):
    _, reader, _ = made([sweep])
    assert words(reader, "h1") == ["−40 % parameters, −0.4 points of accuracy, step 0.80×"]
    assert words(reader, "dd")[:8] == [
        "−40 %", "10 k → 6 k", "−40 %", "1 M → 600 k", "89.7 %", "± 0.14 %; dense 90.1 %, −0.4 points of accuracy",
        "0.80×", "of dense's, checks and scorings included",
    ]  # fmt: skip
    why = (
        "demp, strength 0.01: the smallest within one point of dense of 2 settings, 2 seeds. mlp on digits, 200 steps."
    )
    assert why in words(reader, "p")
    answers = " ".join(words(reader, "p"))
    assert "Within one point of dense (90.1 %), demp, strength 0.01 needs the fewest FLOPs: 60 % of dense's" in answers
    assert "1 of 2 settings stays within it" in answers
    assert "demp, strength 0.1 spends 60 % of dense training's FLOPs and 0.60× its time, for 88.5 % accuracy" in answers
    assert "demp, strength 0.1 keeps fewest, 20 %; half of what it removes is gone after 25 % of the run." in answers
    assert "A training step of demp, strength 0.1 takes 0.60× of dense's; 2 of 2 settings are faster" in answers


def test_every_picture_that_the_data_allow(sweep):
    text, reader, _ = made([sweep])
    assert words(reader, "h2") == [
        "What does a smaller network cost in accuracy?", "What does training cost?", "When do neurons go?",
        "Is it faster?", "One run at a time", *["What happened when?", "What is left of each layer?"] * 4,
        "What happened when?", "All numbers",
    ]  # fmt: skip
    for label in ("test accuracy against inference FLOPs, of dense", "test accuracy against weights removed or masked"):
        drawn = re.findall(rf'<svg [^>]*aria-label="{label}".*?</svg>', text, re.S)
        assert len(drawn) == 2  # wide and narrow
        for one in drawn:
            assert one.count("<circle") == 6 and one.count('class="mark ') == 3 and 'class="band"' in one
    assert len({attributes["id"] for _, attributes in reader.elements if "id" in attributes}) == len(
        [1 for _, attributes in reader.elements if "id" in attributes]
    )


def pictures(text, label):
    return re.findall(rf'<svg [^>]*aria-label="{label}".*?</svg>', text, re.S)


@pytest.mark.parametrize(("many", "sizes"), [(6, [6]), (9, [4, 5])])
def test_no_picture_has_more_than_six_lines_or_methods(tmp_path, many, sizes):
    strengths, names = [at / 100 for at in range(1, many + 1)], [f"method{at}" for at in range(many)]
    folder = write_sweep(tmp_path / "sweep", 1, strengths, gone=0.1, names=names)
    text, reader, _ = made([folder])
    lines = [re.findall(r'class="line s\d" data-m="(\w+)"', one) for one in pictures(text, "Neurons that remain.*?")]
    assert [len(one) for one in lines] == [size for size in sizes for _ in range(2)]  # wide and narrow
    assert sorted(name for one in lines for name in one) == sorted(2 * names)
    for one in pictures(text, "test accuracy against inference FLOPs, of dense"):
        assert len(set(re.findall(r'class="series s\d" data-m="(\w+)"', one))) in sizes
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_lines_carry_their_names_instead_of_a_legend(sweep, tmp_path):
    text, _, _ = made([sweep])
    (figure,) = re.findall(r'<section [^>]*survival">.*?</section>', text, re.S)
    for one in pictures(figure, "Neurons that remain against the step"):
        assert [len(re.findall(f'class="t s0">[^<]*strength {s}<', one)) for s in ("0.01", "0.1")] == [1, 1]
    assert 'class="legend"' not in figure
    long = [f"{'x' * 40}{at}{'y' * 40}" for at in range(2)]
    text, _, _ = made([write_sweep(tmp_path / "long", strengths=(0.01, 0.01), names=long)])
    (figure,) = re.findall(r'<section [^>]*survival">.*?</section>', text, re.S)
    assert 'class="legend"' in figure  # cut names would be the same


def test_marks_lie_where_the_numbers_say(tmp_path):
    """Places of the marks, read back through the axes' labels."""
    text, _, data = made([write_sweep(tmp_path / "sweep", seeds=3)])
    drawn = re.search(r'<svg [^>]*aria-label="test accuracy against inference FLOPs, of dense".*?</svg>', text, re.S)[0]
    ticks = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="t" text-anchor="(\w+)">([\d.]+)\u202f%</text>', drawn)
    across = [(float(x), float(value)) for x, _, anchor, value in ticks if anchor == "middle"]
    up = [(float(y) - 4, float(value)) for _, y, anchor, value in ticks if anchor == "end"]

    def read_off(marks, place):
        (p0, v0), (p1, v1) = marks[0], marks[-1]
        return v0 + (place - p0) / (p1 - p0) * (v1 - v0)

    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" data-i="(\d+)"/>', drawn)
    assert len(circles) == 9
    names = data["runs"]["columns"]
    for x, y, row in circles:
        run = dict(zip(names, data["runs"]["rows"][int(row)], strict=True))
        assert read_off(across, float(x)) == pytest.approx(100 * run["flops_share"], abs=0.1)
        assert read_off(up, float(y)) == pytest.approx(100 * run["accuracy"], abs=0.02)


def test_a_single_run_stands_beside_its_dense_network(tmp_path):
    text, reader, data = made([write_run(tmp_path / "run", removed=0.5)])
    assert words(reader, "h1") == ["−50 % parameters, 90.0 % accuracy, step 0.57×"]
    answers = words(reader, "p")
    assert "32 of 64 neurons went in 4 cuts, the first at step 25; half of them were gone by step 50 of 200." in answers
    assert "50 % of the neurons are gone; act lost most (4 of 8 left)." in answers
    assert "<select" not in text and 'id="settings"' not in text
    assert [row[:2] for row in data["cuts"]["run"]] == [[25, 8], [50, 8], [75, 8], [100, 8]]
    assert data["series"]["run"]["train/loss"][0] == [5, 0.4]


def test_widths_are_drawn_to_scale(tmp_path):
    text, _, _ = made([write_run(tmp_path / "run", removed=0.5)])
    heat = re.search(r'<svg [^>]*aria-label="run: width of each layer over time".*?</svg>', text, re.S)[0]
    cell = r'<rect x="[\d.]+" y="[\d.]+" width="([\d.]+)" height="[\d.]+" class="heat" fill-opacity="([\d.]+)" '
    cells = re.findall(cell + r'data-t="layer2.act\nsteps (\d+) to (\d+): (\d+) of 40 neurons"', heat)
    assert [(int(a), int(b), int(n)) for *_, a, b, n in cells] == [
        (0, 25, 40), (25, 50, 35), (50, 75, 30), (75, 100, 25), (100, 200, 20),
    ]  # fmt: skip
    pixels = float(cells[-1][0]) / 100
    for width, opacity, begin, end, now in cells:
        assert float(width) == pytest.approx(pixels * (int(end) - int(begin)), abs=0.1)
        assert float(opacity) == pytest.approx(0.07 + 0.93 * int(now) / 40, abs=0.0051)


def test_a_monitor_shows_overlap_and_revival(tmp_path):
    folder = write_run(tmp_path / "run")
    for step, overlap, back in ((50, 0.5, 3), (100, 0.8, 1), (150, 0.9, 0)):
        append(folder / "metrics.jsonl", lines_of([{"step": step, "dead/overlap": overlap, "dead/revived": back}]))
    _, reader, _ = made([folder])
    assert "Do the dead stay dead?" in words(reader, "h2")
    assert (
        "The dead in the end overlap by 90 % with all that were dead before. 1.3 neurons came back to life "
        "between two looks on average, at most 3 (by step 50)."
    ) in words(reader, "p")


def test_times_of_exports_are_bars(tmp_path):
    folder = write_run(tmp_path / "run")
    timing = {"batch": 8, "pairs": 5, "latency_ms": 2.0, "dense_latency_ms": 5.0, "latency_ratio": 0.4}
    (folder / "export-onnx").mkdir()
    more = [{"batch": 1}, "odd"]
    report = {"timings": [timing | {"throughput_ratio": 2.5}, *more]}
    (folder / "export-onnx" / "export.json").write_text(json.dumps(report))
    text, reader, _ = made([folder])
    assert "Exported, run answers 2.50× as many pictures per second as dense at batch 8." in words(reader, "p")
    shown = re.search(r'aria-label="throughput, pictures per second".*?</svg>', text, re.S)[0]
    assert 'data-t="batch 8, pruned\n4\u202fk"' in shown and 'data-t="batch 8, dense\n1.6\u202fk"' in shown


def test_a_smoke_study_tests_nothing_and_says_so(tmp_path):
    (tmp_path / "fig3.json").write_text(json.dumps(STUDY | {"scale": "smoke"}))
    _, reader, _ = made([tmp_path / "fig3.json"])
    assert words(reader, "h1") == ["A smoke test: 3 claims not tested"]
    assert not any("hold" in text for tag in ("h1", "dt", "dd") for text in words(reader, tag))


def test_the_first_screen_says_at_which_scale_width_and_seeds_claims_were_tested(tmp_path):
    for number, scale in ((3, "cpu"), (8, "paper")):
        (tmp_path / f"fig{number}.json").write_text(json.dumps(STUDY | {"id": f"fig{number}", "scale": scale}))
    lines = []
    for method, seed in (("dense", 0), ("demp", 0), ("demp", 1), ("demp", 2)):
        config = {"model": {"name": "resnet18", "width": 0.25}, "seed": seed}
        labels = {"method": method, "setting": {}, "seed": seed}
        lines.append({"schema": 1, "name": f"{method}-{seed}", "labels": labels, "status": "done", "seed": seed,
                      "work": "train", "arguments": {"config": config},
                      **outcome(method, seed, 200, 0.4, 0.9, machine="a machine")})  # fmt: skip
    (tmp_path / "fig3.jsonl").write_text(lines_of(lines))
    _, reader, _ = made([tmp_path])
    assert words(reader, "h1") == ["2 of 6 claims hold, 2 undecided"]
    assert "2 studies, cpu and paper scale, width 0.25, 3 seeds." in words(reader, "p")


def test_a_page_where_nothing_was_removed_says_so_and_what_to_try(tmp_path):
    for method, accuracy in (("dense", 0.9), ("demp", 0.9 - 1 / 355)):
        write_run(tmp_path / "runs" / method, method, 0, 200, 0.0, accuracy)
        file = tmp_path / "runs" / method / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"test_images": 355}))
    _, reader, _ = made([tmp_path / "runs"])
    assert words(reader, "h1")[0].startswith("Nothing was removed, no difference beyond one image in 355")
    assert any("To remove some: name what may be left (--budget flops=0.4)" in text for text in words(reader, "p"))


def test_a_difference_carries_its_noun_and_one_image_is_none():
    from demp.experiments.report.words import points

    assert points(-0.0061) == "−0.6 points of accuracy"
    assert points(1 / 355, 355) == points(-1 / 355, 355) == "no difference beyond one image in 355"
    assert points(2 / 355, 355) == "+0.6 points of accuracy"
    assert points(None) == "–"


def test_claims_stand_beside_ours(tmp_path):
    (tmp_path / "fig3.json").write_text(json.dumps(STUDY))
    (tmp_path / "fig3.svg").write_text("<svg><script>alert(1)</script></svg>")
    text, reader, data = made([tmp_path / "fig3.json"])
    assert words(reader, "h1") == ["1 of 3 claims hold, 1 undecided"]
    rows = re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", text, re.S)
    cells = [[re.sub("<.*?>", "", cell) for cell in re.split(r"(?=<t[hd])", row) if cell] for row in rows]
    assert cells == [
        ["A holds", "1.2 points", "1.0 points", "✓ holds"], ["B does not", "80 %", "40 %", "✗ does not hold"],
        ["C is open", "1.7", "–", "? open"], ["demp", "90 %"],
    ]  # fmt: skip
    (image,) = [found for tag, found in reader.elements if tag == "img"]
    assert (
        base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
        == (tmp_path / "fig3.svg").read_bytes()
    )
    assert "Structured pruning, Sec. 4.1, 3 of 4 runs, cpu scale." in words(reader, "p")
    assert "One seed." in words(reader, "p")
    assert [claim["holds"] for claim in data["claims"]] == [True, False, None]


def test_what_failed_and_what_was_skipped_is_named(sweep, tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text((sweep / "results" / "here-1.jsonl").read_text())
    failed = {
        "schema": 1,
        "name": "snap-s0",
        "labels": {"method": "snap"},
        "status": "failed",
        "error": "out of <memory>",
    }
    append(file, lines_of([failed]) + "nonsense\n")
    _, reader, data = made([file])
    assert "Not in the pictures" in words(reader, "h2") and "1 line skipped" in words(reader, "h3")
    assert ": out of <memory>" in words(reader, "li") and f"{file}: line 8: not JSON" in words(reader, "li")
    assert data["runs"]["rows"][-1][-1] == "out of <memory>"
    assert data["skipped"] == [{"file": str(file), "reason": "not JSON", "count": 1, "numbers": [8]}]


def test_a_run_under_way(tmp_path):
    _, reader, _ = made([write_run(tmp_path / "run", upto=50, steps=200)], refresh=3)
    assert words(reader, "h1") == ["Step 50 of 200: −25 % parameters so far"]
    assert dict(reader.elements)["html"]["data-refresh"] == "3"
    assert any(tag == "meta" and found.get("http-equiv") == "refresh" for tag, found in reader.elements)
    _, reader, _ = made([tmp_path / "run"])
    assert "data-refresh" not in dict(reader.elements)["html"]


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


def test_a_large_page_is_drawn_smaller(sweep, monkeypatch):
    full = len(page(gather([sweep])).encode())
    assert full < 400_000
    monkeypatch.setattr(importlib.import_module("demp.experiments.report.page"), "LARGEST", full - 1)
    smaller, _, data = made([sweep])
    assert len(smaller.encode()) < full and len(data["series"]) == 4 and len(data["runs"]["rows"]) == 6


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


def test_writing_says_what_was_read(sweep, tmp_path):
    result = write([sweep], tmp_path / "new" / "page.html")
    file = tmp_path / "new" / "page.html"
    assert result == {
        "out": str(file), "bytes": file.stat().st_size, "runs": 6, "claims": 0, "skipped_lines": 0, "skipped": [],
        "live": False,
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"is a folder; give a file"):
        write([sweep], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file/page.html: .*; give another file with -o"):
        written(gather([sweep]), tmp_path / "file" / "page.html")


# Colours ---------------------------------------------------------------------------------------------

BLINDNESS = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.3039)),
}
"""Machado, Oliveira and Fernandes 2009, severity 1, on linear light."""


def linear(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(colour):
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def seen(colour, blindness):
    """In Oklab, as someone with that colour vision sees it."""
    light = [sum(w * part for w, part in zip(row, linear(colour), strict=True)) for row in BLINDNESS[blindness]]
    r, g, b = (min(1.0, max(0.0, part)) for part in light)
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    middle = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.793617785 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.428592205 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.808675766 * short,
    )


def schemes():
    """Colours by name, light and the two equal dark ones."""
    blocks = re.findall(r":root[^{]*\{(.*?)\}", asset("page.css"), re.S)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


def test_both_ways_to_dark_are_the_same_colours():
    _, system, chosen = schemes()
    assert system == chosen and len(chosen) == 13


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_are_told_apart_with_any_vision_and_on_the_paper(scheme):
    colours = schemes()[scheme]
    series = [colours[f"s{at}"] for at in range(6)]
    for blindness in BLINDNESS:
        for one, other in combinations(series, 2):
            assert math.dist(seen(one, blindness), seen(other, blindness)) > 0.1, (blindness, one, other)
    assert all(contrast(colour, colours["paper"]) >= 3 for colour in [*series, colours["dense"], colours["accent"]])
    assert contrast(colours["ink"], colours["paper"]) > 12 and contrast(colours["soft"], colours["paper"]) > 4.5


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
