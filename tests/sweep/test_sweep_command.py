"""`demp sweep`, and the grid and the table behind it."""

import json
import re
import statistics
import sys

import pytest
from sweepjobs import CONFIG

from demp.cli import main
from demp.cli.overrides import parse_lists
from demp.errors import UsageError
from demp.experiments.sweep import table
from demp.experiments.sweep.grid import grid, shortened
from demp.files.results import read

STRENGTH = "method.options.peak_strength"
SMALL = [
    "sweep", "--model", "mlp", "--method", "demp", "--batch-size", "32", "--device", "cpu",
    "--set", "model.options.hidden=[12, 10]", "--set", "data.probe_size=50", "--set", "data.probe_batches=1",
]  # fmt: skip
COMMAND = [*SMALL, "--steps", "9", "--grid", f"{STRENGTH}=[0.001, 0.3]", "--grid", "optimizer.name=[adamw,sgdm]"]


def make(setting):
    values = {}
    for key, value in setting.items():
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return CONFIG.merged(values)


def test_a_grid_goes_seed_by_seed_and_its_last_key_varies_fastest():
    jobs = grid(make, {STRENGTH: [0.1, 0.2], "optimizer.name": ["adamw", "sgdm"]}, seeds=2)
    points = [f"peak_strength={strength}-optimizer={name}" for strength in (0.1, 0.2) for name in ("adamw", "sgdm")]
    assert [job.name for job in jobs] == [f"{point}-s{seed}" for seed in (0, 1) for point in points]
    assert jobs[5].labels == {"method": "demp", "setting": {STRENGTH: 0.1, "optimizer.name": "sgdm"}, "seed": 1}
    config = jobs[5].arguments["config"]
    assert (config["optimizer"]["name"], config["seed"]) == ("sgdm", 1)
    assert (
        config["method"]["options"] == {"peak_strength": 0.1, "period": 4} and "beside_dense" not in jobs[5].arguments
    )
    assert [job.name for job in grid(make, {}, seeds=2)] == ["demp-s0", "demp-s1"]
    assert grid(make, {}, measure=True)[0].arguments["beside_dense"] is True


def test_keys_are_short_where_they_stay_apart():
    assert shortened([STRENGTH, "optimizer.name", "lr"]) == {
        STRENGTH: "peak_strength", "optimizer.name": "optimizer", "lr": "lr",
    }  # fmt: skip
    assert shortened(["a.x", "b.x", "b.y"]) == {"a.x": "a.x", "b.x": "b.x", "b.y": "y"}


@pytest.mark.parametrize(
    ("axes", "options", "message"),
    [
        ({STRENGTH: []}, {}, "the grid of method.options.peak_strength has no values"),
        ({"seed": [1]}, {}, "seed cannot be swept here; use --seeds"),
        ({"device": ["cpu"]}, {}, "device cannot be swept here; use --devices"),
        ({"method.options.peek": [1]}, {}, "unknown config key 'method.options.peek'"),
        ({STRENGTH: ["much"]}, {}, "peak_strength is 'much'; give a number"),
        ({}, {"seeds": 0}, "seeds is 0; give at least 1"),
    ],
)
def test_what_is_no_grid_is_refused(axes, options, message):
    with pytest.raises(UsageError, match=message):
        grid(make, axes, **options)


def test_lists_need_no_quotes():
    assert parse_lists(["a.b=[0.001,0.01]", "c=[adamw, sgdm]", "d=[[12, 10], [8]]", "e=[true]"], "") == {
        "a.b": [0.001, 0.01], "c": ["adamw", "sgdm"], "d": [[12, 10], [8]], "e": [True],
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"a=3 is no list of values; write for example --grid x=\[1\]"):
        parse_lists(["a=3"], "--grid x=[1]")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sweep of four settings and two seeds, made by the command."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    assert main([*COMMAND, "--seeds", "2", "--out", str(out)]) == 0
    return out


