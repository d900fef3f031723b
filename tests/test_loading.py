"""State dicts of any width: a dense, a narrower or a wider model takes theirs, or nothing changes and it says why."""

import copy
import io
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import demp
import killing
import nets
import residuals
import streaming
from comparing import gap, outputs
from demp.errors import UsageError
from demp.graph.calls import model_calls
from demp.graph.joins import model_joins
from demp.graph.parts import STREAM
from demp.surgery import record_of
from demp.surgery.beside import beside, module_sizes
from runs import IMAGE, PlainNet, build, examples, quiet_demp, train
from thinning import mostly_slow


class Halves(nn.Module):
    """Half of the channels goes on by itself: a cut says what the halves are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 8, 3, padding=1), nn.ReLU()
        self.one, self.one_act = nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.act(self.stem(x)).chunk(2, 1)
        return self.head(torch.cat([self.one_act(self.one(a)), b], 1).mean((2, 3)))


def halves() -> "Made":
    return Halves().double(), (torch.randn(3, 2, 6, 6, dtype=torch.float64),)


Made = tuple[nn.Module, tuple[Tensor, ...]]
NETWORKS: dict[str, Callable[[], Made]] = {
    "plain": nets.plain,
    "flattened, 1d": lambda: nets.plain(dims=1, widths=(4, 5, 3)),
    "separable": nets.separable,
    "grouped": nets.grouped,
    "transposed": lambda: nets.grouped(groups=3, transposed=True),
    "whole groups": lambda: nets.grouped(groups=6, inner=1, outer=1),
    "residual": nets.residual,
    "joins": residuals.network,
    "dense": nets.dense,
    "branches": nets.branches,
    "tokens": nets.tokens,
    "experts": nets.experts,
    "halves": halves,
    "packed experts": lambda: nets.experts(packed=True),
}


QUICK = ("flattened, 1d", "grouped", "transposed", "joins", "branches", "tokens", "halves", "packed experts")


def filed(model: nn.Module) -> Any:
    """A state dict as it comes back from a file."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def narrower(model: nn.Module, inputs: tuple[Tensor, ...], seed: int, share: float = 0.4) -> nn.Module:
    """A copy that lost random neurons."""
    model = copy.deepcopy(model)
    graph = demp.trace(model, inputs)
    dead = killing.some_dead(graph, share, random.Random(seed))
    demp.cut(model, dead, example_inputs=inputs, graph=graph, exact=False)
    return model


def facts(model: nn.Module) -> Any:
    """What a model is beside its values."""
    record = record_of(model)
    kept = {} if record is None else {key: keep.tolist() for key, keep in record.kept.items()}
    return (
        module_sizes(model),
        model_joins(model),
        model_calls(model),
        {n: t.shape for n, t in model.state_dict().items()},
        kept,
    )


@pytest.mark.parametrize("name", mostly_slow(NETWORKS, QUICK))
def test_any_width_takes_any_other(name: str):
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    model, inputs = nets.settle(model), tuple(x.double() for x in inputs)
    once = narrower(model, inputs, 1)
    ends = [model, once, narrower(once, inputs, 2), narrower(model, inputs, 3)]
    assert len({str(facts(end)) for end in ends}) > 2
    files, wanted = [filed(end) for end in ends], [outputs(end, inputs) for end in ends]
    other = copy.deepcopy(model)
    held = list(other.parameters())
    for at in (2, 1, 0, 3, 3):
        demp.load_state_dict(other, files[at])
        assert gap(outputs(other, inputs), wanted[at]) == 0.0
        assert facts(other) == facts(ends[at])
        assert all(one is two for one, two in zip(held, other.parameters(), strict=True))
    assert beside(filed(other)) == beside(files[3])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("joins", "residual", "tokens", "halves")])
def test_widths_alone_are_enough_without_residual_sums(name: str):
    model, inputs = NETWORKS[name]()
    model, inputs = nets.settle(model), tuple(x.double() for x in inputs)
    small, other = narrower(model, inputs, 1), copy.deepcopy(model)
    bare = dict(filed(small))
    with pytest.raises(UsageError, match="does not say which neurons it has"):
        demp.load_state_dict(other, bare)
    assert facts(other) == facts(model)
    report = demp.load_state_dict(other, bare, example_inputs=inputs)
    assert report.resized and gap(outputs(other, inputs), outputs(small, inputs)) == 0.0
    assert module_sizes(other) == module_sizes(small) and record_of(other) is None


