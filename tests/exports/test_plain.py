"""``demp.plain``: an ordinary network that answers as the pruned one, or a refusal."""

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
import killing
import nets
import streaming
from demp.graph.calls import model_calls
from demp.graph.joins import model_joins, plain_kind
from demp.surgery import record_of
from demp.train.models import build
from residuals import Block, cut_apart, network
from thinning import covering, mostly_slow


def answers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return comparing.outputs(model, inputs)


def require_ordinary(model: nn.Module, dense: nn.Module) -> None:
    """The classes and tensors of the user's own constructor, and nothing of demp."""
    assert [type(m) for m in model.modules()] == [type(m) for m in dense.modules()]
    assert set(model.state_dict()) == set(dense.state_dict())
    assert model_joins(model) == {} and not any(plain_kind(type(m)) for m in model.modules())
    assert not [name for m in model.modules() for name in (*vars(m), *m._buffers) if name.startswith("demp")]


@pytest.mark.parametrize(("spelling", "seed"), covering(("x + y", "y += x"), range(4)))
def test_the_sums_become_ordinary_ones(spelling, seed):
    model, inputs = network(spelling=spelling)
    dense = copy.deepcopy(model)
    cut_apart(model, inputs, seed)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    joins, wanted = model_joins(model), answers(model, inputs)
    assert joins
    twin = demp.plain(model)
    require_ordinary(twin, dense)
    assert comparing.gap(wanted, answers(twin, inputs)) < 1e-12
    widths = {block.conv2.out_channels for block in (twin[2], twin[3], twin[4])} | {twin[0].out_channels}
    assert len(widths) == 1  # one width for the whole stream
    assert model_joins(model) == joins and record_of(model) is not None
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_the_stream_is_as_wide_as_the_channels_that_some_output_keeps():
    model, inputs = network(blocks=1, width=12)
    graph = demp.trace(model, inputs)
    dead = {"1": [0, 1, 2, 3], "2.act#2": [3, 4]}
    killing.kill(model, graph, dead)
    demp.cut(model, dead, example_inputs=inputs, graph=graph)
    twin = demp.plain(model, inputs)
    assert twin[0].out_channels == twin[2].conv2.out_channels == twin[5].in_features == 11
    assert twin[2].bn2.num_features == 11 and float(twin[2].bn2.running_var.min()) > 0


def test_a_channel_that_comes_back_has_a_place_of_its_own():
    """Dropped by one block and kept by the next: what it carried before must not be added to it again."""
    model, inputs = network(blocks=3, width=4)
    graph = demp.trace(model, inputs)
    dead = {"2.act#2": [1], "3.act#2": [2]}
    killing.kill(model, graph, dead)
    wanted = answers(model, inputs)
    demp.cut(model, dead, example_inputs=inputs, graph=graph)
    twin = demp.plain(model, inputs)
    assert comparing.gap(wanted, answers(twin, inputs)) < 1e-12
    assert twin[0].out_channels == 6


def test_training_goes_on_in_the_widened_network():
    """The gradients of what both networks have are equal, batch statistics included."""
    model, inputs = network()
    cut_apart(model, inputs)
    twin = demp.plain(model)
    norms = []
    for each in (model.train(), twin.train()):
        each(*inputs).square().sum().backward()
        norms.append([each[7].bias.grad, each[2].conv1.weight.grad.square().sum(), each[2].bn1.weight.grad])
    assert comparing.gap(*norms) < 1e-10


def test_flattened_and_concatenated_reads():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.act = nn.Conv2d(3, 6, 3, padding=1), Block(6, 4), nn.ReLU()
            self.mix, self.head = nn.Conv2d(12, 5, 1), nn.Linear(6 * 16 + 5 * 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.stem(x))
            y = self.block(x)
            z = self.act(self.mix(torch.cat([y, x], 1)))
            return self.head(torch.cat([y.flatten(1), z.flatten(1)], 1))

    model, inputs = nets.settle(Net()), (torch.randn(2, 3, 4, 4, dtype=torch.float64),)
    dense = copy.deepcopy(model)
    cut_apart(model, inputs, seed=1)
    assert model_joins(model)
    twin = demp.plain(model)
    require_ordinary(twin, dense)
    assert comparing.gap(answers(model, inputs), answers(twin, inputs)) < 1e-12


@pytest.mark.parametrize("name", mostly_slow(("resnet18", "resnet50"), quick=("resnet18",)))
def test_the_paper_s_networks(name):
    dense = nets.settle(build(name, num_classes=5, width=1 / 8))
    model, inputs = copy.deepcopy(dense), (torch.randn(2, 3, 16, 16, dtype=torch.float64),)
    cut_apart(model, inputs)
    twin = demp.plain(model)
    require_ordinary(twin, dense)
    assert comparing.gap(answers(model, inputs), answers(twin, inputs)) < 1e-10


