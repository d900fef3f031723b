"""The probe against brute force: what the readers of a layer receive, by forward hooks."""

from collections import defaultdict
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.activity import Criterion, probe
from demp.errors import UsageError
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, build, examples, hooks_on, kill, kill_linear

READERS = {
    PlainNet: {"act1": "conv2", "act2": "fc", "act3": "head"},
    ResidualNet: {"stem_act": "conv1", "act1": "conv2", "act2": "head"},
    Mlp: {"act1": "fc2", "act2": "head"},
}
"""Layer -> the module that reads it."""
WIDTHS = {
    PlainNet: {"act1": 6, "act2": 5, "act3": 7},
    ResidualNet: {"stem_act": 6, "act1": 8, "act2": 6},
    Mlp: {"act1": 12, "act2": 10},
}


def shape_of(kind: type[nn.Module]) -> tuple[int, ...]:
    return VECTOR if kind is Mlp else IMAGE


def brute_force(model: nn.Module, batches: Iterable[Tensor], rule=lambda values: (values == 0).all()) -> dict:
    """Layer -> dead neurons: every value that the reader ever receives from the neuron fits the rule."""
    received: dict[str, list[Tensor]] = defaultdict(list)
    kind = type(model)
    handles = [
        model.get_submodule(reader).register_forward_pre_hook(lambda m, args, name=name: received[name].append(args[0]))
        for name, reader in READERS[kind].items()
    ]
    model.eval()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    model.train()
    dead = {}
    for name, width in WIDTHS[kind].items():
        parts = [value.reshape(len(value), width, -1) for value in received[name]]
        flags = [all(bool(rule(part[:, j])) for part in parts) for j in range(width)]
        dead[name] = torch.tensor(flags)
    return dead


def injured(kind: type[nn.Module], seed: int, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A network with running statistics, some dead neurons, and some that are nearly dead."""
    model = build(kind, seed=seed, act=act)
    with torch.no_grad():
        for s in range(25):
            model(examples(shape_of(kind), seed=50 + s))
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data -= 1.5 * torch.rand(module.bias.shape, generator=generator, dtype=module.bias.dtype)
            kill(module, [int(torch.randint(module.num_features, (), generator=generator))])
    if isinstance(model, Mlp):
        kill_linear(model.fc1, [0, 5])
        kill_linear(model.fc2, [9])
        model.fc1.bias.data[1:4] -= 1.0
    return model


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("seed", range(4))
def test_the_probe_is_brute_force_over_hooks(kind: type[nn.Module], seed: int):
    model = injured(kind, seed)
    batches = [examples(shape_of(kind), n=3, seed=s) for s in range(3)]
    expected = brute_force(model, batches)
    alive = demp.alive(model, batches)
    assert alive.keys() == expected.keys()
    assert all(torch.equal(~alive[name], expected[name]) for name in expected)
    assert any(bool(flags.any()) for flags in expected.values())


def test_leaky_units_that_never_speak_up_are_dead():
    model = injured(PlainNet, 0, act=lambda: nn.LeakyReLU(0.05))
    batches = [examples(IMAGE, n=3, seed=s) for s in range(3)]
    expected = brute_force(model, batches, rule=lambda values: (values <= 0).all())
    alive = demp.alive(model, batches)
    assert all(torch.equal(~alive[name], expected[name]) for name in expected)
    assert bool(expected["act1"].any())
    exact = demp.alive(model, batches, criterion="exact")
    assert all(bool(flags.all()) for flags in exact.values())


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 30),
    few=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    more=st.lists(st.integers(0, 40), min_size=1, max_size=3),
)
def test_more_batches_never_make_more_dead(seed: int, few: list[int], more: list[int]):
    model = injured(ResidualNet, seed)
    one = demp.alive(model, [examples(IMAGE, n=2, seed=s) for s in few])
    two = demp.alive(model, [examples(IMAGE, n=2, seed=s) for s in few + more])
    assert all(bool((two[name] | ~one[name]).all()) for name in one)


def test_settled_probes_stop_early_with_the_same_dead():
    model = build(PlainNet)
    with torch.no_grad():
        for norm in (model.norm1, model.norm2):
            norm.bias[:] = 3.0
        model.fc.bias[:] = 100.0
    graph = demp.trace(model, (examples(IMAGE),))
    batches = [(examples(IMAGE, seed=s),) for s in range(5)]
    short = probe(model, graph.dense, batches, Criterion(), until_settled=True)
    full = probe(model, graph.dense, batches, Criterion())
    assert (short.batches, short.examples, full.batches, full.examples) == (1, 8, 5, 40)
    assert all(torch.equal(short.dead[name], full.dead[name]) for name in full.dead)


def test_the_model_is_judged_in_evaluation_mode_and_left_as_it_was():
    model = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 2)).double()
    model[1].eval()  # a part that the user keeps in evaluation mode
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    seen: list[bool] = []
    handle = model[3].register_forward_hook(lambda m, args, out: seen.append(m.training))
    for _ in range(2):
        demp.alive(model, [examples(VECTOR, n=4)])
    handle.remove()
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert hooks_on(model) == 0


def test_batches_are_tensors_tuples_or_dicts():
    model = injured(Mlp, 0)
    x = examples(VECTOR)
    detections = [demp.alive(model, [batch]) for batch in (x, (x,), [x], {"x": x})]
    assert all(torch.equal(v[name], detections[0][name]) for v in detections for name in v)


def test_a_known_graph_need_not_be_traced_again():
    model = injured(Mlp, 0)
    graph = demp.trace(model, (examples(VECTOR),))
    mine, fresh = (demp.alive(model, [examples(VECTOR)], graph=g) for g in (graph, None))
    assert all(torch.equal(mine[name], fresh[name]) for name in fresh)


def test_no_batches_is_an_error():
    with pytest.raises(UsageError, match="no batches to look for dead neurons on"):
        demp.alive(build(Mlp), [])
    model = build(Mlp)
    graph = demp.trace(model, (examples(VECTOR),))
    with pytest.raises(UsageError, match="no batches to look for dead neurons on"):
        probe(model, graph.dense, [], Criterion())


class MixedConcat(nn.Module):
    """Three activations side by side in front of one reader."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(6, 3) for _ in range(3))
        self.acts = nn.ModuleList([nn.ReLU(), nn.LeakyReLU(0.1), nn.GELU()])
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([act(part(x)) for part, act in zip(self.parts, self.acts, strict=True)], 1))


