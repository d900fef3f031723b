"""Dead neurons in metrics.jsonl: counted right, through cuts and crashes, without changing the run."""

from types import SimpleNamespace

import pytest
import torch
from test_checkpoint import Crash, assert_equal, assert_same_run, checkpoint, config, timeless
from torch import nn

from demp.errors import UsageError
from demp.train import MonitorConfig, Observer, TrainConfig, resume, train
from demp.train.monitoring import Monitor
from demp.train.run import Run
from demp.train.runfolder import read_lines

EVERY = {"monitor": {"every_steps": 6, "examples": 100, "whole_every_steps": 12}}


def looks(folder):
    """The lines about dead neurons."""
    return [line for line in read_lines(folder / "metrics.jsonl") if "dead/share" in line]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A DemP run with cuts that is monitored, and its twin that is not."""
    folder = tmp_path_factory.mktemp("watched")
    train(config("demp", folder / "watched", **EVERY))
    train(config("demp", folder / "plain"))
    return folder


def test_a_run_that_is_watched_is_the_run_that_is_not(watched):
    lines = read_lines(watched / "watched" / "metrics.jsonl")
    others = [line for line in lines if "dead/share" not in line]
    assert timeless(others) == timeless(read_lines(watched / "plain" / "metrics.jsonl"))
    cuts = [timeless(read_lines(watched / name / "cuts.jsonl")) for name in ("watched", "plain")]
    assert cuts[0] == cuts[1] and sum(cut["removed"] for cut in cuts[0]) > 0
    folders = (watched / name / "checkpoints" for name in ("watched", "plain"))
    states = [checkpoint.load(checkpoint.newest(folder)) for folder in folders]
    for part in ("model", "optimizer", "pruner"):
        assert_equal(states[0][part], states[1][part])


def test_looks_come_at_the_start_every_so_often_and_at_the_end(watched):
    found = looks(watched / "watched")
    assert [line["step"] for line in found] == [0, 6, 12, 18, 24, 30, 36]
    assert ["dead/share_whole" in line for line in found] == [True, False, True, False, True, False, True]
    assert "dead/overlap" not in found[0] and "dead/overlap" in found[-1]


def test_removed_neurons_count_as_dead_and_layers_add_up(watched):
    found = looks(watched / "watched")
    alive = {0: 40} | {cut["step"]: cut["neurons_after"] for cut in read_lines(watched / "watched" / "cuts.jsonl")}
    for line in found:
        neurons = line["dead/neurons"]
        assert line["dead/share"] == neurons / 40
        removed = 40 - alive[max(step for step in alive if step <= line["step"] and step < 36)]
        assert neurons >= removed
        layers = {name: share for name, share in line.items() if name.startswith("dead/share/")}
        assert len(layers) == 3
        assert sum(layers.values()) > 0 or neurons == 0
    assert found[-1]["dead/neurons"] > 20
    for line in found:
        if "dead/share_whole" in line:  # more images can only show more life
            assert line["dead/share_whole"] <= line["dead/share"]


def test_a_crashed_run_goes_on_with_what_had_ever_been_dead(watched, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(config("demp", out, **EVERY), observers=[Crash(20)])
    resume(out, trust=True)
    assert_same_run(watched / "watched", out)


class Twin(Observer):
    """Recomputes every look of a run of an MLP by hand: outputs of its ReLUs on the images of the look."""

    def __init__(self, absolute=None):
        self.absolute, self.ever, self.last, self.lines = absolute, {}, {}, []

    def start(self, run):
        self.run = run

    def log(self, record):
        if "dead/share" not in record:
            return
        dead = self.dead(list(self.run.monitor._images(self.run.config.monitor.examples, self.run.step)))
        X, Y = ({key for key, flag in flags.items() if flag} for flags in (self.ever, dead))
        wanted = {
            "step": self.run.step,
            "dead/share": len(Y) / len(dead),
            "dead/neurons": len(Y),
            "dead/revived": len([key for key, flag in self.last.items() if flag and not dead[key]]),
        }
        wanted |= {"dead/overlap": len(X & Y) / min(len(X), len(Y))} if X and Y else {}
        wanted |= {"dead/still": len(X & Y) / len(X)} if X else {}
        for name in {key[0] for key in dead}:
            layer = [flag for key, flag in dead.items() if key[0] == name]
            wanted[f"dead/share/{name}"] = sum(layer) / len(layer)
        assert record == wanted
        self.ever = {key: flag or self.ever.get(key, False) for key, flag in dead.items()}
        self.last = dead
        self.lines.append(record)

    def dead(self, batches):
        tops = {}

        def look(name):
            def hook(module, args, out):
                tops.setdefault(name, []).append(out.detach().abs().amax(0))

            return hook

        model = self.run.model
        acts = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
        hooks = [module.register_forward_hook(look(name)) for name, module in acts]
        was, state = model.training, torch.random.get_rng_state()
        model.eval()
        with torch.no_grad():
            for (x,) in batches:
                model(x)
        model.train(was)
        torch.random.set_rng_state(state)
        for handle in hooks:
            handle.remove()
        return {
            (name, unit): all(self.is_dead(top[unit].item()) for top in per_batch)
            for name, per_batch in tops.items()
            for unit in range(len(per_batch[0]))
        }

    def is_dead(self, top):
        return top == 0 if self.absolute is None else top < self.absolute or top == 0


def mlp(**monitor):
    values = {
        "model": {"name": "mlp", "options": {"hidden": [30, 20]}},
        "data": {"name": "digits", "probe_size": 64},
        "optimizer": {"name": "sgdm", "lr": 0.5},
        "method": {"name": "dense"},
        "steps": 40,
        "batch_size": 32,
        "device": "cpu",
        "monitor": {"every_steps": 8, "examples": 150, **monitor},
    }
    return TrainConfig.from_dict(values)


@pytest.mark.parametrize(
    ("monitor", "absolute"),
    [({}, None), ({"resample": False}, None), ({"criterion": "epsilon", "eps": 0.3, "relative": False}, 0.3)],
)
def test_every_look_is_what_one_computes_by_hand(monitor, absolute):
    twin = Twin(absolute)
    train(mlp(**monitor), observers=[twin])
    assert [line["step"] for line in twin.lines] == [0, 8, 16, 24, 32, 40]
    assert twin.lines[-1]["dead/neurons"] > 0


def test_the_same_images_or_others_at_every_look():
    for resample in (True, False):
        run = Run(mlp(resample=resample, examples=70))
        first = [x for (x,) in run.monitor._images(70, 0)]
        assert [len(x) for x in first] == [64, 6]
        again = [x for (x,) in run.monitor._images(70, 8)]
        assert torch.equal(torch.cat(first), torch.cat(again)) != resample
    everything = sum(len(x) for (x,) in run.monitor._images(0, 8))
    assert everything == run.data.facts.train_size


def test_one_number_instead_of_one_per_layer_and_none_when_off(tmp_path):
    train(mlp(layers=False).merged({"steps": 8, "out": str(tmp_path / "run")}))
    (first, *_) = looks(tmp_path / "run")
    assert sorted(first) == ["dead/neurons", "dead/revived", "dead/share", "step"]
    run = Run(mlp(every_steps=0))
    assert not run.monitor.is_due(0) and run.state_dict()["monitor"] is None


def test_plain_progress_says_how_many_are_dead(tmp_path):
    import io

    from demp.train.progress import PlainProgress

    out = io.StringIO()
    train(mlp().merged({"steps": 8}), observers=[PlainProgress(file=out)])
    assert "step 8 of 8  dead neurons " in out.getvalue()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"every_steps": -1}, "monitor.every_steps is -1"),
        ({"examples": -5}, "monitor.examples is -5"),
        ({"every_steps": 10, "whole_every_steps": 15}, "monitor.whole_every_steps is 15; give a multiple"),
        ({"whole_every_steps": 15}, "must be above 0"),
        ({"criterion": "quiet"}, "monitor.criterion is 'quiet'; choose one of auto, paper, exact"),
        ({"eps": -0.1}, "monitor.eps is -0.1"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(values, says):
    with pytest.raises(UsageError, match=says):
        MonitorConfig(**values)


def test_saturated_neurons_are_told_apart_from_dead_ones():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(9, 4)
    with torch.no_grad():
        model[0].weight[:3], model[0].bias[:3] = 0.0, torch.tensor([-1.0, 2.0, 3.0])
    found = {}
    for criterion in ("exact", "saturated"):
        config = TrainConfig(steps=2, monitor=MonitorConfig(every_steps=1, examples=9, criterion=criterion))
        data = SimpleNamespace(drawn=lambda count, draw: [(x, None)], facts=SimpleNamespace(train_size=9))
        found[criterion] = Monitor(config, model, None, data, example=(x,), placed=lambda t: t).look(0)
    plain, both = found["exact"], found["saturated"]
    assert not any(name.startswith("saturated") for name in plain)
    assert both["dead/share"] == plain["dead/share"] == pytest.approx(0.2) and both["dead/neurons"] == 1
    assert (both["saturated/neurons"], both["saturated/share"]) == (2, pytest.approx(0.4))
    assert both["saturated/share/1"] == pytest.approx(0.4) and both["dead/share/1"] == pytest.approx(0.2)
