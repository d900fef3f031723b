"""Hidden units of nn.RNN, nn.LSTM and nn.GRU: when one is dead, and that it leaves without a trace."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import comparing
import demp
import exactly
import killing
from nets import Forward
from thinning import mostly_slow

KINDS = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "RNN": (nn.RNN, {}),
    "RNN with ReLU": (nn.RNN, {"nonlinearity": "relu"}),
    "two layers": (nn.LSTM, {"num_layers": 2}),
    "two layers, two directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "without biases": (nn.GRU, {"num_layers": 2, "bidirectional": True, "bias": False}),
}
TOKENS = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).double()


def network(kind, reads=lambda s, x: s.mix(x)[0][:, -1], width=None, **options) -> nn.Module:
    """Neurons, a recurrent layer of five units, and a head on its last output."""
    torch.manual_seed(0)
    mix = kind(8, 5, batch_first=True, **options)
    width = width or (10 if options.get("bidirectional") else 5)
    parts = {"fc": nn.Linear(6, 8), "mix": mix, "head": nn.Linear(width, 2)}
    return Forward(lambda s, x: s.head(reads(s, F.relu(s.fc(x)))), **parts).double().eval()


@pytest.mark.parametrize("name", mostly_slow(KINDS, ("LSTM", "RNN with ReLU", "without biases")))
def test_hidden_units_go(name):
    kind, options = KINDS[name]
    model = network(kind, **options)
    assert exactly.offered(demp.trace(model, (TOKENS,))) == {"relu": 8, "mix": 5}
    assert all(exactly.cut_twice(model, (TOKENS,)))
    assert model.mix.hidden_size == model.mix.weight_hh_l0.shape[1] < 5


def packed(s, x):
    out, _ = s.mix(pack_padded_sequence(x, torch.tensor([4, 2]), batch_first=True))
    return pad_packed_sequence(out, batch_first=True)[0].sum(1)


READ = {
    "the last state": (nn.LSTM, lambda s, x: s.mix(x)[1][0][-1], 5, {}),
    "the last memory": (nn.LSTM, lambda s, x: s.mix(x)[1][1][-1], 5, {}),
    "the last states of both directions": (
        nn.GRU, lambda s, x: torch.cat(tuple(s.mix(x)[1][-2:]), 1), 10, {"bidirectional": True},
    ),
    "a packed sequence": (nn.LSTM, packed, 5, {}),
    "without a batch": (nn.GRU, lambda s, x: s.mix(x[0])[0], 5, {}),
    "dropout between layers": (nn.LSTM, lambda s, x: s.mix(x)[0][:, -1], 5, {"num_layers": 2, "dropout": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_whatever_is_read(name):
    kind, reads, width, options = READ[name]
    model = network(kind, reads, width, **options)
    assert exactly.offered(demp.trace(model, (TOKENS,)))["mix"] == 5
    before = comparing.outputs(model, (TOKENS,))
    graph = demp.trace(model, (TOKENS,))
    killing.kill(model, graph, {"mix": [1, 3]})
    before = comparing.outputs(model, (TOKENS,))
    assert demp.cut(model, {"mix": [1, 3]}, example_inputs=(TOKENS,), graph=graph).removed >= 2
    assert comparing.gap(before, comparing.outputs(model, (TOKENS,))) < 1e-10


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_unit_is_zero_from_zeros_exactly_if_its_candidate_is(kind):
    """Gates closed by half keep it alive; a candidate of zero kills it, whatever its gates do."""
    model = network(kind)
    graph = demp.trace(model, (TOKENS,))
    candidate = 2  # the third block of rows is the candidate in both
    with torch.no_grad():
        for tensor in model.mix.parameters():
            for gate in range(len(tensor) // 5):
                tensor[5 * gate + (1 if gate == candidate else 3)] = 0.0
    states = model.mix(F.relu(model.fc(TOKENS)))[0].detach()
    assert (states.abs().amax((0, 1)) == 0).tolist() == [False, True, False, False, False]
    assert demp.alive(model, [(TOKENS,)], graph=graph)["mix"].tolist() == [True, False, True, True, True]
    before = comparing.outputs(model, (TOKENS,))
    demp.cut(model, {"mix": [1]}, example_inputs=(TOKENS,), graph=graph)
    assert comparing.gap(before, comparing.outputs(model, (TOKENS,))) < 1e-10


@pytest.mark.parametrize("double", [False, True])  # in single precision the layer is one operation elsewhere
def test_a_unit_that_the_head_does_not_hear_may_live_in_the_memory(double):
    """Of the last step alone it is zero; the steps before, which only the layer itself reads, tell."""
    model = network(nn.RNN, nonlinearity="relu")
    with torch.no_grad():
        model.mix.weight_ih_l0[2], model.mix.weight_hh_l0[2], model.mix.bias_hh_l0[2] = 0, 0, 0
        model.mix.bias_ih_l0[2] = 0.0
        model.mix.weight_ih_l0[2, 0] = 1.0
        model.fc.weight[0], model.fc.bias[0] = 0, 0
        model.fc.weight[0, 0] = 1.0
    tokens = TOKENS.clone()
    tokens[:, :, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0])
    if not double:
        model, tokens = model.float(), tokens.float()
    graph = demp.trace(model, (tokens,))
    assert float(model.mix(F.relu(model.fc(tokens)))[0][:, -1, 2].detach().abs().max()) == 0
    assert demp.alive(model, [(tokens,)], graph=graph)["mix"][2]
    tokens[:, :, 0] = -1.0
    assert not demp.alive(model, [(tokens,)], graph=graph)["mix"][2]


STAYING = {
    "a projection": (network(nn.LSTM, width=3, proj_size=3), "projects"),
    "a state that is given": (
        Forward(
            lambda s, x: s.head(s.mix(x, s.start.expand(1, len(x), 5).contiguous())[0][:, -1]),
            mix=nn.GRU(6, 5, batch_first=True), start=nn.Parameter(torch.randn(1, 1, 5)), head=nn.Linear(5, 2),
        ).double(),
        "starts from a state",
    ),
    "a state that leaves": (
        Forward(lambda s, x: s.mix(x), mix=nn.GRU(6, 5, batch_first=True)).double(), "model output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYING)
def test_hidden_units_that_stay(name):
    model, reason = STAYING[name]
    graph = demp.trace(model, (TOKENS,))
    assert "mix" not in exactly.offered(graph) and reason in exactly.reasons(graph)


def steps(s, x):
    """A loop over a cell, from what ``start`` makes; None: the cell's own zeros."""
    state = s.start(s, x)
    for t in range(x.shape[1]):
        state = s.cell(F.relu(s.fc(x[:, t])), state)
    return s.head(state if isinstance(state, Tensor) else state[0])