def test_each_layer_of_a_concatenation_has_its_own_criterion():
    model = build(MixedConcat)
    for part in model.parts:
        kill_linear(part, [1])
    model.parts[2].bias.data[1] = -60.0  # far enough down that GELU is below its threshold
    dead = {
        name: (~flags).nonzero().flatten().tolist() for name, flags in demp.alive(model, [examples(VECTOR)]).items()
    }
    assert dead == {"acts.0": [1], "acts.1": [1], "acts.2": [1]}
    dead = demp.alive(model, [examples(VECTOR)], criterion="exact")
    assert (~dead["acts.0"]).tolist() == [False, True, False]
    assert bool(dead["acts.1"].all())


class TwoReaders(nn.Module):
    """One reader sees the first position only, the other one sees all."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv1d(1, 4, 1, bias=False)
        self.act = nn.ReLU()
        self.near = nn.Conv1d(4, 2, 1)
        self.far = nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.make(x))
        return self.near(h[:, :, :1]).sum(2) + self.far(h).sum(2)


def test_a_neuron_is_dead_only_if_every_reader_finds_it_dead():
    model = TwoReaders()
    with torch.no_grad():
        model.make.weight[:] = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1)
    late = torch.tensor([[[0.0, 3.0, 2.0]]])
    assert demp.alive(model, [late])["act"].tolist() == [True, False, True, False]
    early = torch.tensor([[[3.0, 0.0, 0.0]]])
    assert demp.alive(model, [early])["act"].tolist() == [True, False, True, False]


def test_an_activation_on_an_activation_is_judged_by_what_comes_out():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.ReLU6(), nn.Linear(5, 2)).double()
    kill_linear(model[0], [1, 4])
    model[0].bias.data[[0, 2, 3]] = 5.0
    graph = demp.trace(model, (examples(VECTOR),))
    assert [(layer.name, layer.reads) for layer in graph.layers] == [("1", ()), ("2", (("3.weight", 0),))]
    alive = demp.alive(model, [examples(VECTOR)])
    assert alive["1"].tolist() == alive["2"].tolist() == [True, False, True, True, False]


def test_a_nan_neuron_is_alive():
    model = injured(Mlp, 0)
    model.fc1.weight.data[0] = torch.nan
    alive = demp.alive(model, [examples(VECTOR)])
    assert alive["act1"][[0, 5]].tolist() == [True, False]


def test_removed_neurons_are_neither_dead_nor_alive_for_a_probe():
    model = injured(PlainNet, 2)
    graph = demp.trace(model, (examples(IMAGE),))
    dead = brute_force(model, [examples(IMAGE)])
    report = demp.cut(model, dead, example_inputs=(examples(IMAGE),))
    assert report.removed == sum(int(flags.sum()) for flags in dead.values())
    gone = graph.none_removed()
    for layer in graph.layers:
        gone[layer.classes[dead[layer.name]]] = True
    again = probe(model, graph.at(gone), [examples(IMAGE)], Criterion())
    assert not any(bool(flags.any()) for flags in again.dead.values())
    assert {name: len(flags) for name, flags in again.dead.items()} == WIDTHS[PlainNet]


def test_a_custom_functional_network_is_judged_at_bare_parameters():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1 = nn.Parameter(torch.tensor([[1.0], [-1.0], [2.0]]))
            self.w2 = nn.Parameter(torch.ones(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(F.linear(x, self.w1)), self.w2)

    model = Bare()
    (alive,) = demp.alive(model, [torch.tensor([[1.0], [2.0]])]).values()
    assert alive.tolist() == [True, False, True]
