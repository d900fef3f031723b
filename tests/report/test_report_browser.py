"""The page in a real browser, headless: `make test-browser`."""

import csv
import io
import json
import time

import pytest
from chromium import Chromium
from poisoned import PAYLOADS, write_poisoned
from runfolders import STUDY, append, write_run, write_sweep

from demp.experiments.report import gather, page, write

pytestmark = pytest.mark.browser

SIZES = [(380, False), (380, True), (1280, False), (1280, True), (768, False)]


LIGHT, DARK = "rgb(255, 255, 255)", "rgb(18, 22, 27)"
FIGURES = """[...document.querySelectorAll('.panel svg')].filter((one) => one.checkVisibility()).map((one) => {
  const box = one.getBoundingClientRect(), shapes = [...one.querySelectorAll('path,rect,circle')];
  const drawn = shapes.filter((s) => { const b = s.getBoundingClientRect(); return b.width + b.height > 1; });
  const texts = [...one.querySelectorAll('text')].map((t) => t.getBoundingClientRect());
  const size = parseFloat(getComputedStyle(one.querySelector('text')).fontSize);
  return {label: one.getAttribute('aria-label'), width: box.width, height: box.height, drawn: drawn.length,
          left: Math.min(...texts.map((t) => t.left)), right: Math.max(...texts.map((t) => t.right)),
          size: size * box.width / one.viewBox.baseVal.width};
})"""
"""All that can be seen: size, shapes with an extent, the ends of their texts, the size of a letter."""


