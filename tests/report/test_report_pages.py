"""The page: whole, self-contained, the numbers those of the files, whatever lies in the files."""

import base64
import importlib
import json
import re

import pytest
from reading_pages import made, words
from runfolders import STUDY, append, lines_of, outcome, write_run, write_sweep

from demp.errors import UsageError
from demp.experiments.report import gather, page, write, written


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
    assert "demp, strength 0.1 keeps fewest, 20 %; half of what it removes has left after 25 % of the run." in answers
    assert "A training step of demp, strength 0.1 takes 0.60× of dense's; 2 of 2 settings are faster" in answers


def test_every_figure_that_the_data_allow(sweep):
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


def figures(text, label):
    return re.findall(rf'<svg [^>]*aria-label="{label}".*?</svg>', text, re.S)


@pytest.mark.parametrize(("many", "sizes"), [(6, [6]), (9, [4, 5])])
def test_no_figure_has_more_than_six_lines_or_methods(tmp_path, many, sizes):
    strengths, names = [at / 100 for at in range(1, many + 1)], [f"method{at}" for at in range(many)]
    folder = write_sweep(tmp_path / "sweep", 1, strengths, gone=0.1, names=names)
    text, reader, _ = made([folder])
    lines = [re.findall(r'class="line s\d" data-m="(\w+)"', one) for one in figures(text, "Neurons that remain.*?")]
    assert [len(one) for one in lines] == [size for size in sizes for _ in range(2)]  # wide and narrow
    assert sorted(name for one in lines for name in one) == sorted(2 * names)
    for one in figures(text, "test accuracy against inference FLOPs, of dense"):
        assert len(set(re.findall(r'class="series s\d" data-m="(\w+)"', one))) in sizes
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_lines_carry_their_names_instead_of_a_legend(sweep, tmp_path):
    text, _, _ = made([sweep])
    (figure,) = re.findall(r'<section [^>]*survival">.*?</section>', text, re.S)
    for one in figures(figure, "Neurons that remain against the step"):
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
    assert (
        "32 of 64 neurons went in 4 cuts, the first at step 25; half of them were removed by step 50 of 200." in answers
    )
    assert "50 % of the neurons are removed; act lost most (4 of 8 left)." in answers
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
    assert "Exported, run answers 2.50× as many images per second as dense at batch 8." in words(reader, "p")
    shown = re.search(r'aria-label="throughput, images per second".*?</svg>', text, re.S)[0]
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
    assert "Not in the figures" in words(reader, "h2") and "1 line skipped" in words(reader, "h3")
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


def test_a_large_page_is_drawn_smaller(sweep, monkeypatch):
    full = len(page(gather([sweep])).encode())
    assert full < 400_000
    monkeypatch.setattr(importlib.import_module("demp.experiments.report.page"), "LARGEST", full - 1)
    smaller, _, data = made([sweep])
    assert len(smaller.encode()) < full and len(data["series"]) == 4 and len(data["runs"]["rows"]) == 6


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
