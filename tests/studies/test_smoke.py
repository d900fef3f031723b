"""Every study from its runs to its figure, at the scale of seconds."""

import json

import pytest

from demp.cli import main
from demp.experiments import studies


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One pool for all studies, as on a user's disk."""
    folder = tmp_path_factory.mktemp("studies")
    return ["--out", str(folder / "results"), "--runs", str(folder / "runs")], folder


QUICK = {"theory"}
"""Theory without training; figures have the slow mark."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in studies.names()]
)
def test_a_study_runs_and_is_kept(name, folders, capsys):
    where, folder = folders
    assert main(["study", name, "--scale", "smoke", "--json", *where]) == 0
    said = json.loads(capsys.readouterr().out)
    (shown,) = said["studies"]
    planned = studies.find(name).plan("smoke")
    assert said["left"] == 0 and shown["failed"] == [] and shown["skipped"] == []
    assert shown["done"] == shown["planned"] == len(planned)
    assert shown["claims"] and all(claim["holds"] is None and claim["paper"] for claim in shown["claims"])
    assert shown["table"]["rows"] and all(len(row) == len(shown["table"]["headings"]) for row in shown["table"]["rows"])
    place = folder / "results" / "smoke"
    lines = [json.loads(line) for line in (place / f"{name}.jsonl").read_text().splitlines()]
    assert [line["identity"] for line in lines] == [job.identity for job in planned]
    for line in lines:
        assert line["status"] == "done" and line["arguments"] and line["labels"]
        assert all(line[about] for about in ("machine", "torch", "demp", "began", "work"))
    assert json.loads((place / f"{name}.json").read_text()) == shown
    page = (place / f"{name}.md").read_text()
    assert all(claim["sentence"] in page for claim in shown["claims"])
    if not name.startswith("table"):
        svg, png = (place / f"{name}.{kind}" for kind in ("svg", "png"))
        assert svg.name in page and svg.read_text().count("<path") > 10 and png.stat().st_size > 5000


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(folders, tmp_path, capsys):
    where, _ = folders
    assert main(["study", "fig7", "--scale", "smoke", *where]) == 0
    capsys.readouterr()
    new = ["--out", where[1], "--runs", str(tmp_path / "new")]
    assert main(["study", "fig7", "--scale", "smoke", *new]) == 0  # kept results alone
    assert "6 runs at scale smoke, 6 of them at hand" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    assert main(["study", "fig7", "--scale", "smoke", "--seeds", "2", "--budget-minutes", "1e-9", *new]) == 0
    said = capsys.readouterr().out
    assert "12 runs at scale smoke, 6 of them at hand" in said and "6 runs are left; the same command goes on" in said
    assert "6 of 12 runs" in said
