"""Comparisons of tiny networks on the digits, made for real."""

import json
import os
import re
import signal
import statistics
import sys
import time
from dataclasses import asdict

import pytest
import torch

import forks
from demp import methods
from demp.cli import main
from demp.errors import UsageError
from demp.experiments.compare import Comparison, plan, table
from demp.experiments.sweep import Store
from demp.train import Observer, TrainConfig, TrainingInterrupted, checkpoint
from demp.train.run import Run
from demp.train.runfolder import read_lines

STEPS = 12
MAKERS = "import os\nfrom demp.train.models import build\n\n\ndef dying(**arguments):\n    os._exit(7)\n"


def base(**changes):
    values = {
        "model": {"name": "mlp", "options": {"hidden": [12, 10]}},
        "data": {"name": "digits", "probe_size": 50, "probe_batches": 1},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "method": {"name": "demp", "options": {"peak_noise_std": 0.05, "period": 4}},
        "steps": STEPS,
        "batch_size": 32,
        "device": "cpu",
        "checkpoint_every_steps": 5,
    }
    return TrainConfig.from_dict(values).merged(changes)


def runs(config=None, *, names=("demp", "rigl"), **options):
    chosen = {"seeds": 2, "targets": [0.5], "strengths": [0.01, 0.3]} | options
    return plan(config or base(), names, **chosen)


class Broken(methods.Method):
    """Fails at the third step."""

    name = "broken"
    summary = reference = "for tests"

    def penalty(self, step):
        if step == 2:
            raise ArithmeticError("it broke\nbadly")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Dense, DemP at two strengths, RigL and a method that fails, for two seeds."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    methods.registry()["broken"] = Broken
    try:
        planned = runs(names=("demp", "rigl", "broken"), targets=[])
        said = []
        outcome = Comparison(folder, base(), planned).go(say=said.append)
    finally:
        del methods.registry()["broken"]
    return folder, planned, outcome, said


def written(folder):
    """The one file of results, as a process on this machine writes it."""
    (file,) = (folder / "results").iterdir()
    return file


def by_name(records):
    return {record["name"]: record for record in records}


def test_every_run_is_an_ordinary_run_folder_and_a_line_of_results(made):
    folder, planned, outcome, said = made
    assert outcome.left == 0
    lines = [json.loads(line) for line in written(folder).read_text().splitlines()]
    assert [line["name"] for line in lines] == [run.name for run in planned]
    for run in planned:
        if run.method == "broken":
            continue
        record = by_name(lines)[run.name]
        summary = json.loads((folder / "runs" / run.name / "summary.json").read_text())
        assert summary.items() <= record.items()
        assert record["status"] == "done"
        assert record["labels"] == {"method": run.method, "setting": run.setting, "seed": run.seed}
        cuts = read_lines(folder / "runs" / run.name / "cuts.jsonl")
        assert record["cut_steps"] == [cut["step"] for cut in cuts if cut["removed"]]
        assert ("step_over_dense" in record) is (run.method != "dense")
        config = TrainConfig.from_toml(folder / "runs" / run.name / "config.toml")
        assert config.merged({"out": ""}) == run.config
    assert said[0] == "[1/10] dense-s0: begins" and "test accuracy" in said[1]


def test_a_run_that_fails_is_a_row_and_not_the_end(made):
    _, _, outcome, _ = made
    failed = [record for record in outcome.records if record["status"] == "failed"]
    assert [record["name"] for record in failed] == ["broken-s0", "broken-s1"]
    assert {record["error"] for record in failed} == {"ArithmeticError: it broke"}
    (row,) = (row for row in table.rows(outcome.records) if row.method == "broken")
    assert (row.seeds, row.failed, row.accuracy, row.fired) == (0, 2, None, "–")
    text = table.markdown(outcome.records)
    assert re.search(r"\| broken \| – \| 0, 2 failed \| failed \| – \|", text)
    assert "Failed:\n\n* broken-s0: ArithmeticError: it broke\n* broken-s1: " in text


def test_all_methods_of_a_seed_begin_with_the_same_weights_and_see_the_same_images(made):
    _, planned, outcome, _ = made
    starts = {}
    for record in outcome.records:
        if record["status"] == "done":
            starts.setdefault(record["labels"]["seed"], set()).add(record["initial_weights"])
    assert [len(found) for found in starts.values()] == [1, 1] and starts[0] != starts[1]
    seen = {}
    for run in planned:
        if run.method != "broken":
            live = Run(run.config, resume=True)
            batches = [torch.cat([x.flatten(1), y[:, None]], 1) for x, y in live.data.train_batches(0, STEPS)]
            seen.setdefault(run.seed, []).append(torch.stack(batches))
            assert live.total_steps == STEPS
    for batches in seen.values():
        assert all(torch.equal(batches[0], other) for other in batches)
    assert not torch.equal(seen[0][0], seen[1][0])


