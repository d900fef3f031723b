"""What a job is, and what a folder of them keeps."""

import json
from itertools import pairwise

import pytest
from sweepjobs import CONFIG, job, numbers

from demp.errors import UsageError
from demp.experiments.studies import small_mlp, walks
from demp.experiments.sweep import Job, Store, Sweep, cells, name_of, training
from demp.experiments.sweep.job import function
from demp.experiments.sweep.training import thinned
from demp.files import results as records
from demp.files.results import TRAINING
from demp.train.runfolder import read_lines


def test_equal_jobs_have_one_identity_whatever_they_are_called():
    one = job("a", number=1, other={"x": 1, "y": 2}, labels={"of": "this"})
    same = Job(name="b", work=one.work, arguments={"other": {"y": 2, "x": 1}, "number": 1}, labels={"of": "that"})
    assert one.identity == same.identity
    assert Job.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    others = [job("a", number=2), job("a", "failing", number=1, other={"x": 1, "y": 2})]
    assert len({one.identity, *(other.identity for other in others)}) == 3
    elsewhere = [training("t", config, labels={}) for config in (CONFIG, CONFIG.merged({"out": "else"}))]
    assert elsewhere[0].identity == elsewhere[1].identity


def test_names_fit_a_folder_and_stay_apart():
    assert name_of("timm:a/b", "x=1", "s0") == "timm_a_b-x=1-s0"
    long = [name_of("x" * 300, end) for end in "ab"]
    assert len(set(long)) == 2 and all(len(name) == 150 for name in long)
    for wrong in ("", "a/b", "..", "a\nb"):
        with pytest.raises(UsageError, match="cannot be the name of a folder"):
            job(wrong)
    with pytest.raises(UsageError, match="two different jobs are called 'a'"):
        Sweep("unused", [job("a", number=1), job("a", number=2)])


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_job_is_a_line_and_one_that_fails_is_no_end(tmp_path, jobs):
    wanted = [*numbers(3, 4), job("broken", "failing"), job("odd", "unwritable"), job("none", "missing"), *numbers(5)]
    outcome = Sweep(tmp_path / "s", wanted).go(jobs=jobs)
    assert outcome.left == 0
    by_name = {record["name"]: record for record in outcome.records}
    assert [by_name[f"n{number}"]["twice"] for number in (3, 4, 5)] == [6, 8, 10]
    assert by_name["n3"]["labels"] == {"number": 3} and by_name["n3"]["arguments"] == {"number": 3}
    assert by_name["n3"]["identity"] == wanted[0].identity and by_name["n3"]["work"] == "sweepwork:doubled"
    assert by_name["n3"]["seconds"] > 0 and not by_name["n3"]["resumed"]
    assert by_name["broken"]["error"] == "ArithmeticError: it broke"
    assert "in failing" in by_name["broken"]["traceback"]
    assert "PosixPath is not JSON serializable" in by_name["odd"]["error"]
    assert by_name["none"]["error"] == "the module sweepwork has no function 'missing'"
    assert {name for name, record in by_name.items() if record["status"] == "failed"} == {"broken", "odd", "none"}
    assert Store(tmp_path / "s").records() == records.read(tmp_path / "s").found
    assert not list((tmp_path / "s").rglob("*.log"))


def test_what_is_done_is_not_done_again_and_an_equal_job_of_another_name_is_the_same(tmp_path):
    assert Sweep(tmp_path, numbers(1, 2)).missing == numbers(1, 2)
    first = Sweep(tmp_path, numbers(1, 2)).go().records
    renamed = job("other", number=2, labels={"study": "b"})
    sweep = Sweep(tmp_path, [*numbers(1), renamed, job("twin", number=2), *numbers(3)])
    assert sweep.missing == numbers(3)
    records_now = {record["name"]: record for record in sweep.go().records}
    assert list(records_now) == ["n1", "other", "twin", "n3"]
    assert records_now["other"] == {**first[1], "name": "other", "labels": {"study": "b"}}
    assert records_now["twin"]["labels"] == {} and all(record["calls"] == 1 for record in records_now.values())


def test_twins_of_one_sweep_are_done_once(tmp_path):
    sweep = Sweep(tmp_path, [job("a", number=1), job("b", number=1)])
    assert [job.name for job in sweep.missing] == ["a"]
    outcome = sweep.go()
    assert outcome.left == 0 and [record["name"] for record in outcome.records] == ["a", "b"]


def test_failed_jobs_are_taken_up_again_when_asked(tmp_path):
    wanted = [job("broken", "failing"), *numbers(1)]
    Sweep(tmp_path, wanted).go()
    assert Sweep(tmp_path, wanted).missing == []
    assert [job.name for job in Sweep(tmp_path, wanted, retry=True).missing] == ["broken"]