@pytest.mark.parametrize("norm", ["llama", "root", "normalize", "torch", "layer"])
def test_widths_alone_are_enough_for_streams_and_heads(norm: str):
    """A norm of fewer channels and a view of fewer heads are the same whichever they are."""
    model, words = streaming.network(norm, blocks=2), streaming.words()
    other, channels = copy.deepcopy(model), [0, 3, 7]
    graph = demp.trace(model, (words,), streams=True)
    dead = {layer.name: [0] if layer.width == streaming.HEADS else [0, 3] for layer in graph.layers}
    dead |= {layer.name: channels for layer in graph.layers if layer.activation == STREAM}
    assert len(dead) == 5
    streaming.silence(model, channels)
    killing.kill(model, graph, {name: at for name, at in dead.items() if at != channels})
    demp.cut(model, dead, example_inputs=(words,), graph=graph, tolerance=1e-6)
    report = demp.load_state_dict(other, dict(model.state_dict()), example_inputs=(words,))
    more = streaming.words(1, 9)
    assert report.resized and torch.equal(other(more), model(more)) and module_sizes(other) == module_sizes(model)


def test_a_residual_sum_needs_the_record():
    model, inputs = residuals.network()
    other = copy.deepcopy(model)
    residuals.cut_apart(model, inputs)
    with pytest.raises(UsageError, match="a residual sum of 2 may add two widths"):
        demp.load_state_dict(other, dict(model.state_dict()), example_inputs=inputs)
    assert gap(outputs(other, inputs), outputs(residuals.network()[0], inputs)) >= 0 and not model_joins(other)


def trained(steps: int = 6) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network with the state of Adam."""
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, IMAGE, range(steps))
    optimizer.zero_grad()
    return model, optimizer


def test_the_optimizer_follows_to_the_best_weights_and_trains_on():
    model, optimizer = trained()
    best = copy.deepcopy(model.state_dict())
    seen = {n: optimizer.state[p]["exp_avg_sq"].clone() for n, p in model.named_parameters()}
    demp.cut(model, {"act1": [0, 3]}, example_inputs=(examples(IMAGE),), optimizer=optimizer, exact=False)
    report = demp.load_state_dict(model, best)
    assert "conv1.weight" in report.resized and not report.notes
    for name, parameter in model.named_parameters():
        wanted = seen[name].clone()
        if name in report.resized:
            wanted.select(1 if name == "conv2.weight" else 0, 0).zero_()
            wanted.select(1 if name == "conv2.weight" else 0, 3).zero_()
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], wanted), name
        assert torch.equal(parameter, best[name])
    train(model, optimizer, IMAGE, range(6, 8))
    assert model.conv1.out_channels == len(best["conv1.weight"])


def test_state_that_cannot_follow_begins_anew_and_is_named():
    model = nets.mlp(6, 8, 8, 3).double()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    x = torch.randn(5, 6, dtype=torch.float64)
    small = narrower(model, (x,), 0)
    model(x).square().mean().backward()
    optimizer.step()
    assert "Adafactor forgot" in demp.load_state_dict(model, filed(small)).notes[0]
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def refused(model: nn.Module, state: Any, says: str, **options: Any) -> None:
    """Refused, and nothing has changed."""
    values, before = copy.deepcopy(model.state_dict()), facts(model)
    with pytest.raises(UsageError, match=says):
        demp.load_state_dict(model, state, **options)
    assert facts(model) == before
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in values.items())


def test_what_tells_another_story_is_named_and_nothing_changes():
    torch.manual_seed(0)
    model, x = nets.mlp(6, 8, 8, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    small = narrower(model, (x,), 1)
    state = filed(small)
    refused(nets.mlp(6, 9, 8, 3).double(), state, r"0.weight is \(9, 6\) in this model, not \(8, 6\)")
    refused(nets.mlp(6, 8, 8, 3).double(), {"0.weight": torch.zeros(9, 6)}, "no cut leads there", strict=False)
    missing = copy.deepcopy(state)
    del missing["2.bias"]
    refused(nets.mlp(6, 8, 8, 3).double(), missing, "Missing key")
    refused(small, nets.mlp(6, 8, 8, 4).double().state_dict(), r"4.weight is \(4, 8\)")
    odd = copy.deepcopy(state)
    odd["2.weight"] = odd["2.weight"][:1]
    refused(nets.mlp(6, 8, 8, 3).double(), odd, "2.weight is .* in the state dict, and should be")
    refused(nets.mlp(6, 8, 8, 3).double(), {"0.weight": torch.zeros(8, 5)}, "along its axis 1",
            strict=False, example_inputs=(x,))  # fmt: skip
    half = {name: value for name, value in state.items() if name != "2.weight"}
    refused(nets.mlp(6, 8, 8, 3).double(), half, "which holds them too", strict=False, example_inputs=(x,))
    assert demp.load_state_dict(nets.mlp(6, 8, 8, 3).double(), missing, strict=False).missing_keys == ("2.bias",)


def test_a_pruner_at_work_is_asked_first():
    model, optimizer = trained(0)
    pruner = quiet_demp(model, optimizer)
    refused(model, build(PlainNet).state_dict(), "a pruner is at work on this PlainNet")
    pruner.detach()
    assert demp.load_state_dict(model, build(PlainNet, seed=4).state_dict()).resized == ()


class Cached(nn.Module):
    """Has a buffer that is computed and not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("factor", torch.arange(1.0, 7.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x).relu() * self.factor)


