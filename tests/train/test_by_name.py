"""What the trainer gives to a method, and what it writes down about it."""

import json
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from demp import methods, recipes
from demp.analysis.costs import flops_if_zeros_were_free
from demp.errors import UsageError
from demp.importance.gates import Scoring
from demp.methods import MaskMethod, Requirements, Selection
from demp.train import DataConfig, Observer, TrainConfig, TrainingInterrupted, resume, train
from demp.train.data import Data
from demp.train.run import Run
from demp.train.runfolder import read_lines
from demp.train.scale import epoch_share

STEPS = 20
SCORED = 3
"""Batches that the method below scores on."""


@dataclass(frozen=True, kw_only=True)
class OnceConfig(methods.MethodConfig):
    epoch_of: str = "run"
    epoch_steps: int | None = None
    keep: float = 0.5
    """Share of each weight that stays."""


class Once(MaskMethod):
    """Half of the first layer goes before training, by its scores; the upper half of every weight is masked."""

    name = "once"
    summary = reference = "for tests"
    Config = OnceConfig

    def requirements(self):
        return Requirements(scores=True)

    def is_due(self, step):
        return step == 0

    def select(self, step, view):
        if step:
            return Selection()
        layer = view.graph.layers[0]
        scores = view.scores(Scoring(batches=SCORED)).abs()[layer.classes]
        low = torch.zeros(layer.width, dtype=torch.bool)
        low[scores.argsort()[: layer.width // 2]] = True
        return Selection({layer.name: low}, exact=False)

    def initial_masks(self, view):
        masks = {}
        for name, weight in view.maskable().items():
            mask = torch.zeros(weight.numel(), dtype=torch.bool)
            mask[: round(self.config.keep * weight.numel())] = True
            masks[name] = mask.view(weight.shape)
        return masks


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(methods.registry(), "once", Once)


def config(out="", method="once", **changes):
    method = method if isinstance(method, dict) else {"name": method}
    values = {
        "model": {"name": "mlp", "options": {"hidden": [12, 10]}},
        "data": {"name": "digits", "probe_size": 50, "probe_batches": 2},
        "optimizer": {"name": "sgdm", "lr": 0.05},
        "method": method,
        "steps": STEPS,
        "batch_size": 32,
        "label_smoothing": 0.1,
        "device": "cpu",
        "log_every_steps": 5,
        "checkpoint_every_steps": 7,
        "out": str(out),
    }
    return TrainConfig.from_dict(values).merged(changes)


class StopAt(Observer):
    def __init__(self, step):
        self.at, self.run = step, None

    def step(self, run, seconds):
        self.run = run

    def asks_to_stop(self):
        return self.run.step == self.at


def test_labelled_images_are_those_of_the_probes_with_their_own_labels():
    data = Data(DataConfig(name="digits", probe_size=50, probe_batches=2), batch_size=32, seed=0, device="cpu")
    few, many = list(data.labelled_batches(7)), list(data.labelled_batches(7, whole=True))
    assert [len(y) for _, y in many] == [50] * (1442 // 50)
    for (mine, labels), (first, same) in zip(few, many[:2], strict=True):
        assert torch.equal(mine, first) and torch.equal(labels, same)
    images = {data.train.images[row].numpy().tobytes(): int(data.train.labels[row]) for row in range(1442)}
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (data.facts.mean, data.facts.std))
    for x, y in many:
        raw = ((x * std + mean) * 255).round().to(torch.uint8)
        assert [images[image.numpy().tobytes()] for image in raw] == y.tolist()


def test_a_method_scores_on_labelled_training_images_with_the_loss_of_the_run():
    run = Run(config(), resume=True)
    scored = run.pruner._view.scores(Scoring(batches=SCORED))
    layer = run.pruner.graph.layers[0]
    expected = torch.zeros(layer.width)
    whole = run.data.labelled_batches(run.pruner.seed, whole=True)
    model = run.model.eval()
    for _, (x, y) in zip(range(SCORED), whole, strict=False):
        hidden = model[:3](x)
        loss = F.cross_entropy(model[3:](hidden), y, label_smoothing=0.1)
        (gradient,) = torch.autograd.grad(loss, hidden)
        expected += (gradient * hidden).sum(dim=0).detach()
    torch.testing.assert_close(scored[layer.classes].float(), expected, rtol=1e-4, atol=1e-6)


def test_what_happens_before_the_first_step_is_written_down_and_counted(tmp_path):
    result = train(config(tmp_path / "run"))
    first, *_, last = read_lines(tmp_path / "run" / "cuts.jsonl")
    assert (first["step"], first["removed"], last["step"], last["removed"]) == (0, 6, STEPS, 0)
    assert first["judged"] == {"batches": SCORED, "examples": 50 * SCORED, "forwards": 3 * 50 * SCORED}
    summary = result.summary
    dense = 2 * (64 * 12 + 12 * 10 + 10 * 10)
    cut = 2 * (64 * 6 + 6 * 10 + 10 * 10)
    assert (summary["flops_dense"], summary["flops"]) == (dense, cut)
    assert summary["scoring_flops"] == 450 * dense
    assert summary["train_flops"] == 450 * dense + 3 * 32 * STEPS * cut
    assert summary["train_flops_dense"] == 3 * 32 * STEPS * dense
    assert summary["weights_masked"] == 192 + 30 + 50
    assert summary["masked_share"] == (192 + 30 + 50) / summary["parameters_dense"]
    assert summary["weight_sparsity"] == 1 - summary["parameters"] / summary["parameters_dense"]
    assert summary["flops_if_zeros_were_free"] == pytest.approx(cut / 2)
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert {record["prune/weights_masked"] for record in records} == {272.0}


@pytest.mark.parametrize("at", [3, 9])
def test_such_a_run_resumes_to_the_bit(tmp_path, at):
    whole = train(config(tmp_path / "whole"))
    with pytest.raises(TrainingInterrupted, match=f"interrupted after step {at} of 20; continue with: demp resume"):
        train(config(tmp_path / "run"), observers=[StopAt(at)])
    again = resume(tmp_path / "run")
    states = [result.model.state_dict() for result in (whole, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name in ("flops", "train_flops", "scoring_flops", "weights_masked", "initial_weights", "eval/loss"):
        assert whole.summary[name] == again.summary[name]
    cuts = [[cut["step"] for cut in read_lines(tmp_path / run / "cuts.jsonl")] for run in ("whole", "run")]
    assert cuts == [[0, STEPS]] * 2


def test_a_run_without_a_checkpoint_begins_again(tmp_path):
    class Crash(Observer):
        def step(self, run, seconds):
            if run.step == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(config(tmp_path / "run"), observers=[Crash()])
    resume(tmp_path / "run")
    assert [cut["step"] for cut in read_lines(tmp_path / "run" / "cuts.jsonl")] == [0, STEPS]


def test_the_length_of_an_epoch_is_filled_in_where_it_is_left_open():
    def steps(**options) -> int:
        return Run(config(**options), resume=True).pruner.config.epoch_steps

    assert steps(steps=1000) == 10
    assert steps(steps=STEPS) == 1
    of_paper = {"recipe": "resnet18-cifar10", "steps": 2000}
    assert steps(**of_paper) == 2000 / 250
    assert steps(**of_paper, method={"name": "once", "options": {"epoch_of": "data"}}) == round(1442 / 32)
    assert steps(**of_paper, method={"name": "once", "options": {"epoch_of": "data", "epoch_steps": 5}}) == 5
    assert "epoch_steps" not in config().method.options


def test_at_the_papers_length_an_epoch_of_the_run_is_one_of_the_data():
    for recipe, examples in (("resnet18-cifar10", 50_000), ("vgg16-cifar10", 50_000), ("resnet50-imagenet", 1_281_167)):
        own = recipes.get(recipe)
        assert epoch_share(recipe) * own.steps == pytest.approx(examples / own.batch_size, rel=1e-4)


def test_zeros_are_free_in_theory_only():
    run = Run(config(method="dense"))
    assert flops_if_zeros_were_free(run.model, run.example) == run.dense_cost.flops
    with torch.no_grad():
        next(run.model.parameters())[:, :32] = 0
    expected = run.dense_cost.flops - 64 * 12
    assert flops_if_zeros_were_free(run.model, run.example) == pytest.approx(expected)


def test_all_methods_of_a_seed_begin_with_the_same_weights_whatever_they_do_before(tmp_path):
    starts = {name: Run(config(method={"name": name})).initial_weights for name in ("dense", "demp", "once")}
    assert len(set(starts.values())) == 1
    assert Run(config(seed=1)).initial_weights != starts["once"]
    train(config(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["initial_weights"] == starts["once"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onse", "unknown method 'onse'; did you mean 'once'"),
        ("dens", "method.name is 'dens'; did you mean 'dense'"),
        ("xyz", "unknown method 'xyz'; there are: "),
    ],
)
def test_unknown_methods_come_with_a_suggestion(name, message):
    with pytest.raises(UsageError, match=message):
        config(method=name)