class Scriptable(nn.Module):
    """A residual block that TorchScript can compile."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)) + x)


def scriptable() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Scriptable(), Scriptable(), nn.Flatten(), nn.Linear(128, 3))
    inputs = (torch.randn(2, 3, 6, 6, dtype=torch.float64),)
    nets.settle(model)
    cut_apart(model, inputs)
    assert model_joins(model)
    return model.eval(), inputs


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_compiles_it():
    model, inputs = scriptable()
    script = torch.jit.freeze(torch.jit.script(demp.plain(model)))
    assert comparing.gap(answers(model, inputs), [script(*inputs)]) < 1e-12


def test_its_cost_is_said(caplog):
    model, inputs = scriptable()
    with caplog.at_level(logging.INFO, logger="demp"):
        twin = demp.plain(model)
    costs = [demp.cost(each, inputs) for each in (twin, model)]
    (line,) = [record.getMessage() for record in caplog.records if "plain sums cost" in record.getMessage()]
    for then, now in ((costs[0].parameters, costs[1].parameters), (costs[0].flops, costs[1].flops)):
        assert then > now and f"({then}, pruned {now})" in line


def test_without_sums_of_two_widths_it_is_a_copy():
    model, inputs = network()
    twin = demp.plain(model)
    assert twin is not model and comparing.gap(answers(model, inputs), answers(twin, inputs)) == 0
    pickle.dumps(twin)


def test_unknown_inputs_are_asked_for():
    model, inputs = scriptable()
    del model.demp_record
    with pytest.raises(demp.UsageError, match="give example_inputs"):
        demp.plain(model)
    assert comparing.gap(answers(model, inputs), answers(demp.plain(model, inputs), inputs)) < 1e-12


def test_a_channel_that_comes_back_by_a_longer_way_is_refused():
    """The stem's channel 0 skips the first block, which drops it, and is added to the second block's again."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4))
            self.first, self.second, self.third = Sum(), Sum(), Sum()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            y = torch.relu(self.first(self.a(x), x))
            z = torch.relu(self.second(self.third(self.b(y), y), x))
            return self.head(z.mean((2, 3)))

    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    model, inputs = nets.settle(Net()), (torch.randn(2, 3, 5, 5, dtype=torch.float64),)
    graph = demp.trace(model, inputs)
    assert len(graph.joins) == 3
    dead = {"relu#2": [0]}
    killing.kill(model, graph, dead)
    wanted = answers(model, inputs)
    demp.cut(model, dead, example_inputs=inputs, graph=graph)
    with pytest.raises(demp.ExportError, match=r"comes back by a longer way\. Use torch\.export"):
        demp.plain(model)
    assert comparing.gap(wanted, answers(model, inputs)) < 1e-10


class Mixing(nn.Module):
    """Reads the mean over the channels of its last block, which changes with their number."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(7, 3)
        self.blocks = nn.Sequential(*(Block(6, 4) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x))).mean((2, 3))
        return self.head(torch.cat([x, x.mean(1, keepdim=True)], 1))


def mixing(blocks: int, dead: dict[str, list[int]]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model, inputs = nets.settle(Mixing(blocks)), (torch.randn(2, 3, 6, 6, dtype=torch.float64),)
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, dead)
    demp.cut(model, dead, example_inputs=inputs, graph=graph)
    assert model_joins(model)
    return model, inputs


def test_a_stream_may_be_as_wide_as_a_read_that_mixes_its_channels():
    model, inputs = mixing(1, {"relu": [1, 3]})
    assert comparing.gap(answers(model, inputs), answers(demp.plain(model), inputs)) < 1e-12


def test_a_read_that_mixes_more_channels_is_refused():
    model, inputs = mixing(2, {"blocks.0.act#2": [1]})
    wanted = answers(model, inputs)
    with pytest.raises(demp.ExportError, match="outputs of the copy differ by"):
        demp.plain(model)
    assert comparing.gap(wanted, answers(model, inputs)) == 0


def cut_stream(norm: str) -> tuple[Any, Tensor]:
    model, inputs = streaming.network(norm, blocks=2), streaming.words()
    streaming.silence(model, [2, 7, 8])
    demp.cut(model, {"stream": [2, 7, 8]}, example_inputs=(inputs,), streams=True)
    return model.eval(), inputs


@pytest.mark.parametrize("norm", ["torch", "torch without eps", "llama", "root"])
def test_norms_of_a_stream_that_lost_channels_become_ordinary_ones(norm: str):
    model, inputs = cut_stream(norm)
    assert model_calls(model)
    twin = demp.plain(model, (inputs,))
    require_ordinary(twin, streaming.network(norm, blocks=2))
    assert comparing.gap(answers(model, (inputs,)), answers(twin, (inputs,))) < 1e-10
    with torch.no_grad():  # so that eps decides
        model.embed.weight *= 1e-3
        twin.embed.weight *= 1e-3
    assert comparing.gap(answers(model, (inputs,)), answers(twin, (inputs,))) < 1e-10


class Sized(streaming.Root):
    """Runs on six positions alone, so that no trial can run it."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2] == 6
        return super().forward(x)


@pytest.mark.parametrize("norm", ["torch without scale", "gemma", "function", "sized"])
def test_norms_that_cannot_say_it_are_refused(norm: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(streaming.NORMS, "sized", Sized)
    model, inputs = cut_stream(norm)
    wanted = answers(model, (inputs,))
    with pytest.raises(demp.ExportError, match="number of neurons, in blocks.0, blocks.0.norm1"):
        demp.plain(model, (inputs,))
    assert comparing.gap(wanted, answers(model, (inputs,))) == 0
