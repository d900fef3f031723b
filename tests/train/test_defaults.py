"""Configs that were kept before a default changed mean what they meant then, wherever they are read again."""

import json

import pytest

from demp import recipes
from demp.errors import UsageError
from demp.experiments import studies
from demp.experiments.studies.result_store import identity_of
from demp.experiments.sweep import Store, training
from demp.train import TrainConfig, resume, train
from demp.train.defaults import as_meant, written_out
from demp.train.runfolder import RunFolder
from resultlines import MEASURED

SMALL = {"model": {"name": "mlp", "width": 0.1}, "data": {"probe_size": 32, "probe_batches": 1}, "batch_size": 32}
MOMENT = {"scoring_batches": 1, "target_neuron_sparsity": 0.3, "trigger": "repository"}


def early(**options) -> TrainConfig:
    method = {"name": "early-snap", "options": {**MOMENT, **options}}
    return recipes.get("digits", steps=12).merged({**SMALL, "method": method})


def test_what_is_written_down_says_it_and_what_does_not_is_older():
    assert written_out(early()).method.options == {**MOMENT, "epoch_of": "run"}
    assert written_out(early(epoch_of="data")) == early(epoch_of="data")
    old = early().to_dict()
    assert as_meant(old)["method"]["options"] == {**MOMENT, "epoch_of": "data"}
    assert old == early().to_dict()
    assert as_meant(written_out(early()).to_dict()) == written_out(early()).to_dict()


@pytest.mark.parametrize("method", ["dense", "demp", "rigl", "demp+rigl"])
def test_methods_without_such_an_option_are_left_alone(method):
    config = early().merged({"method": {"name": method}})
    assert written_out(config) == config and as_meant(config.to_dict()) == config.to_dict()


def test_a_combination_has_the_options_of_both():
    config = early().merged({"method": {"name": "early-snap+rigl"}})
    assert written_out(config).method.options == {"epoch_of": "run"}


@pytest.mark.parametrize("values", [{}, {"method": "demp"}, {"method": {"name": "none of ours"}}, {"method": {}}])
def test_what_is_no_config_stays_for_others_to_refuse(values):
    assert as_meant(values) == values


def test_a_run_folder_says_it_and_an_older_one_goes_on_as_it_began(tmp_path):
    train(early().merged({"out": str(tmp_path / "new"), "checkpoint_every_steps": 4}))
    assert RunFolder(tmp_path / "new").config().method.options["epoch_of"] == "run"
    file = tmp_path / "new" / "config.toml"
    file.write_text(file.read_text().replace('epoch_of = "run"\n', ""))
    assert RunFolder(tmp_path / "new").config().method.options["epoch_of"] == "data"
    (tmp_path / "new" / "summary.json").unlink()
    with pytest.raises(UsageError, match="method.options.epoch_of was 'run' and is 'data'; restore config.toml"):
        resume(tmp_path / "new")


def test_kept_lines_of_studies_stand_for_what_was_run():
    study = studies.find("fig3")
    jobs = {job.labels["line"]: job for job in study.plan("cpu", 1) if job.labels["method"] == "early-crop-s"}
    assert set(jobs) == {"EarlyCroP-S", "EarlyCroP-S, epochs of the data"}
    for line, epoch_of in (("EarlyCroP-S", "run"), ("EarlyCroP-S, epochs of the data", "data")):
        assert jobs[line].arguments["config"]["method"]["options"]["epoch_of"] == epoch_of
        assert identity_of(jobs[line].to_dict()) == jobs[line].identity
    old = json.loads(json.dumps(jobs["EarlyCroP-S"].to_dict()))
    for option in ("epoch_of", "as_published"):
        del old["arguments"]["config"]["method"]["options"][option]
    assert old["labels"]["setting"] == jobs["EarlyCroP-S, epochs of the data"].labels["setting"]
    assert identity_of(old) == jobs["EarlyCroP-S, epochs of the data"].identity


def test_kept_lines_of_sweeps_stand_for_what_was_run(tmp_path):
    now, then = (training(name, early(**more), labels={}) for name, more in (("a", {}), ("b", {"epoch_of": "data"})))
    arguments = json.loads(json.dumps(now.arguments))
    del arguments["config"]["method"]["options"]["epoch_of"]
    line = {"schema": 1, "status": "done", **now.to_dict(), "identity": "old", "arguments": arguments}
    line |= MEASURED
    store = Store(tmp_path / "sweep")
    store.begin([then])
    store.add(line)
    assert set(store.of([now, then])) == {"b"}
    with pytest.raises(UsageError, match="the run a with another config: method.options.epoch_of was 'data' and is 'r"):
        Store(tmp_path / "sweep").begin([now])
    Store(tmp_path / "sweep").begin([then])