@pytest.fixture(scope="module")
def browser():
    chromium = Chromium()
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of every kind, with every figure."""
    root = tmp_path_factory.mktemp("pages")
    sweep = write_sweep(root / "sweep", seeds=3)
    (sweep / "fig3.json").write_text(json.dumps(STUDY))
    append(sweep / "results" / "here-1.jsonl", "half a line")
    for folder in (sweep / "runs" / "demp-1-s0", write_run(root / "a-run-with-quite-a-long-name-as-sweeps-give-them")):
        lines = [{"step": s, "dead/overlap": s / 250, "dead/revived": 3 - s // 80} for s in range(20, 201, 20)]
        append(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        timings = [
            {"batch": b, "latency_ms": b / 2, "dense_latency_ms": b, "latency_ratio": 0.5, "throughput_ratio": 2.0}
            for b in (1, 8, 64)
        ]
        (folder / "export-onnx").mkdir()
        (folder / "export-onnx" / "export.json").write_text(json.dumps({"timings": timings}))
    sources = {"sweep": sweep, "run": root / "a-run-with-quite-a-long-name-as-sweeps-give-them"}
    sources["live"] = write_run(root / "live", upto=60)
    found = {}
    for name, source in sources.items():
        found[name] = root / f"{name}.html"
        write([source], found[name])
    return found


@pytest.mark.parametrize("name", ["sweep", "run", "live"])
@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_nothing_overflows_and_every_figure_is_drawn(browser, pages, name, width, dark):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.errors == []
    assert browser.ask("document.documentElement.scrollWidth") == width
    seen = browser.ask(FIGURES)
    assert len(seen) == {"sweep": 13, "run": 9, "live": 3}[name]
    for one in seen:
        assert one["drawn"] >= 3 and one["height"] > 60 and one["width"] > 300, one
        assert one["left"] >= 0 and one["right"] <= width, one
        assert one["size"] >= 9, one
    paper, ink = browser.ask("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert (paper, ink) == ((DARK, "rgb(233, 237, 241)") if dark else (LIGHT, "rgb(23, 32, 42)"))


def test_it_asks_for_nothing_but_itself(browser, pages):
    browser.open(pages["sweep"])
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [pages["sweep"].as_uri()]


COLUMN = "[...document.querySelectorAll('#settings tbody tr')].map((row) => row.cells[%d].textContent)"


def test_a_table_sorts_by_keyboard(browser, pages):
    browser.open(pages["sweep"])
    before = browser.ask(COLUMN % 4)
    browser.ask("document.querySelector('#settings').parentElement.focus()")
    for _ in range(5):
        browser.press("Tab", 9)
    heading = "document.activeElement.closest('th')"
    assert browser.ask("document.activeElement.textContent") == "parameters"
    assert browser.ask(f"{heading}.getAttribute('aria-sort')") == "none"
    browser.press("Enter", 13, "\r")
    assert browser.ask(f"{heading}.getAttribute('aria-sort')") == "descending"
    percents = [float(cell.replace("−", "-").replace("\u202f%", "")) for cell in browser.ask(COLUMN % 4)]
    assert percents == sorted(percents, reverse=True) and len(percents) == len(before) == 3
    browser.press(" ", 32, " ")
    assert browser.ask(f"{heading}.getAttribute('aria-sort')") == "ascending"
    assert [float(c.replace("−", "-").replace("\u202f%", "")) for c in browser.ask(COLUMN % 4)] == sorted(percents)
    browser.ask("document.querySelector('#settings th button').click()")  # words: from A
    assert browser.ask(COLUMN % 0) == ["demp", "demp", "dense"]
    assert browser.ask("document.querySelectorAll('#settings [aria-sort]:not([aria-sort=none])').length") == 1


def test_dashes_sort_last_either_way(browser, pages):
    browser.open(pages["sweep"])
    cell = "document.querySelector('#settings tbody tr').cells[11]"
    browser.ask(f"{cell}.textContent = '–'; {cell}.removeAttribute('data-v')")
    for _ in range(2):
        browser.ask("document.querySelectorAll('#settings th button')[11].click()")
        assert browser.ask(COLUMN % 11)[-1] == "–"


def test_colours_change_by_hand_and_stay(browser, pages):
    browser.open(pages["run"])
    background = "getComputedStyle(document.body).backgroundColor"
    assert browser.ask(background) == LIGHT
    labels = []
    for _ in range(3):
        browser.ask("document.getElementById('theme').click()")
        labels.append((browser.ask(background), browser.ask("document.getElementById('theme').ariaLabel")))
    assert labels == [
        (LIGHT, "Colours: light"),
        (DARK, "Colours: dark"),
        (LIGHT, "Colours: as the system"),
    ]
    browser.ask("document.getElementById('theme').click()")
    browser.scheme(True)
    assert browser.ask(background) == LIGHT  # chosen by hand: the system does not matter
    browser.call("Page.reload")
    browser.wait_for("Page.loadEventFired")
    assert browser.ask(background) == LIGHT
    browser.ask("sessionStorage.clear()")


def middle_of(browser, query):
    """The place of an element in the window, which is scrolled there."""
    browser.ask(f"document.querySelector({json.dumps(query)}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
    box = f"document.querySelector({json.dumps(query)}).getBoundingClientRect()"
    return browser.ask(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")


def tip(browser):
    """What is said, None where nothing is."""
    return browser.ask("document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent")


def test_values_on_hover(browser, pages):
    browser.open(pages["sweep"])
    x, y = middle_of(browser, ".wide .points[data-x=flops_share] .mark[data-t^='demp, strength 0.1']")
    browser.point_at(x + 5, y + 5)
    assert (
        tip(browser) == "demp, strength 0.1\n88.60\u202f% ± 0.20\u202f% accuracy\n20\u202f% inference FLOPs, of dense"
    )
    x, y = middle_of(browser, ".wide .points[data-x=sparsity] circle[data-i='8']")
    browser.point_at(x, y)
    assert tip(browser) == "demp-2-s2\n88.8 % accuracy\n80 %, sparsity"
    x, y = middle_of(browser, ".wide .heat[data-t^='layer2.act']")
    browser.point_at(x, y)
    assert tip(browser) == "layer2.act\nsteps 0 to 25: 40 of 40 neurons"
    browser.point_at(3, 3)
    assert tip(browser) is None
    assert browser.errors == []


def test_one_time_axis_under_the_pointer_and_the_arrow_keys(browser, pages):
    browser.open(pages["run"])
    data = json.loads(browser.ask("document.getElementById('data').textContent"))
    (series,) = data["series"].values()
    box = browser.ask("""(svg => { svg.scrollIntoView({block: 'center', behavior: 'instant'});
      const b = svg.getBoundingClientRect(), d = svg.dataset; return [b.x + +d.left, b.x + +d.right, b.y + 60]; }
    )(document.querySelector('.wide .course'))""")
    browser.point_at((box[0] + box[1]) / 2, box[2])
    loss = dict(map(tuple, series["train/loss"]))[100]
    assert tip(browser).splitlines()[0] == "step 100" and f"loss {loss:g}" in tip(browser)
    assert "removed 50 %" in tip(browser) and "strength 0.05" in tip(browser)
    browser.ask("document.querySelector('.wide .course').focus()")
    browser.press("ArrowRight", 39)
    assert tip(browser).splitlines()[0] == "step 104"
    for _ in range(30):
        browser.press("ArrowLeft", 37)
    assert tip(browser).splitlines()[0] == "step 0"
    browser.press("Escape", 27)
    assert tip(browser) is None


def test_marks_by_arrow_keys(browser, pages):
    browser.open(pages["sweep"], width=380)
    browser.ask("document.querySelector('.narrow .points').focus()")
    seen = []
    for _ in range(13):
        browser.press("ArrowRight", 39)
        seen.append(tip(browser))
    assert len(set(seen[:12])) == 12 and seen[12] == seen[0]  # nine seeds, three means
    browser.press("ArrowLeft", 37)
    assert tip(browser) == seen[11]
    left, right = browser.ask("(b => [b.left, b.right])(document.getElementById('tip').getBoundingClientRect())")
    assert left >= 0 and right <= 380


def test_a_legend_brings_a_method_forward(browser, pages):
    browser.open(pages["sweep"])
    figure = "section:has(#family-0-0-size)"
    series = f"[...document.querySelectorAll('{figure} .series')]"
    entry = f"document.querySelector('{figure} .legend button')"
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert browser.ask(f"document.querySelectorAll('{figure} .legend button').length") == 2
    methods = browser.ask(f"{series}.map((g) => g.dataset.m)")
    for faded in ([method != "demp" for method in methods], [False] * len(methods)):
        browser.ask(f"{entry}.click()")
        assert browser.ask(f"{series}.map((g) => getComputedStyle(g).opacity < 0.5)") == faded


def test_one_run_at_a_time(browser, pages):
    browser.open(pages["sweep"])
    articles = "[...document.querySelectorAll('article.run')]"
    shown = f"{articles}.filter((one) => one.checkVisibility()).map((one) => one.ariaLabel)"
    first = browser.ask("[...document.querySelectorAll('#pick option')].map((one) => one.textContent)")
    assert browser.ask(shown) == first[:1]
    browser.ask("(p => { p.value = 'run-1'; p.dispatchEvent(new Event('change')); })(document.getElementById('pick'))")
    assert browser.ask(shown) == first[1:2]
    browser.ask("sessionStorage.clear()")


def test_without_scripts_everything_is_there(browser, pages):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["sweep"])
        tree = browser.call("Page.captureSnapshot")["data"]
        assert tree.count("<article") == 7
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        assert browser.ask("[...document.querySelectorAll('article.run')].every((one) => one.checkVisibility())")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_the_numbers_can_be_taken_away(browser, pages, tmp_path):
    browser.open(pages["sweep"])
    data = json.loads(browser.ask("document.getElementById('data').textContent"))
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for name in ("csv", "json"):
        browser.ask(f"document.getElementById('{name}').click()")
    deadline = time.monotonic() + 30
    while {file.name for file in tmp_path.iterdir()} != {"runs.csv", "report.json"}:
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.05)
    assert json.loads((tmp_path / "report.json").read_text()) == data
    rows = list(csv.reader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert rows[0] == data["runs"]["columns"] and len(rows) == 10
    for row, known in zip(rows[1:], data["runs"]["rows"], strict=True):
        for text, value in zip(row, known, strict=True):
            same = float(text) == value if isinstance(value, int | float) else text == ("" if value is None else value)
            assert same, (text, value)


def test_a_page_that_follows_loads_itself_again(browser, tmp_path):
    folder, out = write_run(tmp_path / "run", upto=50), tmp_path / "page.html"
    out.write_text(page(gather([folder]), refresh=0.2))
    browser.open(out)
    assert browser.ask("document.querySelector('h1').textContent").startswith("Step 50")
    write([write_run(tmp_path / "other")], out)
    deadline = time.monotonic() + 30
    while (heading := browser.ask("document.querySelector('h1')?.textContent ?? 'Step'")).startswith("Step"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "50\u202f% parameters" in heading and browser.errors == []


EVERYTHING = """all('button,summary,option').forEach((one) => one.click());
document.querySelectorAll('[tabindex],[data-t],[data-i]').forEach((one) => {
  one.focus?.(); const box = one.getBoundingClientRect();
  one.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: box.x + 1, clientY: box.y + 1}));
});"""
"""Every button, and a pointer over every mark."""


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_in_every_string_runs_nothing(browser, tmp_path, payload):
    out = tmp_path / "page.html"
    write([write_poisoned(tmp_path / "x", payload)], out)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "taken"))
    browser.open(out)
    assert browser.ask("document.querySelectorAll('th').length") > 10
    browser.ask(EVERYTHING)
    time.sleep(0.2)
    assert browser.ask("typeof window.hit") == "undefined" and browser.errors == []


def test_a_script_that_got_in_is_stopped_by_the_policy(browser, tmp_path):
    out = tmp_path / "page.html"
    write([write_run(tmp_path / "run")], out)
    bad = "<script>window.hit=1</script><img src='data:,' onerror='window.hit=1'></main>"
    out.write_text(out.read_text().replace("</main>", bad))
    browser.open(out)
    time.sleep(0.2)
    assert browser.ask("typeof window.hit") == "undefined" and len(browser.errors) >= 1
    browser.errors.clear()


def test_no_cell_of_the_numbers_is_a_formula(browser, tmp_path):
    write([write_poisoned(tmp_path / "x", "=1+1")], tmp_path / "page.html")
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "taken"))
    browser.open(tmp_path / "page.html")
    browser.ask("document.getElementById('csv').click()")
    file, deadline = tmp_path / "taken" / "runs.csv", time.monotonic() + 30
    while not file.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cells = [cell for row in csv.reader(io.StringIO(file.read_text())) for cell in row]
    assert any(cell.startswith("'=1+1") for cell in cells)
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@")]
