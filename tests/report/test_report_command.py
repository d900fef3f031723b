"""`demp report` as a person and a script use it, and following a run that is under way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from runfolders import append, lines_of, metrics, outcome, write_run, write_sweep

from demp.cli import main
from demp.errors import UsageError
from demp.experiments.report.watch import QUIET, state, watch

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from demp.cli import main
sys.exit(main(sys.argv[1:]))
"""
HEAVY = ("torch", "numpy", "safetensors", "matplotlib", "polars", "pandas")


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command, which must not leave a traceback."""
    code = main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


def test_it_writes_the_page_and_says_what_it_skipped(tmp_path, capsys):
    folder, out = write_run(tmp_path / "run"), tmp_path / "page.html"
    append(folder / "metrics.jsonl", '{"step": 205, "tr')
    code, text, err = run(capsys, folder, "-o", out)
    assert (code, err) == (0, "") and out.read_text().startswith("<!doctype html>")
    assert text == (
        f"skipped: {folder / 'metrics.jsonl'}: line 45: half-written\n"
        f"written: {out} ({out.stat().st_size / 1e6:.2f} MB, 1 run)\n"
    )
    code, text, err = run(capsys, folder, "--out", out, "--json")
    assert code == 0 and err.count("\n") == 2
    assert json.loads(text) == {
        "out": str(out), "bytes": out.stat().st_size, "runs": 1, "claims": 0, "skipped_lines": 1, "live": False,
        "skipped": [f"{folder / 'metrics.jsonl'}: line 45: half-written"],
    }  # fmt: skip


def test_without_a_name_it_is_report_html(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", "dense")
    assert run(capsys, "one", "two")[0] == 0
    assert "−50" in re.search("<h1>(.*?)</h1>", (tmp_path / "report.html").read_text())[1]


@pytest.mark.parametrize("json_wanted", [False, True])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a run, a sweep, a comparison or a study: demp report FOLDER"),
        (["nowhere"], "there is no nowhere; give the folder of a run, a sweep or a study"),
        (["empty"], "empty holds no run; give the folder of a run (with config.toml), a sweep or a study"),
        (["run", "empty", "-o", "empty"], "empty is a folder; give a file, for example -o empty/report.html"),
        (["run", "--watch", "--every", "0"], "every is 0; give seconds above 0"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, monkeypatch, arguments, message, json_wanted):
    monkeypatch.chdir(tmp_path)
    write_run("run")
    (tmp_path / "empty").mkdir()
    code, out, err = run(capsys, *arguments, *["--json"] * json_wanted)
    assert code == 2 and f"demp: {message}\n" in err
    assert (json.loads(out) == {"error": message, "exit_code": 2}) if json_wanted else out in ("", out)
    assert not (tmp_path / "report.html").exists()


def test_unknown_flags_exit_with_2(capsys):
    assert main(["report", "--wach"]) == 2


def test_it_starts_and_works_without_torch(tmp_path):
    """In a process in which torch and the other heavy packages cannot be imported."""
    sweep = write_sweep(tmp_path / "sweep")
    command = [sys.executable, "-c", WITHOUT.format(names=HEAVY), "report", str(sweep), "-o", str(tmp_path / "r.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "r.html").stat().st_size > 50_000
    asked = subprocess.run([*command[:3], "report", "--help"], capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0 and "--watch" in asked.stdout


def test_without_tyro_there_is_one_sentence(tmp_path):
    command = [sys.executable, "-c", WITHOUT.format(names=("tyro",)), "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "demp: this needs the package tyro; install it with: pip install 'demp[train]'\n"


# Following a run ---------------------------------------------------------------------------------------


class Clock:
    """Sleeps are turns: each does the next thing to the files, and keeps the page as it was before."""

    def __init__(self, page, *turns):
        self.page, self.turns, self.pages = page, list(turns), []

    def __call__(self, seconds):
        self.pages.append(self.page.read_text())
        turn = self.turns.pop(0)
        if turn is not None:
            turn()


def title(text):
    """The headline of a page."""
    return re.search("<h1>(.*?)</h1>", text)[1].replace("\u202f", " ")


def test_a_run_is_followed_to_its_end(tmp_path):
    folder, out = write_run(tmp_path / "run", upto=50), tmp_path / "page.html"
    later = [line for line in metrics(200, 0.5, 0.9) if line["step"] > 50]

    def train_on():
        append(folder / "metrics.jsonl", lines_of(later[:3]) + '{"step"')

    def end():
        (folder / "summary.json").write_text(json.dumps(outcome("demp", 0, 200, 0.5, 0.9)))

    said = []
    clock = Clock(out, train_on, None, end)
    result = watch([folder], out, seconds=0.25, say=said.append, sleep=clock)
    assert [title(text) for text in clock.pages] == [
        "Step 50 of 200: −25 % parameters so far", *["Step 65 of 200: −32 % parameters so far"] * 2,
    ]  # fmt: skip
    assert all('data-refresh="0.25"' in text for text in clock.pages)
    assert title(out.read_text()) == "−50 % parameters, 90.0 % accuracy, step 0.77×"
    assert "data-refresh=" not in out.read_text() and result["live"] is False
    assert said == [
        f"{out}: 0 of 1 runs ended; run at step 50 of 200", f"{out}: 0 of 1 runs ended; run at step 65 of 200",
        f"{out}: all has ended",
    ]  # fmt: skip


def test_a_page_is_not_written_when_nothing_is_new(tmp_path):
    folder, out = write_run(tmp_path / "run", upto=50), tmp_path / "page.html"
    times = []

    def look():
        times.append(out.stat().st_mtime_ns)

    def end():
        look()
        (folder / "summary.json").write_text(json.dumps(outcome("demp", 0, 200, 0.5, 0.9)))

    watch([folder], out, sleep=Clock(out, look, look, look, end))
    assert len(set(times)) == 1


def test_a_run_that_has_ended_is_written_once(tmp_path):
    out = tmp_path / "page.html"
    watch([write_run(tmp_path / "run")], out, sleep=Clock(out))
    assert "data-refresh=" not in out.read_text()


def test_a_sweep_between_two_runs_has_not_ended(tmp_path):
    sweep, out = write_sweep(tmp_path / "sweep", seeds=1), tmp_path / "page.html"

    def begin():
        write_run(sweep / "runs" / "snap-s0", "snap", upto=50)

    def end():
        (sweep / "runs" / "snap-s0" / "summary.json").write_text(json.dumps(outcome("snap", 0, 200, 0.5, 0.89)))

    clock = Clock(out, None, None, begin, None, end, *[None] * QUIET)
    result = watch([sweep], out, sleep=clock)
    assert clock.turns == [] and result["runs"] == 4 and "data-refresh=" not in out.read_text()
    assert all("data-refresh=" in text for text in clock.pages)


def test_an_interrupt_leaves_a_page_that_rests(tmp_path):
    folder, out = write_run(tmp_path / "run", upto=50), tmp_path / "page.html"

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch([folder], out, sleep=Clock(out, None, interrupt))
    assert title(out.read_text()).startswith("Step 50 of 200") and "data-refresh=" not in out.read_text()


def test_the_page_itself_is_nothing_new(tmp_path):
    folder = write_run(tmp_path / "run", upto=50)
    before = state([folder], folder / "report.html")
    (folder / "report.html").write_text("x")
    (folder / "model.bin").write_text("x")
    assert state([folder], folder / "report.html") == before
    append(folder / "cuts.jsonl", "\n")
    assert state([folder], folder / "report.html") != before
    (tmp_path / "lines.jsonl").write_text("")
    assert [name for name, *_ in state([tmp_path / "lines.jsonl"], tmp_path / "x")] == [str(tmp_path / "lines.jsonl")]


def test_seconds_are_above_zero(tmp_path):
    with pytest.raises(UsageError, match="every is -1; give seconds above 0"):
        watch([tmp_path], tmp_path / "x.html", seconds=-1)


def test_ctrl_c_ends_the_command_with_130(tmp_path):
    folder, out = write_run(tmp_path / "run", upto=50), tmp_path / "page.html"
    command = [sys.executable, "-m", "demp.cli", "report", str(folder), "-o", str(out), "--watch", "--every", "0.1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while process.poll() is None and not out.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "demp: interrupted\n")
    assert f"open {out} in a browser" in said and "data-refresh=" not in out.read_text()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
