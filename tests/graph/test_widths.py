"""Code that depends on how many neurons there are, or treats each of them alone: offered, and cut exactly."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from width_cases import CASES, TOKENS, WIDTH, conv, made, on_map, on_rows

import comparing
import demp
import killing
from nets import Forward


def in_training(model: nn.Module, inputs: tuple) -> list[Tensor]:
    """Outputs in training mode, and the gradients of what they add up to with respect to the inputs."""
    twin = copy.deepcopy(model).train()
    given = tuple(x.clone().requires_grad_() for x in inputs)
    out = twin(*given)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), given, allow_unused=True, materialize_grads=True)]


def in_front(model: nn.Module, graph: demp.NeuronGraph) -> list[Any]:
    """The layers whose neurons the first weight of the model makes: they stand in front of what a case is about."""
    made = (f"{maker_of(model)}.weight", 0)
    return [layer for layer in graph.layers if made in layer.producers]


def maker_of(model: nn.Module) -> str:
    return "conv" if hasattr(model, "conv") else "fc"


@pytest.mark.parametrize("name", CASES)
def test_neurons_go_exactly(name):
    model, inputs = made(name)
    maker = model.get_submodule(maker_of(model))
    width = len(maker.weight)
    for seed in (3, 4):
        graph = demp.trace(model, inputs)
        front = in_front(model, graph)
        assert any(layer.reads for layer in front), graph.refused
        assert all(bool(layer.removable.all()) for layer in front), graph.refused
        dead = killing.killed(model, graph, 0.4, seed)
        before, training = comparing.outputs(model, inputs), in_training(model, inputs)
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert report.removed == sum(map(len, dead.values())) or (report.removed and report.held)
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        assert comparing.gap(training, in_training(model, inputs)) < 1e-10
    assert len(maker.weight) < width


def test_the_largest_of_channels_that_may_be_negative_keeps_them():
    def forward(s, h):
        return h * torch.sigmoid(s.where(F.silu(s.c(h)).amax(1, keepdim=True)))

    model, inputs = on_map(forward, c=conv(8, 5), where=conv(1, 1))
    graph = demp.trace(model, inputs)
    assert not bool(graph.layer("silu").removable.any()) and bool(graph.layer("relu").removable.all())


def test_circular_padding_of_the_channels_keeps_them():
    model, inputs = on_map(lambda s, h: F.pad(h.flatten(2).mT, (1, 1), mode="circular").mT[..., None], WIDTH + 2)
    graph = demp.trace(model, inputs)
    assert not bool(graph.layer("relu").removable.any()) and "circular padding" in graph.refused[0].reason


def test_positions_of_the_largest_channel_keep_them():
    model, inputs = on_map(lambda s, h: h * torch.max(h, 1, keepdim=True)[1])
    graph = demp.trace(model, inputs)
    assert not bool(graph.layer("relu").removable.any())


def test_numbers_written_into_memory_may_be_negative():
    def forward(s, h):
        h = h * 1.0
        h[:, :, 0] = -5.0
        return h * h.amax(1, keepdim=True)

    model, inputs = on_map(forward)
    assert not bool(demp.trace(model, inputs).layer("relu").removable.any())


def test_a_buffer_that_is_written_into_binds():
    def forward(s, h):
        buffer = torch.zeros(len(h), h.shape[1])
        buffer[:, :4] = torch.arange(4.0)
        return h + buffer

    model, inputs = on_rows(forward)
    assert not bool(demp.trace(model, inputs).layer("relu").removable.any())


def test_groups_that_no_module_holds_stay():
    model, inputs = on_map(lambda s, h: F.group_norm(h, 2))
    graph = demp.trace(model, inputs)
    assert not bool(graph.layer("relu").removable.any()) and "held by no module" in graph.refused[0].reason


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_a_recurrent_layer_reads_is_judged_in_single_precision(kind):
    """There an LSTM is one operation, with its weights inside."""
    parts = {"fc": nn.Linear(6, 8), "mix": kind(8, 4, 2, batch_first=True), "head": nn.Linear(4, 2)}
    model = Forward(lambda s, x: s.head(s.mix(F.relu(s.fc(x)))[0]), **parts).eval()
    graph = demp.trace(model, (TOKENS,))
    killing.kill(model, graph, {"relu": [1, 4]})
    alive = demp.alive(model, [(TOKENS,)], graph=graph)["relu"]
    with torch.no_grad():
        seen = F.relu(model.fc(TOKENS)).flatten(0, 1).abs().amax(0) > 0
    assert alive.tolist() == seen.tolist() and not alive[1] and not alive[4]
    before = comparing.outputs(model, (TOKENS,))
    speaking = int(seen.nonzero()[0])
    spoken = demp.cut(copy.deepcopy(model), {"relu": [speaking, 1]}, example_inputs=(TOKENS,), exact=False)
    assert spoken.drift > 0 and spoken.difference < 1e-5
    constant = demp.cut(model, {"relu": [1, 4]}, example_inputs=(TOKENS,), constants=True)
    assert constant.removed == 2 and model.mix.input_size == 6
    assert comparing.gap(before, comparing.outputs(model, (TOKENS,))) < 1e-5


@pytest.mark.parametrize("name", ["mean over channels", "ECA", "max over everything"])
def test_what_a_call_reads_is_judged(name):
    """A neuron whose readers with weights see nothing of it may still speak in a sum over neurons."""
    model, inputs = made(name)
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, {"relu": [2]})
    assert not demp.alive(model, [inputs], graph=graph)["relu"][2]
    with torch.no_grad():
        model.next.weight[:, 5] = 0.0  # nothing that has a weight notices
        assert demp.alive(model, [inputs], graph=graph)["relu"][5]
    report = demp.cut(model, {"relu": [5]}, example_inputs=inputs, exact=False)
    assert report.difference < 1e-10


def test_constants_stay_where_a_sum_reads_them():
    model, inputs = made("mean over channels")
    with torch.no_grad():
        model.bn.weight[3], model.bn.bias[3] = 0.0, 0.7
    report = demp.cut(model, {"relu": [3]}, example_inputs=inputs, constants=True)
    assert report.removed == 0 and "take their constant" in report.held["relu"]
