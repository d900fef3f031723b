"""Products that sum over positions (nodes of a graph, pixels): neurons on other axes pass, and are cut exactly."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets

NODES, WIDTH = 7, 9
DRAW = torch.Generator().manual_seed(0)
TABLE = torch.rand(NODES, NODES, generator=DRAW) * (torch.rand(NODES, NODES, generator=DRAW) > 0.4)
EDGES = torch.tensor([[0, 1, 2, 3, 6, 0], [1, 2, 3, 0, 2, 5]])


class Nodes(nn.Module):
    """fc makes neurons of each node, ``mix`` mixes nodes with table ``A``, an activation and a head follow."""

    def __init__(self, mix, kind: str = "buffer", shape: tuple[int, ...] = (NODES,), table: Tensor = TABLE) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 2)
        self.shift = nn.Parameter(torch.randn(NODES, generator=DRAW))
        if kind == "parameter":
            self.A = nn.Parameter(table.clone())
        elif kind == "attribute":
            self.A = table.double()
        else:
            self.register_buffer("A", table.clone())
        self.mix, self.inputs = mix, (torch.randn(*shape, 5, generator=DRAW).double(),)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(self, self.fc(x))))


def channels_first(mix):
    """``mix`` of a tensor of batch, neurons, time and nodes."""
    return lambda s, h: mix(s, h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def attention(s, h):
    return (s.A - 1e9 * (s.A == 0)).softmax(-1)


FLAT = {
    "mm": lambda s, h: s.A @ h,
    "on the right": lambda s, h: (h.t() @ s.A).t(),
    "einsum": lambda s, h: torch.einsum("nm,mc->nc", s.A, h),
    "linear": lambda s, h: F.linear(h.t(), s.A).t(),
    "linear with a bias": lambda s, h: F.linear(h.t(), s.A, s.shift).t(),
    "addmm": lambda s, h: torch.addmm(h, s.A, h),
    "residual": lambda s, h: h + 0.5 * (s.A @ h),
    "twice": lambda s, h: s.A @ F.relu(s.A @ h),
    "a part": lambda s, h: s.A[:, :4] @ h[:4],
    "a multiple": lambda s, h: (0.5 * s.A) @ h,
    "computed": lambda s, h: (s.A / (s.A.sum(-1, keepdim=True) + 1)) @ h,
    "softmax": lambda s, h: attention(s, h) @ h,
    "masked": lambda s, h: s.A.masked_fill(s.A < 0.2, 0.0) @ h,
    "dropped": lambda s, h: F.dropout(s.A, 0.0, s.training) @ h,
}
BATCHED = {
    "3d": ((2, NODES), lambda s, h: s.A @ h),
    "3d einsum": ((2, NODES), lambda s, h: torch.einsum("nm,bmc->bnc", s.A, h)),
    "3d expanded": ((2, NODES), lambda s, h: torch.bmm(s.A.expand(2, -1, -1), h)),
    "3d baddbmm": ((2, NODES), lambda s, h: torch.baddbmm(h, s.A.expand(2, -1, -1), h)),
    "3d softmax": ((2, NODES), lambda s, h: attention(s, h) @ h),
    "4d": ((2, 3, NODES), lambda s, h: s.A @ h),
    "4d, channels first": ((2, 3, NODES), channels_first(lambda s, h: h @ s.A)),
    "4d, neurons on the batch axis": ((2, 3, NODES), channels_first(lambda s, h: (s.A @ h.mT).mT)),
    "4d einsum": ((2, 3, NODES), channels_first(lambda s, h: torch.einsum("nctv,vw->nctw", h, s.A))),
    "4d linear with a bias": ((2, 3, NODES), channels_first(lambda s, h: F.linear(h, s.A, s.shift))),
}


def cut_exactly(model: nn.Module) -> None:
    """All neurons of fc are offered, and dead ones of them go exactly, in two rounds."""
    model, inputs = nets.settle(model), model.inputs
    for seed in (0, 1):
        graph = demp.trace(model, inputs)
        assert len(graph.layers) and all(bool(layer.removable.all()) for layer in graph.layers), graph.refused
        dead = killing.killed(model, graph, 0.3, seed)
        before, training = comparing.outputs(model, inputs), trained(model, inputs)
        assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed == sum(map(len, dead.values()))
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        assert comparing.gap(training, trained(model, inputs)) < 1e-10
    assert model.fc.out_features < WIDTH and model.A.shape == TABLE.shape


def trained(model: nn.Module, inputs: tuple) -> list[Tensor]:
    """Outputs in training mode, and the gradient of what they add up to with respect to the input."""
    given = inputs[0].clone().requires_grad_()
    out = copy.deepcopy(model).train()(given)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), given)]


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
@pytest.mark.parametrize("name", FLAT)
def test_neurons_pass_a_table(name, kind):
    cut_exactly(Nodes(FLAT[name], kind))


@pytest.mark.parametrize("name", BATCHED)
def test_neurons_pass_a_table_for_a_batch(name):
    shape, mix = BATCHED[name]
    cut_exactly(Nodes(mix, shape=shape))


@pytest.mark.parametrize("name", ["softmax", "masked"])
def test_neurons_pass_what_is_computed_from_a_parameter(name):
    cut_exactly(Nodes(FLAT[name], "parameter"))


def mixer(s, h):
    """A residual around two products with learned matrices."""
    return h + s.A.t() @ F.relu(s.A @ h)


LEARNED = {
    "mm": (FLAT["mm"], (NODES,)),
    "einsum": (FLAT["einsum"], (NODES,)),
    "residual": (FLAT["residual"], (NODES,)),
    "3d einsum": BATCHED["3d einsum"][::-1],
    "mixer": (mixer, (NODES,)),
}


@pytest.mark.parametrize("name", LEARNED)
def test_neurons_pass_a_parameter_on_the_left(name):
    mix, shape = LEARNED[name]
    model = nets.settle(Nodes(mix, "parameter", shape))
    inputs = model.inputs
    for seed in (0, 1):
        graph = demp.trace(model, inputs)
        front = [layer for layer in graph.layers if ("fc.weight", 0) in layer.producers]
        assert front and all(bool(layer.removable.all()) for layer in front), graph.refused
        dead = killing.killed(model, graph, 0.3, seed, low=0.0)
        before, training = comparing.outputs(model, inputs), trained(model, inputs)
        assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        assert comparing.gap(training, trained(model, inputs)) < 1e-10
    assert model.fc.out_features < WIDTH


SPARSE = {
    "spmm": lambda s, h: torch.spmm(s.A, h),
    "matmul": lambda s, h: s.A @ h,
    "sparse.mm": lambda s, h: torch.sparse.mm(s.A, h),
    "sparse.addmm": lambda s, h: torch.sparse.addmm(h, s.A, h),
}


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
@pytest.mark.parametrize("name", SPARSE)
def test_neurons_pass_a_sparse_table(name, kind):
    cut_exactly(Nodes(SPARSE[name], kind, table=TABLE.to_sparse()))


ROWS = {
    "index_put": lambda s, h: torch.zeros_like(h).index_put((EDGES[1],), h[EDGES[0]], accumulate=True),
    "index_put_": lambda s, h: (h * 1.0).index_put_((EDGES[1][:3],), h[EDGES[0][:3]]),
    "rows set by a mask": lambda s, h: h.masked_fill(torch.zeros(NODES, 1).bool(), 0.0).index_put(
        (EDGES[0][:2],), h[3]
    ),
    "index_reduce": lambda s, h: torch.zeros_like(h).index_reduce(0, EDGES[1], h[EDGES[0]], "amax"),
    "segment_reduce": lambda s, h: torch.segment_reduce(h, "sum", lengths=torch.tensor([4, 3])),
    "largest of a segment": lambda s, h: torch.segment_reduce(h, "max", lengths=torch.tensor([4, 3])),
}


@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
@pytest.mark.parametrize("name", ROWS)
def test_neurons_pass_sums_of_rows(name):
    cut_exactly(Nodes(ROWS[name]))


def refused(mix, **options) -> demp.NeuronGraph:
    model = nets.settle(Nodes(mix, **options))
    return demp.trace(model, model.inputs)


def test_a_matrix_for_each_neuron_keeps_them():
    def mix(s, h):
        return torch.bmm(s.A.softmax(-1), h.t()[..., None])[..., 0].t()

    graph = refused(mix, table=torch.rand(WIDTH, NODES, NODES, generator=DRAW))
    assert not any(bool(layer.removable.any()) for layer in graph.layers)


def test_a_table_over_the_neurons_keeps_or_reads_them():
    graph = refused(lambda s, h: F.relu(h) @ s.A.softmax(-1), table=torch.rand(WIDTH, WIDTH, generator=DRAW))
    assert not any(bool(layer.removable.any()) for layer in graph.layers)


def test_a_bias_for_each_neuron_and_node_keeps_them():
    graph = refused(lambda s, h: torch.addmm(BIAS, s.A, h))
    assert not any(bool(layer.removable.any()) for layer in graph.layers)


BIAS = torch.rand(NODES, WIDTH, generator=DRAW).double()


def test_values_written_at_indices_that_have_no_neurons_keep_them():
    graph = refused(lambda s, h: h.index_put((EDGES[0],), BIAS[EDGES[1]], accumulate=True))
    assert not any(bool(layer.removable.any()) for layer in graph.layers)
