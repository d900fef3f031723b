"""What is at hand: kept results, the pool, and lines that are no results."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from handmade import record
from PIL import Image

from demp.cli import main
from demp.errors import UsageError
from demp.experiments import studies
from demp.experiments.studies.campaign import Campaign, in_turns, use_data
from demp.experiments.studies.costs import train_flops
from demp.experiments.studies.result_store import ResultStore
from demp.train import DataConfig, TrainConfig, sources
from demp.train.run import Run

STUDY = "fig7"


@pytest.fixture
def place(tmp_path):
    return ResultStore(tmp_path / "results", tmp_path / "runs", "smoke")


def jobs(seeds=1, name=STUDY):
    return studies.find(name).plan("smoke", seeds)


def write(file, *lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)


def test_what_is_kept_is_not_run_again(place):
    first, second, *_ = jobs()
    write(place.file("some-other-study"), record(first))
    write(place.runs / "results" / "here-1.jsonl", record(second), record(jobs()[2], status="failed", error="it broke"))
    campaign = Campaign([studies.find(STUDY)], place)
    assert [job.name for job in campaign.missing()] == [job.name for job in jobs()[3:]]
    assert [job.name for job in campaign.missing(retry=True)] == [job.name for job in jobs()[2:]]
    shown = campaign.show(studies.find(STUDY))
    assert [r["name"] for r in shown.records] == [first.name, second.name]
    assert shown.failed == [f"{jobs()[2].name}: it broke"]


def test_kept_lines_have_the_labels_of_the_study_and_are_appended_once(place):
    job = jobs()[1]
    foreign = record(job) | {"labels": {"panel": "elsewhere"}, "name": "another-name"}
    write(place.runs / "results" / "here-1.jsonl", foreign)
    campaign = Campaign([studies.find(STUDY)], place)
    for _ in range(2):
        campaign.write(studies.find(STUDY))
    (line,) = place.file(STUDY).read_text().splitlines()
    kept = json.loads(line)
    assert (kept["name"], kept["labels"]) == (job.name, job.labels)
    assert {k: v for k, v in kept.items() if k not in ("name", "labels")} == {
        k: v for k, v in foreign.items() if k not in ("name", "labels")
    }


def test_half_written_and_foreign_lines_are_skipped_counted_and_named(place, capsys):
    first, second, *_ = jobs()
    file = place.file(STUDY)
    stranger = record(jobs(name="fig13")[1]) | {"name": "stranger"}
    write(file, record(first), '{"schema": 1, "name": "cut in the mi\n', "[1, 2]\n", stranger, '{"half')
    campaign = Campaign([studies.find(STUDY)], place)
    shown = campaign.show(studies.find(STUDY))
    assert [r["name"] for r in shown.records] == [first.name]
    assert shown.skipped == [
        f"{file}:2 is not whole",
        f"{file}:3 is no result",
        f"{file}: its last line is not whole",
        f"{file}: stranger is no run of fig7",
    ]
    write(place.runs / "results" / "here-1.jsonl", record(second))
    campaign = Campaign([studies.find(STUDY)], place)
    campaign.write(studies.find(STUDY))
    lines = file.read_text().splitlines()
    assert (
        lines[4] == '{"half' and json.loads(lines[5])["name"] == second.name
    )  # nothing is lost, nothing runs together
    arguments = ["study", STUDY, "--scale", "smoke", "--draw-only", "--out", str(place.kept), "--runs", str(place.pool)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "4 lines of results were skipped:" in said and f"{file}:2 is not whole" in said and "2 of 6 runs" in said


def test_what_is_done_stays_done(place):
    job = jobs()[0]
    write(place.file(STUDY), record(job, accuracy=0.7))
    write(place.runs / "results" / "here-1.jsonl", record(job, status="failed", error="later"))
    assert place.known()[job.identity]["eval/top1"] == 0.7


def test_more_seeds_than_asked_for_are_shown(place):
    every = jobs(3)
    write(place.file(STUDY), *(record(job) for job in every))
    campaign = Campaign([studies.find(STUDY)], place, seeds=1)
    assert campaign.missing() == []
    shown = campaign.show(studies.find(STUDY))
    assert len(shown.records) == len(every) == shown.planned and shown.skipped == []
    assert {row[3] for row in shown.table.rows} == {"3"}


def test_jobs_of_several_studies_go_seed_by_seed_and_once():
    plans = [jobs(2), jobs(2, "fig4")]
    together = in_turns(plans)
    assert [job.labels["seed"] for job in together] == sorted(job.labels["seed"] for job in together)
    identities = [job.identity for job in together]
    assert len(set(identities)) == len(identities)
    assert set(identities) == {job.identity for plan in plans for job in plan}


def test_smoke_runs_say_nothing_about_claims(place):
    write(place.file(STUDY), *(record(job, weights=0.5) for job in jobs()))
    shown = Campaign([studies.find(STUDY)], place).show(studies.find(STUDY))
    assert {claim.holds for claim in shown.claims} == {None} and any(claim.ours for claim in shown.claims)
    cpu = replace(place, scale="cpu")
    write(cpu.file(STUDY), *(record(job, weights=0.5) for job in studies.find(STUDY).plan("cpu", 1)))
    assert {claim.holds for claim in Campaign([studies.find(STUDY)], cpu).show(studies.find(STUDY)).claims} != {None}


@pytest.mark.slow  # plans all studies at all scales
def test_the_list_says_what_exists_what_it_costs_and_what_is_at_hand(place, capsys):
    write(place.file(STUDY), *(record(job) for job in jobs()[:2]))
    arguments = ["study", "list", "--out", str(place.kept), "--runs", str(place.pool), "--seeds", "1", "--json"]
    assert main(arguments) == 0
    found = {one["id"]: one for one in json.loads(capsys.readouterr().out)["studies"]}
    assert list(found) == studies.names()
    for one in found.values():
        assert one["title"] and one["section"] and list(one["scales"]) == ["smoke", "cpu", "paper"]
        for scale in one["scales"].values():
            assert scale["runs"] > 0 and scale["seconds"] > 0 and scale["basis"]
    assert found[STUDY]["scales"]["smoke"]["at_hand"] == 2 and found[STUDY]["scales"]["cpu"]["at_hand"] == 0
    assert found[STUDY]["scales"]["smoke"]["runs"] == 6
    assert found["table1"]["scales"]["cpu"]["data"] == ["imagenette"]
    assert found["table1"]["scales"]["paper"]["data"] == ["imagenet-1k"]
    assert found["fig3"]["scales"]["paper"]["steps"] == 97_656 * found["fig3"]["scales"]["paper"]["runs"]


def test_a_cost_is_that_of_the_dense_network():
    for name in ("fig7", "fig14", "table1", "fig17"):
        config = TrainConfig.from_dict(studies.find(name).plan("smoke")[0].arguments["config"])
        run = Run(config)
        assert train_flops(config.to_dict()) == 3 * config.steps * config.batch_size * run.dense_cost.flops


def test_mistakes_are_sentences(place, capsys):
    where = ["--out", str(place.kept), "--runs", str(place.pool)]
    for arguments, words in (
        (["study"], "name a study, for example fig3"),
        (["study", "fgi3"], "unknown study 'fgi3'; did you mean 'fig3'?"),
        (["study", "fig3", "--scale", "papr"], "choose one of smoke, cpu, paper; did you mean 'paper'?"),
        (["study", "fig3", "--seeds", "0"], "seeds is 0; give at least 1"),
        (["study", "fig3", "--data", str(place.kept / "nowhere")], "there is no folder"),
    ):
        assert main([*arguments, *where]) == 2
        said = capsys.readouterr().err
        assert said.startswith("demp: ") and words in said and "Traceback" not in said
    assert not place.pool.exists() and not place.kept.exists()


def test_absent_data_is_named_before_anything_begins(place, monkeypatch):
    def unreachable(name):
        raise UsageError(f"data set {name!r}: the hub cannot be reached")

    monkeypatch.setattr(sources, "open_tables", unreachable)
    cpu = replace(place, scale="cpu")
    campaign = Campaign([studies.find("fig3"), studies.find("table1")], cpu)
    words = (
        r"fig3 at scale cpu: the data set cifar10 is not at hand \(data set 'cifar10': the hub cannot be reached\); it "
        r"is uoft-cs/cifar10 on the hub: go online once, or put its files into a folder cifar10 and name the folder "
        r"above it with --data or DEMP_DATA"
    )
    with pytest.raises(UsageError, match=words):
        campaign.go()
    assert not cpu.runs.exists()
    only = Campaign([studies.find("table1")], cpu)
    with pytest.raises(UsageError, match="table1 at scale cpu: .* a folder imagenette or imagenette160 and name"):
        only.go()


def test_a_folder_of_data_sets_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv(sources.FOLDER_VARIABLE, raising=False)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)})
    pixels = np.arange(4 * 25, dtype=np.uint8).reshape(4, 5, 5)
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": [0, 1, 0, 1]}
    folder = tmp_path / "sets" / "mnist"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.setenv(sources.FOLDER_VARIABLE, "")
    use_data(str(tmp_path / "sets"))
    source = sources.load(DataConfig(name="mnist"))
    assert len(source.train) == 4 and source.train.images[:, 0].tolist() == pixels.tolist()
    sources.find("mnist")
    assert sources.here("cifar10") is None and sources.here("digits") is None


KEPT = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("scale", ["cpu", "paper"])
def test_what_is_kept_with_the_project_is_found_by_its_studies(scale, tmp_path):
    place = ResultStore(KEPT, tmp_path, scale)
    files = sorted(place.folder.glob("*.jsonl"))
    assert files
    campaign = Campaign([studies.find(file.stem) for file in files], place, seeds=1)
    for file, study in zip(files, campaign.studies, strict=True):
        shown = campaign.show(study)
        assert shown.skipped == [] and len(shown.records) >= len(file.read_text().splitlines())
    if scale == "cpu":
        notes = {
            note.split(":")[0]
            for record in campaign.show(studies.find("fig3")).records
            for note in record["notes"]
            if record["labels"]["line"] == "EarlyCroP-S, epochs of the data" and note.startswith("pruned at")
        }
        assert notes == {
            "pruned at step 391, after 1 epochs",
            "pruned at step 782, after 2 epochs",
            "pruned at step 1000, after 2.55754 epochs",
        }