def test_the_table_is_made_of_the_summaries(made):
    folder, planned, outcome, _ = made
    rows = table.rows(outcome.records)
    settings = [("dense", ""), ("demp", "strength 0.01"), ("demp", "strength 0.3"), ("rigl", ""), ("broken", "")]
    assert [(row.method, row.setting) for row in rows] == settings
    summaries = {
        run.name: json.loads((folder / "runs" / run.name / "summary.json").read_text())
        for run in planned
        if run.method != "broken"
    }
    dense = [summaries[f"dense-s{seed}"] for seed in (0, 1)]
    for row, stem in zip(rows[:4], ("dense", "demp-peak_strength=0.01", "demp-peak_strength=0.3", "rigl"), strict=True):
        two = [summaries[f"{stem}-s{seed}"] for seed in (0, 1)]

        def mean(of, two=two):
            return pytest.approx(statistics.fmean(of(summary) for summary in two))

        assert (row.seeds, row.failed) == (2, 0)
        assert row.accuracy == mean(lambda s: s["eval/top1"])
        assert row.accuracy_std == pytest.approx(statistics.stdev(s["eval/top1"] for s in two))
        assert row.neuron_sparsity == mean(lambda s: 1 - s["neurons"] / s["neurons_dense"])
        assert row.removed == mean(lambda s: 1 - s["parameters"] / s["parameters_dense"])
        assert row.masked == mean(lambda s: s["weights_masked"] / s["parameters_dense"])
        assert row.train_flops == mean(lambda s: s["train_flops"] / s["train_flops_dense"])
        assert row.scoring_flops == mean(lambda s: s["scoring_flops"] / s["train_flops_dense"])
        assert row.flops == mean(lambda s: s["flops"] / s["flops_dense"])
        assert row.paper_flops == mean(lambda s: s["paper_flops"] / s["paper_flops_dense"])
        assert row.free_flops == mean(lambda s: s["flops_if_zeros_were_free"] / s["flops_dense"])
        ratios = [(mine["train_seconds"] / theirs["train_seconds"]) for mine, theirs in zip(two, dense, strict=True)]
        assert row.train_time == pytest.approx(statistics.fmean(ratios))
        late = [mine["step_ms_at_end"] / theirs["step_ms_at_end"] for mine, theirs in zip(two, dense, strict=True)]
        assert row.step_late == pytest.approx(statistics.fmean(late))
    assert rows[0].train_flops == rows[0].flops == rows[0].train_time == 1
    assert rows[2].removed > rows[0].removed == 0
    assert rows[3].masked > 0.5 and rows[3].free_flops < rows[3].flops
    records = by_name(outcome.records)
    expected = statistics.fmean(records[f"rigl-s{seed}"]["step_over_dense"] for seed in (0, 1))
    assert rows[3].step_beside == pytest.approx(expected)
    text = table.markdown(outcome.records, "shared words")
    (line,) = (line for line in text.splitlines() if line.startswith("| rigl |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == f"{100 * rows[3].accuracy:.2f} ± {100 * rows[3].accuracy_std:.2f} %"
    assert cells[6] == f"{100 * rows[3].masked:.1f} %"
    assert "shared words" in text and "Measured on: " in text


def test_what_is_done_is_skipped_and_more_can_be_added(made, monkeypatch):
    folder, _, outcome, _ = made
    monkeypatch.setitem(methods.registry(), "broken", Broken)
    again = Comparison(folder, base(), runs(names=("demp", "rigl", "broken"), targets=[]))
    assert again.missing == []
    assert [run.name for run in Comparison(folder, base(), runs(strengths=[0.01, 0.5], targets=[])).missing] == [
        "demp-peak_strength=0.5-s0",
        "demp-peak_strength=0.5-s1",
    ]
    retried = Comparison(folder, base(), runs(names=("demp", "rigl", "broken"), targets=[]), retry=True)
    assert [run.name for run in retried.missing] == ["broken-s0", "broken-s1"]
    assert Store(folder).records() == outcome.records


def test_an_interrupted_comparison_goes_on_to_the_same_end(tmp_path, made):
    planned = runs(seeds=1, targets=[])

    class Stop(Observer):
        def __init__(self, title):
            self.title, self.run = title, None

        def step(self, run, seconds):
            self.run = run

        def asks_to_stop(self):
            return "0.3" in self.title and self.run.step == 7

    with pytest.raises(TrainingInterrupted, match="interrupted: 3 of 4 runs are done; the same command goes on"):
        Comparison(tmp_path / "out", base(), planned).go(view=Stop)
    half = tmp_path / "out" / "runs" / "demp-peak_strength=0.3-s0"
    assert checkpoint.newest(half / "checkpoints").name == "step-000000007.pt"
    with written(tmp_path / "out").open("a") as file:
        file.write('{"name": "cut off in the mid')
    outcome = Comparison(tmp_path / "out", base(), planned).go()
    assert outcome.left == 0
    straight = by_name(made[2].records)
    for record in outcome.records:
        for name in ("eval/loss", "parameters", "train_flops", "cut_steps", "weights_masked"):
            assert record[name] == straight[record["name"]][name]


def test_a_budget_stops_between_steps_and_says_what_is_left(tmp_path):
    planned = runs(base(steps=100_000), seeds=1)
    outcome = Comparison(tmp_path / "out", base(steps=100_000), planned).go(minutes=0.01)
    assert (outcome.records, outcome.left) == ([], 4)
    assert checkpoint.newest(tmp_path / "out" / "runs" / "dense-s0" / "checkpoints") is not None
    for wrong in ({"minutes": 0.0}, {"jobs": 0}):
        with pytest.raises(UsageError, match=r"(budget-minutes is 0|jobs is 0); give"):
            Comparison(tmp_path / "out", base(steps=100_000), planned).go(**wrong)


def test_several_processes_make_the_same_runs_and_one_that_dies_is_a_row(tmp_path, made, monkeypatch):
    planned = runs(seeds=1, targets=[], strengths=[0.3], names=("demp",))
    outcome = Comparison(tmp_path / "out", base(), planned).go(jobs=2)
    straight = by_name(made[2].records)
    for record in outcome.records:
        assert record["eval/loss"] == straight[record["name"]]["eval/loss"]
        assert record["parameters"] == straight[record["name"]]["parameters"]
    assert not list((tmp_path / "out" / "runs").glob("*.log"))
    (tmp_path / "makers.py").write_text(MAKERS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    dying = base(model={"name": "makers:dying"})
    outcome = Comparison(tmp_path / "dead", dying, runs(dying, seeds=1, names=("rigl",), strengths=[])).go(jobs=2)
    assert [record["status"] for record in outcome.records] == ["failed", "failed"]
    log = tmp_path / "dead" / "runs" / "dense-s0.log"
    assert by_name(outcome.records)["dense-s0"]["error"] == f"its process ended with code 7; {log} has what it said"


def test_a_folder_with_other_runs_is_refused(made, tmp_path):
    folder, *_ = made
    with pytest.raises(UsageError, match=r"holds a comparison with another config: .*steps was 12 and is 13"):
        Comparison(folder, base(steps=13), runs(base(steps=13)))
    other = base(method={"options": {"period": 3}})
    with pytest.raises(UsageError, match=r"holds the run demp-.* with another config: method\.options\.period was"):
        Comparison(folder, other, runs(other))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no comparison"):
        Comparison(tmp_path, base(), runs())


def test_a_mistake_that_the_dense_run_shows_ends_the_comparison(tmp_path):
    wrong = base(data={"name": str(tmp_path / "nothing")})
    with pytest.raises(UsageError, match="the dense run cannot be made: "):
        Comparison(tmp_path / "out", wrong, runs(wrong)).go()


def test_another_machine_gives_no_ratio_of_times(made):
    records = [dict(record) for record in made[2].records]
    for record in records:
        if record["labels"]["method"] == "rigl":
            record["machine"] = "another"
    of_rigl = next(row for row in table.rows(records) if row.method == "rigl")
    assert of_rigl.train_time is None and of_rigl.step_late is None and of_rigl.step_beside is not None
    for record in records:
        record["machine"] = "several machines"
    assert all(row.train_time is None for row in table.rows(records))


def test_other_weights_at_the_start_are_remarked(made):
    records = [dict(record) for record in made[2].records]
    assert "Not from" not in table.markdown(records)
    by_name(records)["rigl-s1"]["initial_weights"] = "other"
    assert "Not from the weights of the dense run:\n\n* rigl-s1\n" in table.markdown(records)


# The command ---------------------------------------------------------------------------------------------

COMMAND = [
    "compare", "--methods", "demp,rigl", "--target", "0.5", "--strengths", "0.3", "--model", "mlp", "--steps", "12",
    "--batch-size", "32", "--device", "cpu", "--set", "model.options.hidden=[12, 10]", "--set", "data.probe_size=50",
]  # fmt: skip


def test_the_command_ends_with_table_and_figure_and_takes_up_its_folder_again(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*COMMAND, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "3 runs in" in text and "0 of them done before" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("dense", "demp", "rigl"))] == [
        "dense", "demp", "rigl",
    ]  # fmt: skip
    assert "| rigl | weights 0.5 | 1 |" in (out / "table.md").read_text()
    assert "12 steps, 32 images a step" in (out / "table.md").read_text()
    for name in ("table.md", "accuracy.svg", "accuracy.png"):
        assert (out / name).stat().st_size > 500
        (out / name).unlink()
    assert main(["compare", "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["left"], answer["failed"], answer["out"]) == (0, 0, str(out))
    assert [row["method"] for row in answer["rows"]] == ["dense", "demp", "rigl"]
    expected = [asdict(row) for row in table.rows(Store(out).records())]
    assert answer["rows"] == json.loads(json.dumps(expected))
    assert all(os.path.getsize(file) for file in answer["files"])
    assert main([*COMMAND, "--out", str(out), "--seeds", "2", "--json"]) == 0
    assert [row["seeds"] for row in json.loads(capsys.readouterr().out)["rows"]] == [2, 2, 2]


def test_bad_input_is_one_sentence(tmp_path, capsys, monkeypatch):
    def said(*arguments):
        assert main([*arguments]) == 2
        return capsys.readouterr().err.strip()

    assert said("compare", "--out", str(tmp_path / "none")).startswith(
        "demp: there is nothing to compare; name methods"
    )
    assert "did you mean 'rigl'" in said("compare", "--methods", "rigel")
    assert "give shares in (0, 1)" in said("compare", "--methods", "rigl", "--target", "1.2")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = said(*COMMAND, "--out", str(tmp_path / "out"))
    assert text == "demp: this needs the package matplotlib; install it with: pip install 'demp[report]'"
    assert not (tmp_path / "out").exists()


def test_a_signal_stops_all_processes_with_checkpoints(tmp_path):
    out = tmp_path / "out"
    more = ["--steps", "200000", "--jobs", "2", "--out", str(out)]
    command = [sys.executable, "-m", "demp.cli", *COMMAND, *more]
    process = forks.Popen(command, stdout=forks.PIPE, stderr=forks.PIPE, text=True)
    metrics = [out / "runs" / name / "metrics.jsonl" for name in ("dense-s0", "demp-peak_strength=0.3-s0")]
    until = time.monotonic() + 120
    while time.monotonic() < until and not all(file.is_file() and file.stat().st_size for file in metrics):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted: 0 of 3 runs are done; the same command goes on" in errors
    for file in metrics:
        assert checkpoint.newest(file.parent / "checkpoints") is not None
    assert Store(out).records() == []


def test_twins_of_what_is_done_are_trained_from_scratch(tmp_path, capsys):
    """As a person would: one command makes dense, narrow, DemP and its twin, and one table shows them."""
    (tmp_path / "base.toml").write_text(base().to_toml())
    command = [
        "compare", "--config", str(tmp_path / "base.toml"), "--methods", "demp", "--budget", "neurons=0.5",
        "--twin", "demp", "--longer", "demp", "--out", str(tmp_path / "all"),
    ]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    records = {record["labels"]["method"]: record for record in Store(tmp_path / "all").records()}
    assert set(records) == {"dense", "narrow", "demp", "twin", "narrow, longer"}
    assert records["twin"]["labels"]["setting"] == {"of": "demp", "budget": "neurons=0.5"}
    for name in ("parameters", "neurons", "flops"):
        assert records["twin"][name] == records["demp"][name] < records["dense"][name]
    assert records["narrow"]["neurons"] == records["demp"]["neurons"] == 11
    assert "of demp" in (tmp_path / "all" / "table.md").read_text()
    longer = records["narrow, longer"]
    assert longer["labels"]["setting"] == {"for the training FLOPs of": "demp", "budget": "neurons=0.5"}
    assert longer["neurons"] == 11 and longer["steps"] > records["narrow"]["steps"]
    assert longer["train_flops"] == pytest.approx(records["demp"]["train_flops"], rel=0.5 / longer["steps"])
    row = next(row for row in table.rows(Store(tmp_path / "all").records()) if row.method == "narrow, longer")
    assert row.train_flops == longer["train_flops"] / records["dense"]["train_flops"]
    for option in ("--twin", "--longer"):
        assert main([*command[:-6], option, "rigl", *command[-2:]]) == 2
        assert f"{option} names 'rigl', which is not among the methods compared (demp" in capsys.readouterr().err
    assert main([*command[:-6], "--longer", "narrow", *command[-2:]]) == 2
    assert "--longer names narrow itself" in capsys.readouterr().err
    assert main(["compare", *command[1:5], "--longer", "demp", "--strengths", "0.1", *command[-2:]]) == 2
    assert "--longer needs a narrow network of the budget of demp" in capsys.readouterr().err