def test_the_command_makes_every_point_and_a_table_of_means(made, capsys):
    capsys.readouterr()
    assert main(["sweep", "--out", str(made), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["left"], answer["failed"], answer["skipped"], answer["front"]) == (0, 0, [], [])
    records = read(made).found
    assert len(records) == 8 and {record["resumed"] for record in records} == {False}
    settings = [{STRENGTH: s, "optimizer.name": o} for s in (0.001, 0.3) for o in ("adamw", "sgdm")]
    by_setting = {json.dumps(row["setting"]): row for row in answer["rows"]}
    assert set(by_setting) == {json.dumps(setting) for setting in settings}
    for setting in settings:
        two = [record for record in records if record["labels"]["setting"] == setting]
        row = by_setting[json.dumps(setting)]
        assert (row["method"], row["seeds"], row["failed"]) == ("demp", 2, 0)
        for name, of in (
            ("accuracy", lambda r: r["eval/top1"]),
            ("weight_sparsity", lambda r: 1 - r["parameters"] / r["parameters_dense"]),
            ("flops", lambda r: r["flops"] / r["flops_dense"]),
            ("train_flops", lambda r: r["train_flops"] / r["train_flops_dense"]),
        ):
            assert row[name] == pytest.approx(statistics.fmean(map(of, two)))
            assert row[f"{name}_std"] == pytest.approx(statistics.stdev(map(of, two)))
        expected = rf"\| demp \| {setting[STRENGTH]:g} \| {setting['optimizer.name']} \| 2 \| "
        (line,) = re.findall(expected + ".*", (made / "table.md").read_text())
        assert f"| {100 * row['accuracy']:.2f} ± {100 * row['accuracy_std']:.2f} % |" in line
    text = (made / "table.md").read_text()
    assert "9 steps, 32 images a step, fp32; for each seed the same weights" in text and "learning rate" not in text


def test_only_what_is_missing_is_made_and_another_base_is_refused(made, capsys, monkeypatch):
    before = read(made).found
    assert main([*COMMAND, "--seeds", "2", "--out", str(made)]) == 0
    assert "8 runs in" in capsys.readouterr().out and read(made).found == before
    assert main([*COMMAND, "--lr", "0.5", "--out", str(made)]) == 2
    error = capsys.readouterr().err
    assert "holds a sweep with another config: base.optimizer.lr was " in error and "and is 0.5; give another" in error
    assert main([*COMMAND, "--search", "--out", str(made)]) == 2
    assert "a search has no --grid" in capsys.readouterr().err


def test_a_failed_run_is_a_row_and_strange_lines_are_named(tmp_path, capsys):
    out = tmp_path / "out"
    grid_of = ["--steps", "4", "--grid", f"data.name=[digits,{tmp_path}]"]
    assert main([*SMALL, *grid_of, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\[2/2\] data=.*-s0: failed: ", text) and "0, 1 failed" in (out / "table.md").read_text()
    (out / "results" / "other.jsonl").write_text("not mine\n")
    assert main(["sweep", "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["failed"], answer["skipped"]) == (1, [f"{out}/results/other.jsonl:1 is not whole"])
    assert "1 lines of the results were skipped: " in captured.err


def test_a_search_by_command(tmp_path, capsys):
    out = tmp_path / "out"
    space = ["--search-space", f"{STRENGTH}=log:1e-3:1", "--search-space", "optimizer.name=[adamw,sgdm]"]
    assert main([*SMALL, "--steps", "4", "--search", *space, "--trials", "2", "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["trial"] for row in answer["rows"]] == [0, 1] and answer["left"] == 0
    assert answer["front"] and set(answer["front"]) <= {0, 1}
    assert main(["sweep", "--out", str(out)]) == 0
    assert f"| {answer['front'][0]} * | demp |" in (out / "table.md").read_text()


def test_bad_input_is_one_sentence(tmp_path, capsys, monkeypatch):
    def said(*arguments):
        assert main(["sweep", *arguments, "--out", str(tmp_path / "none")]) == 2
        error = capsys.readouterr().err.strip()
        assert not (tmp_path / "none").exists()
        return error

    assert "there is nothing to sweep; name values, for example --grid" in said()
    assert "is no list of values; write for example --grid" in said("--grid", f"{STRENGTH}=0.1")
    assert "--device and --devices both say" in said("--device", "cpu", "--devices", "cpu", "--seeds", "2")
    assert "devices are cpu, cuda:0; give those of one kind" in said("--devices", "cpu,cuda:0")
    assert "there is nothing to search" in said("--search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    text = said("--search-space", f"{STRENGTH}=0.1:0.2")
    assert text == "demp: this needs the package optuna; install it with: pip install 'demp[search]'"


def test_tables_name_what_varies():
    def record(seed, top1, **setting):
        values = {"neuron_sparsity": 0.5, "weight_sparsity": 0.25, "masked_share": 0.0, "flops": 5, "flops_dense": 10}
        values |= {"train_flops": 8, "train_flops_dense": 10, "train_seconds": 2.0, "split": "test", "machine": "m"}
        labels = {"method": "demp", "setting": setting, "seed": seed}
        return {"name": f"r{seed}", "status": "done", "labels": labels, "eval/top1": top1, "torch": "t", **values}

    records = [record(0, 0.9, lr=0.2), record(0, 0.5, lr=0.1), record(1, 0.7, lr=0.1)]
    failed = {"name": "f", "status": "failed", "error": "why", "labels": {"method": "demp", "setting": {}, "seed": 0}}
    columns = dict(table.columns(table.rows([*records, failed]), "test"))
    assert list(columns) == [
        "method", "lr", "seeds", "test accuracy", "neurons removed", "weights removed", "FLOPs", "training FLOPs",
        "training, s",
    ]  # fmt: skip
    assert columns["lr"] == ["–", "0.1", "0.2"] and columns["seeds"] == ["0, 1 failed", "2", "1"]
    assert columns["test accuracy"] == ["–", "60.00 ± 14.14 %", "90.00 %"]
    assert columns["training FLOPs"] == ["–", "0.800", "0.800"] and columns["training, s"] == ["–", "2.0", "2.0"]
    assert "Measured on: m, torch t.\n\nFailed:\n\n* f: why\n" in table.markdown([*records, failed])