def cells(kind, start) -> nn.Module:
    """Neurons, a cell of five units in a loop, and a head."""
    torch.manual_seed(0)
    parts = {"fc": nn.Linear(6, 8), "cell": kind(8, 5), "first": nn.Linear(6, 5), "head": nn.Linear(5, 2)}
    model = Forward(steps, **parts, bare=nn.Parameter(torch.randn(5)))
    pair = kind is nn.LSTMCell
    model.start = lambda s, x: None if (h := start(s, x)) is None else (h, h) if pair else h
    return model.double().eval()


STATES = {
    "none": lambda s, x: None,
    "zeros": lambda s, x: x.new_zeros(len(x), 5),
    "a parameter": lambda s, x: s.bare.expand(len(x), 5),
}
CELLS = {nn.RNNCell: "an RNN cell", nn.LSTMCell: "an LSTM cell", nn.GRUCell: "a GRU cell"}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("state", STATES)
def test_refusals_of_cells_name_them(kind, state):
    model = cells(kind, STATES[state])
    graph = demp.trace(model, (TOKENS,))
    assert not any(name.startswith("cell") for name in exactly.offered(graph))
    (reason,) = {refusal.reason for refusal in graph.refused if refusal.name.startswith("cell")}
    assert reason.startswith(f"hidden units of {CELLS[kind]} whose first state") and reason.endswith("(at cell)")
    assert all(exactly.cut_twice(model, (TOKENS,)))  # what it reads goes


@pytest.mark.parametrize("kind", CELLS)
def test_units_of_a_cell_whose_first_state_is_neurons_go(kind):
    model = cells(kind, lambda s, x: torch.tanh(s.first(x[:, 0])))
    assert exactly.offered(demp.trace(model, (TOKENS,)))["cell"] == 5
    assert all(exactly.cut_twice(model, (TOKENS,)))
    assert model.cell.weight_hh.shape[1] < 5


def test_a_cell_by_its_function_is_named_too():
    parts = [nn.Parameter(torch.randn(*size)) for size in ((15, 8), (15, 5), (15,), (15,))]
    model = Forward(
        lambda s, x: s.head(torch.gru_cell(F.relu(s.fc(x[:, 0])), x.new_zeros(len(x), 5), s.a, s.b, s.c, s.d)),
        fc=nn.Linear(6, 8), head=nn.Linear(5, 2), **dict(zip("abcd", parts, strict=True)),
    ).double()  # fmt: skip
    assert "hidden units of a GRU cell whose first state" in exactly.reasons(demp.trace(model, (TOKENS,)))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_budget_removes_hidden_units(kind):
    """By fading alone, without a judgement; and by a window on training forwards, which sees every step."""
    model = network(kind, num_layers=2, bidirectional=True).float()
    x = torch.randn(8, 4, 6)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=40, budget="parameters=0.5", rounds=2)
    for _ in range(40):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
    pruner.finish()
    assert model.mix.hidden_size < 5 and max(r.difference or 0.0 for r in pruner.history if r.removed) < 1e-5


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_training_forwards_tell_which_units_are_dead(kind):
    model, x = network(kind).float(), torch.randn(8, 4, 6)
    with torch.no_grad():
        for tensor in model.mix.parameters():
            tensor[1::5] = 0.0
        model.head.weight[:, 1] = 0.0  # so that no gradient wakes it
        model.mix.weight_hh_l0[:, 1] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {"period": 4, "peak_strength": 0.0, "peak_noise_std": 0.0}
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=8, **options)
    for _ in range(8):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
    pruner.finish()
    assert model.mix.hidden_size == 4


def test_saved_and_loaded(tmp_path):
    model = network(nn.LSTM, num_layers=2, bidirectional=True)
    dead = killing.killed(model, demp.trace(model, (TOKENS,)), 0.4)
    demp.cut(model, dead, example_inputs=(TOKENS,))
    demp.save(model, tmp_path / "model")
    loaded = demp.load(lambda: network(nn.LSTM, num_layers=2, bidirectional=True), tmp_path / "model").eval()
    assert comparing.gap(comparing.outputs(model, (TOKENS,)), comparing.outputs(loaded, (TOKENS,))) == 0.0
    assert demp.load_state_dict(network(nn.LSTM, num_layers=2, bidirectional=True), copy.deepcopy(model.state_dict()))