def test_foreign_and_half_written_lines_are_skipped_counted_and_named(tmp_path):
    Sweep(tmp_path, numbers(1, 2)).go()
    (mine,) = (tmp_path / "results").iterdir()
    whole = mine.read_text()
    other = tmp_path / "results" / "other.jsonl"
    strange = [
        '{"name": "n3", "stat',
        "[]",
        '{"name": "n4"}',
        json.dumps({**json.loads(whole.splitlines()[0]), "status": "?"}),
    ]
    other.write_text("\n".join(strange) + '\n{"name": "being written')
    found = records.read(tmp_path)
    assert [record["name"] for record in found.found] == ["n1", "n2"]
    assert found.skipped == (
        f"{other}:1 is not whole",
        f"{other}:2 is no result",
        f"{other}:3 has schema None, this version reads 1",
        f"{other}:4 is no result",
    )
    mine.write_text(whole + '{"name": "killed wh')
    assert Sweep(tmp_path, numbers(1, 2, 3)).go().left == 0
    assert [line["name"] for line in read_lines(mine)] == ["n1", "n2", "n3"]


def test_done_stays_done_and_the_later_word_counts(tmp_path):
    one = Sweep(tmp_path, numbers(1)).go().records[0]
    failed = {**one, "status": "failed", "error": "no", "began": "2999"}
    (tmp_path / "results" / "z.jsonl").write_text(json.dumps(failed) + "\n" + json.dumps({**one, "began": "0"}) + "\n")
    assert records.read(tmp_path).found == [one]
    (tmp_path / "results" / "a.jsonl").write_text(json.dumps(failed) + "\n")
    assert records.read(tmp_path).found == [one]


def test_another_job_of_the_same_name_is_refused_and_the_difference_named(tmp_path):
    Sweep(tmp_path, numbers(1), shared={"base": {"lr": 1}}).go()
    with pytest.raises(UsageError, match=r"holds the run n1 with another config: number was 1 and is 2; give another"):
        Sweep(tmp_path, [job("n1", number=2)], shared={"base": {"lr": 1}})
    with pytest.raises(UsageError, match=r"the run n1 with another config: work was 'sweepwork:doubled' and is"):
        Sweep(tmp_path, [job("n1", "failing", number=1)], shared={"base": {"lr": 1}})
    with pytest.raises(UsageError, match=r"holds a sweep with another config: base\.lr was 1 and is 2"):
        Sweep(tmp_path, numbers(1), shared={"base": {"lr": 2}})
    with pytest.raises(UsageError, match="holds a sweep, not a comparison; give another folder"):
        Sweep(tmp_path, numbers(1), what="a comparison")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no sweep"):
        Sweep(tmp_path / "notes", numbers(1))
    with pytest.raises(UsageError, match="holds no sweep"):
        Store(tmp_path / "notes").about()


def test_a_mistake_in_an_essential_job_is_the_end(tmp_path):
    with pytest.raises(UsageError, match="the first run cannot be made: the module sweepwork has no function"):
        Sweep(tmp_path, [job("first", "missing"), *numbers(1)], essential=["first"]).go()
    assert Store(tmp_path).records() == []


def test_a_training_says_what_its_files_say_and_keeps_series(tmp_path):
    one = training("t", CONFIG, labels={"seed": 0}, series=["train/loss", "prune/neurons_alive"])
    (record,) = Sweep(tmp_path, [one]).go().records
    run = tmp_path / "runs" / "t"
    summary = json.loads((run / "summary.json").read_text())
    assert summary.items() <= record.items() and "step_over_dense" not in record
    lines = [line for line in read_lines(run / "metrics.jsonl") if "train/loss" in line]
    assert record["series"]["train/loss"] == [[line["step"], line["train/loss"]] for line in lines]
    assert [step for step, _ in record["series"]["train/loss"]] == [2, 4, 6, 8, 9]
    wrong = Job(name="w", work=one.work, arguments={"config": CONFIG.to_dict(), "sieries": []})
    assert "has no argument 'sieries'" in Sweep(tmp_path / "w", [wrong]).go().records[0]["error"]


def test_series_are_thinned_evenly_with_both_ends():
    points = [[step, step**2] for step in range(10_001)]
    kept = thinned(points)
    assert len(kept) == 500 and kept[0] == points[0] and kept[-1] == points[-1]
    assert {after[0] - before[0] for before, after in pairwise(kept)} == {20, 21}
    assert thinned(points[:500]) == points[:500]


def test_a_cell_of_a_table_in_markdown_stays_a_cell():
    text = cells.markdown(["a|b", "c"], [["1", "x\ny\r|z"], ["<script>", "|"]])
    assert text == "| a\\|b | c |\n| --- | --- |\n| 1 | x y \\|z |\n| &lt;script> | \\| |"


def test_the_work_of_kept_results_is_named_as_it_was():
    """Identities hash these names: whoever moves a function must keep the old name importable."""
    kept = {
        "demp.sweep.training:trained",
        "demp.studies.walks:absorbing",
        "demp.studies.walks:geometric",
        "demp.studies.small_mlp:walked",
    }
    assert {TRAINING, walks.ABSORBING, walks.GEOMETRIC, small_mlp.WORK} == kept
    assert all(callable(function(work)) for work in kept)
    assert Job(name="a", work=TRAINING, arguments={"config": {"steps": 1}}).identity == "476c76d2f23d26fe"
