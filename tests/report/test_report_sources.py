"""What a report reads: run folders of the trainer, sweeps, studies, folders of them; whatever else lies there."""

import json
import random
import shutil
import statistics
from itertools import pairwise

import pytest
from runfolders import STUDY, append, lines_of, outcome, write_run, write_sweep

from demp import recipes
from demp.errors import UsageError
from demp.experiments.report import sources
from demp.experiments.report.comparable import comparable_runs
from demp.experiments.report.groups import Dense, accuracy, best, groups_of, share
from demp.experiments.report.results import LONG, ends_of
from demp.experiments.report.runs import before, read_run, spending, study_closely
from demp.experiments.report.sources import gather
from demp.files.reading import Skipped
from demp.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the real trainer that cut, scored and tested."""
    out = tmp_path_factory.mktemp("trained") / "run"
    config = recipes.get("digits", steps=40).merged(
        {"model": {"name": "mlp"}, "batch_size": 32, "device": "cpu", "out": str(out), "log_every_steps": 4}
    )
    config = config.merged({"method": {"options": {"peak_noise_std": 0.05, "peak_strength": 0.1, "period": 10}}})
    summary = train(config.merged({"optimizer": {"lr": 0.03}})).summary
    assert summary["neurons"] < summary["neurons_dense"]
    return out


def test_a_real_run_reads_as_its_files_say(trained):
    material = gather([trained])
    (run,) = material.runs
    summary = json.loads((trained / "summary.json").read_text())
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    cuts = [json.loads(line) for line in (trained / "cuts.jsonl").read_text().splitlines()]
    assert material.skipped == [] and material.shown == [run] and not material.live
    assert (run.name, run.method, run.seed, run.status, run.steps, run.step) == ("run", "demp", 0, "done", 40, 40)
    assert run.outcome == summary
    for name in ("train/loss", "demp/strength", "prune/neurons_alive", "cost/flops", "eval/top1"):
        pairs = dict.fromkeys((m["step"], m[name]) for m in metrics if name in m)  # the end is logged twice
        assert [tuple(p) for p in run.series[name]] == list(pairs)
    assert [(cut.step, cut.removed, cut.neurons) for cut in run.cuts] == [
        (cut["step"], cut["removed"], cut["neurons_after"]) for cut in cuts
    ]
    assert run.widths == {name: layer["before"] for name, layer in cuts[0]["layers"].items()}
    assert run.cuts[-1].kept == {name: layer["kept"] for name, layer in cuts[-1]["layers"].items()}
    assert sum(run.cuts[-1].kept.values()) == summary["neurons"]


def test_flops_spent_are_the_trainers_to_the_last(trained):
    run = read_run(trained, Skipped())
    study_closely(run, Skipped())
    assert run.tests[-1].flops == run.outcome["train_flops"]
    assert run.tests[-1].accuracy == run.outcome["eval/top1"]
    assert run.tests[-1].seconds <= run.outcome["train_seconds"]
    spent = [spending(run)(step) for step in range(41)]
    assert spent[0] == 0 and all(b > a for a, b in pairwise(spent))


def test_flops_on_the_way_by_hand(tmp_path):
    folder = write_run(tmp_path / "run", removed=0.5, steps=200)
    run = read_run(folder, Skipped())
    study_closely(run, Skipped())
    flops, spent, expected = 1e6, 0.0, {}
    cuts = {cut.step: cut for cut in run.cuts}
    for step in range(1, 201):
        spent += 3 * 32 * flops
        if step in cuts:
            spent += 10 * cuts[step].flops_before
            flops = cuts[step].flops
        expected[step] = spent
    assert {test.step: test.flops for test in run.tests} == pytest.approx({s: expected[s] for s in (50, 100, 150, 200)})


def test_the_last_value_at_a_step():
    points = [(1, "a"), (3, "b"), (3, "c"), (9, "d")]
    assert [before(points, step) for step in (0, 1, 2, 3, 8, 9, 99)] == [None, "a", "a", "c", "c", "d", "d"]


def test_a_run_under_way_says_where_it_stands(tmp_path):
    folder = write_run(tmp_path / "run", upto=100)
    append(folder / "metrics.jsonl", '{"step": 105, "train/lo')
    material = gather([folder])
    (run,) = material.runs
    assert material.live and run.status == "unfinished"
    assert (run.step, run.steps, run.value("neurons"), run.share("parameters")) == (100, 200, 32.0, 0.5)
    assert [str(fault) for fault in material.skipped] == [f"{folder / 'metrics.jsonl'}: line 23: half-written"]


def test_a_sweep_gives_settings_with_means_over_seeds(tmp_path):
    material = gather([write_sweep(tmp_path / "sweep", seeds=3)])
    groups, dense = groups_of(material.runs), Dense(material.runs)
    assert [(group.name, len(group.done)) for group in groups] == [
        ("dense", 3), ("demp, strength 0.01", 3), ("demp, strength 0.1", 3),
    ]  # fmt: skip
    values = [0.9 - 0.004 + 0.002 * seed for seed in range(3)]
    assert groups[1].mean(accuracy) == pytest.approx(statistics.fmean(values))
    assert groups[1].std(accuracy) == pytest.approx(statistics.stdev(values))
    assert groups[2].mean(share("parameters")) == pytest.approx(0.2)
    assert dense.accuracy == pytest.approx(0.902)
    assert groups[1].mean(dense.step_ratio) == pytest.approx(0.8)
    assert groups[1].mean(lambda run: dense.over(run, "train_seconds")) == pytest.approx(16 / 20)
    chosen = best(groups, dense)  # the stronger one is 1.6 points below dense
    assert chosen is groups[1]
    others = [f"demp-{at}-s{seed}" for seed in (1, 2) for at in (1, 2)]
    assert [run.name for run in material.shown] == ["demp-1-s0", "demp-2-s0", *others, "dense-0-s0"]


def test_times_of_other_machines_do_not_compare(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", seeds=1)
    file = sweep / "results" / "here-1.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records[0]["machine"] = "another one"
    for record in records:
        record.pop("step_over_dense", None)
    file.write_text(lines_of(records))
    runs = gather([sweep]).runs
    dense = Dense(runs)
    assert [dense.over(run, "train_seconds") for run in runs] == [1.0, None, None]
    assert [dense.step_ratio(run) for run in runs] == [1.0, None, None]


def test_the_last_word_counts_and_done_stays_done(tmp_path):
    done = {"schema": 1, "labels": {"method": "demp"}, "status": "done", **outcome("demp", 0, 10, 0.5, 0.9)}
    failed = {"schema": 1, "labels": {"method": "demp"}, "status": "failed", "error": "no memory"}
    lines = [
        {"name": "a", **failed}, {"name": "b", **done}, {"name": "a", **done}, {"name": "b", **failed},
        {"name": "c", **failed}, {"name": "b", **done, "eval/top1": 0.5}, {"name": "d", **done, "schema": 2}, {"x": 1},
    ]  # fmt: skip
    (tmp_path / "all.jsonl").write_text(lines_of(lines) + '{"name": "e", "sta')
    material = gather([tmp_path / "all.jsonl"])
    assert [(run.name, run.status, accuracy(run)) for run in material.runs] == [
        ("a", "done", 0.9), ("b", "done", 0.5), ("c", "failed", None),
    ]  # fmt: skip
    assert material.runs[2].error == "no memory"
    assert [str(fault).partition(": ")[2] for fault in material.skipped] == [
        "line 7: schema 2, this version reads 1", "line 8: no result", "line 9: half-written",
    ]  # fmt: skip


def test_lines_without_labels_are_read_too(tmp_path):
    done = {"schema": 1, "status": "done", "optimizer": "adamw", **outcome("demp", 1, 10, 0.5, 0.9)}
    records = [{"name": f"r{s}", "setting": {"peak_strength": s}, **done} for s in (0.1, 0.2)]
    (tmp_path / "results.jsonl").write_text(lines_of(records))
    assert [group.name for group in groups_of(gather([tmp_path]).runs)] == ["demp, strength 0.1", "demp, strength 0.2"]


def test_runs_of_a_folder_are_told_apart_by_what_differs(tmp_path):
    for at, strength in enumerate((0.1, 0.2)):
        for seed in (0, 1):
            write_run(tmp_path / f"{at}{seed}", seed=seed, peak_strength=strength, period=20)
    groups = groups_of(gather([tmp_path]).runs)
    assert [(group.name, [run.seed for run in group.runs]) for group in groups] == [
        ("demp, strength 0.1", [0, 1]), ("demp, strength 0.2", [0, 1]),
    ]  # fmt: skip


def test_runs_of_one_name_are_told_apart(tmp_path):
    for place in "ab":
        write_run(tmp_path / place / "run", peak_strength=0.1)
    names = [run.name for run in gather([tmp_path / "a" / "run", tmp_path / "b" / "run"]).runs]
    assert names == ["a/run", "b/run"]
    again = [run.name for run in gather([tmp_path / "a" / "run"] * 2).runs]
    assert len(set(again)) == 2


def test_a_folder_of_sweeps_and_runs(tmp_path):
    write_sweep(tmp_path / "sweep", seeds=1)
    write_run(tmp_path / "alone")
    (tmp_path / "empty").mkdir()
    assert [run.name for run in gather([tmp_path]).runs] == ["alone", "dense-0-s0", "demp-1-s0", "demp-2-s0"]


def test_a_sweep_shows_runs_that_have_no_line_yet(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", seeds=1)
    write_run(sweep / "runs" / "snap-s0", "snap", upto=50)
    about = {"labels": {"method": "snap", "setting": {"target_neuron_sparsity": 0.5}, "seed": 0}}
    (sweep / "runs" / "snap-s0.json").write_text(json.dumps(about))
    material = gather([sweep])
    run = material.runs[-1]
    assert material.live and (run.name, run.method, run.step) == ("snap-s0", "snap", 50)
    assert groups_of(material.runs)[-1].name == "snap, neurons 0.5"


def test_series_in_lines_replace_run_folders(tmp_path):
    sweep = write_sweep(tmp_path / "sweep", seeds=1)
    shutil.rmtree(sweep / "runs")
    file = sweep / "results" / "here-1.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    dead = [[1, 0.5], [2, None], ["x", 1], [3, 0.25], 4]
    records[1]["series"] = {"dead/share": dead, "eval/top1": [[3, 0.5]], "odd": 1}
    file.write_text(lines_of(records))
    material = gather([sweep])
    assert [run.name for run in material.shown] == ["demp-1-s0"]
    assert [tuple(p) for p in material.shown[0].series["dead/share"]] == [(1, 0.5), (3, 0.25)]
    assert material.shown[0].tests == [(3, 0.5, None, None)]


def write_studies(folder):
    """results/cpu with two studies, and a third whose summary is damaged."""
    sweep = write_sweep(folder / "sweep", seeds=1)
    cpu = folder / "results" / "cpu"
    shutil.copytree(sweep / "results", cpu)
    (cpu / "here-1.jsonl").rename(cpu / "fig3.jsonl")
    (cpu / "fig3.json").write_text(json.dumps(STUDY))
    (cpu / "fig3.svg").write_text("<svg/>")
    odd = {"schema": 1, "claims": [{"sentence": "x", "holds": "yes"}, 3, {"sentence": "fine", "paper": 0.5}]}
    (cpu / "fig5.json").write_text(json.dumps(odd))
    (cpu / "fig7.json").write_text("{}x")
    (cpu / "other.json").write_text("{}x")
    return cpu


def test_a_study_is_its_summary_its_figure_and_its_runs(tmp_path, monkeypatch):
    cpu = write_studies(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in (cpu / "fig3.jsonl", cpu / "fig3.json", "fig3"):
        material = gather([path])
        assert len(material.runs) == 3 and material.skipped == []
        (study,) = material.studies
        about = (study.id, study.title, study.section, study.scale, study.runs, study.figure)
        assert about == ("fig3", "Structured pruning", "Sec. 4.1", "cpu", "3 of 4 runs", b"<svg/>")
        assert [claim.verdict for claim in study.claims] == ["holds", "does not hold", "open"]
        assert (study.headings, study.rows) == (("method", "accuracy"), (("demp", "90 %"),))
        assert study.notes == ("One seed.",)


def test_a_folder_of_studies(tmp_path):
    material = gather([write_studies(tmp_path)])
    assert [study.id for study in material.studies] == ["fig3", "fig5"]
    assert [(c.study, c.sentence, c.paper, c.ours, c.holds) for c in material.studies[1].claims] == [
        ("fig5", "fine", "0.5", "", None)
    ]
    assert [str(fault).rpartition("/")[2] for fault in material.skipped] == [
        "fig5.json: claim 1 is no claim", "fig5.json: claim 2 is no claim", "fig7.json: not JSON",
    ]  # fmt: skip


def test_studies_come_in_the_order_of_the_paper(tmp_path):
    for name in ("fig11", "controls", "fig2", "table1", "fig1", "theory", "fig10", "fig9"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**STUDY, "id": name}))
    found = [study.id for study in gather([tmp_path]).studies]
    assert found == ["fig1", "fig2", "fig9", "fig10", "fig11", "table1", "controls", "theory"]


def test_a_study_by_name_is_that_of_the_largest_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for scale in ("cpu", "smoke", "paper"):
        (tmp_path / "results" / scale).mkdir(parents=True)
        (tmp_path / "results" / scale / "table1.json").write_text(json.dumps(STUDY | {"scale": scale}))
    assert [study.scale for study in gather(["table1"]).studies] == ["paper"]
    with pytest.raises(UsageError, match="there are no results of fig9 in results; make them with: demp study fig9"):
        gather(["fig9"])
    write_run(tmp_path / "fig9")  # a folder of that name is meant first
    assert [run.name for run in gather(["fig9"]).runs] == ["fig9"]


def test_only_runs_of_one_kind_are_compared(tmp_path):
    for name, steps in (("short", 100), ("long", 200)):
        write_run(tmp_path / f"{name}-dense", "dense", steps=steps, accuracy=0.8 if steps == 100 else 0.9)
        write_run(tmp_path / f"{name}-demp", steps=steps, accuracy=0.79 if steps == 100 else 0.895)
    write_run(tmp_path / "long-snap", "snap")
    worlds = comparable_runs(gather([tmp_path]).runs)
    assert [(world.name, len(world.runs), world.dense.accuracy) for world in worlds] == [
        ("mlp on digits", 3, 0.9), ("mlp on digits", 2, 0.8),
    ]  # fmt: skip


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"give a run, a sweep"):
        gather([])
    with pytest.raises(UsageError, match=r"there is no .*nowhere"):
        gather([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match=r"holds no run; give the folder of a run \(with config.toml\)"):
        gather([tmp_path])
    (tmp_path / "results.jsonl").write_text("what?\n")
    with pytest.raises(UsageError, match=r"holds no run \(skipped: .*results.jsonl: line 1: not JSON\); give"):
        gather([tmp_path])


def test_many_runs_are_read_by_several_processes(tmp_path, monkeypatch):
    for at in range(12):
        folder = write_run(tmp_path / f"{at:02}", seed=at)
        append(folder / "metrics.jsonl", f"line of {at}\n")
    alone = gather([tmp_path])
    monkeypatch.setattr(sources, "MANY", 2)
    monkeypatch.setattr(sources.os, "cpu_count", lambda: 2)
    assert not sources.may_fork()  # the trainer is loaded here
    monkeypatch.setattr(sources, "may_fork", lambda: True)
    together = gather([tmp_path])
    assert together == alone
    assert [fault.count for fault in together.skipped] == [1] * 12


def test_long_series_in_lines_keep_their_extremes(tmp_path):
    draw = random.Random(1)
    pairs = [[at, draw.random()] for at in range(7001)]
    pairs[3333][1], pairs[5001][1] = 9.0, -9.0
    kept = ends_of(pairs)
    assert len(kept) <= 2 * (LONG + 1) + 2 and kept[0] == pairs[0] and kept[-1] == pairs[-1]
    assert [found(kept, key=lambda pair: pair[1])[1] for found in (max, min)] == [9.0, -9.0]
    width = 7001 // LONG
    for at in range(0, 7001, width):
        stretch = sorted(pairs[at : at + width], key=lambda pair: pair[1])
        assert stretch[0] in kept and stretch[-1] in kept
    assert [pair[0] for pair in kept[1:-1]] == sorted(pair[0] for pair in kept[1:-1])
    for odd in (pairs[:700], [*pairs, None], [*pairs, [1]], [*pairs, [1, "x"]], [{}] * 2000):
        assert ends_of(odd) is odd