def test_a_buffer_that_is_not_saved_follows_a_dense_model_and_never_returns():
    model, x = Cached(), torch.randn(3, 4)
    dense, other = copy.deepcopy(model), Cached()
    demp.cut(model, {"relu": [1, 4]}, example_inputs=(x,), exact=False)
    demp.load_state_dict(other, filed(model))
    assert torch.equal(other.factor, torch.tensor([1.0, 3, 4, 6])) and torch.equal(other(x), model(x))
    refused(other, dense.state_dict(), "factor is a buffer that no state dict holds")


def test_a_part_a_wrapper_and_an_average_carry_the_record():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = build(PlainNet), nn.Parameter(torch.ones(1))

    outer = Outer()
    average = torch.optim.swa_utils.AveragedModel(outer.net)
    report = demp.cut(
        outer.net, {"act1": [0, 3]}, example_inputs=(examples(IMAGE),), copies=[average], exact=False
    )  # fmt: skip
    assert report.removed == 2
    again = Outer()
    demp.load_state_dict(again, filed(outer))
    assert facts(again.net) == facts(outer.net)
    alone, once_more = build(PlainNet), torch.optim.swa_utils.AveragedModel(build(PlainNet))
    demp.load_state_dict(alone, copy.deepcopy(average.module.state_dict()))
    demp.load_state_dict(once_more, filed(average))
    wrapped = copy.deepcopy(outer.net.state_dict())
    named = type(wrapped)((f"module.{name}", value) for name, value in wrapped.items())
    named._metadata = {f"module.{path}".rstrip("."): said for path, said in wrapped._metadata.items()} | {"": {}}
    unwrapped = build(PlainNet, seed=5)
    demp.load_state_dict(unwrapped, named)
    for model in (alone, once_more.module, unwrapped):
        assert facts(model) == facts(outer.net)
        assert torch.equal(model.eval()(examples(IMAGE)), outer.net.eval()(examples(IMAGE)))


def test_the_record_is_beside_the_tensors_and_nowhere_else():
    model, x = nets.mlp(6, 8, 3), torch.randn(4, 6)
    small = narrower(model, (x,), 1)
    state = small.state_dict()
    assert list(state) == list(model.state_dict()) and beside(state).keys() == {""} and not beside(model.state_dict())
    assert copy.deepcopy(small)._state_dict_hooks.keys() == {"demp"}
    copied = pickle.loads(pickle.dumps(small))
    assert not copied._state_dict_hooks and record_of(copied) is not None
    assert b"demp." not in pickle.dumps(small)
