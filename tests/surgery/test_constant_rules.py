"""What a cut of saturated neurons promises besides exactness: borders, carriers, copies, and what is refused."""

import copy

import pytest
import torch
from test_constants import CONSTANTS, constant_neurons, cut, same_in_both_modes, told
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import nets
import residuals
from demp.errors import CutError
from demp.surgery import record_of
from saturating import saturate


def test_what_a_border_loses_is_its_missing_taps():
    """One constant neuron, nobody to carry it: the bias takes the mean over positions, and each misses the rest."""
    model, inputs = constant_neurons(nn.Conv2d(6, 3, 3, padding=1), conv=True)
    value = F.gelu(torch.tensor(CONSTANTS[2], dtype=torch.float64))
    weight, before = model[2].weight.detach().clone(), comparing.outputs(model, inputs)
    report = cut(model, inputs, [2])
    assert report.removed == 1 and told(report) == {"border"}
    sees = F.conv2d(torch.ones(1, 1, 5, 5, dtype=torch.float64) * value, weight[:, 2:3], padding=1)
    missing = sees - sees.mean((2, 3), keepdim=True)
    assert comparing.gap([before[0] - missing], comparing.outputs(model, inputs)) < 1e-10
    assert report.drift == pytest.approx(float(missing.abs().max() / before[0].abs().max()), rel=1e-9)
    inside = weight[:, 2].sum((1, 2)) * value
    torch.testing.assert_close(sees[0, :, 2, 2], inside)


def test_a_carrier_is_taken_where_it_changes_less():
    model, inputs = constant_neurons(nn.Conv2d(6, 3, 3, padding=1), conv=True)
    report = cut(model, inputs)
    assert report.removed == 2 and report.notes[0].startswith("neurons that stay carry constants past padded borders")
    assert report.held == {"1": "1 kept: it carries the constants of others for 2.weight"}


@pytest.mark.parametrize("spelling", ["x + y", "y + x", "y += x", "y.add_(x)", "torch.add"])
def test_a_residual_sum_gives_the_constant_of_its_stream_to_the_norm_of_its_branch(spelling):
    model, inputs = residuals.network(2, 6, spelling)
    saturate(model, demp.trace(model, inputs), {"1": [1, 4]}, 0.8)
    dense = copy.deepcopy(model)
    model[2].conv1.padding = dense[2].conv1.padding = (0, 0)  # leave out borders, keep the sizes
    model[2].conv2.padding = dense[2].conv2.padding = (2, 2)
    report = demp.cut(model, {"1": [1, 4]}, example_inputs=inputs, constants=True)
    assert report.removed == 2 and report.drift < 1e-10 and report.layers["1"].kept == 4
    assert report.depths is not None and report.depths.block == (2, report.depths.block[1])
    same_in_both_modes(dense, model, inputs)
    saturate(model, demp.trace(model, inputs), {"1": [0]}, -0.3)  # a stream that is joined already
    assert bool((model[1](model[0](inputs[0]))[:, 0] == 0).all())
    saturate(model, demp.trace(model, inputs), {"1": [2]}, 0.5)
    dense = copy.deepcopy(model)
    again = demp.cut(model, {"1": [0, 2]}, example_inputs=inputs, constants=True)
    assert (again.removed, again.dead, again.saturated) == (2, 1, 1) and again.drift < 1e-10
    same_in_both_modes(dense, model, inputs)


def test_a_branch_without_norm_or_bias_keeps_the_constants_of_its_stream():
    model, inputs = residuals.network(1, 6)
    model[2].bn2 = nn.Identity()
    saturate(model, demp.trace(model, inputs), {"1": [1, 4]}, 0.8)
    report = demp.cut(model, {"1": [1, 4]}, example_inputs=inputs, constants=True)
    assert not report.happened
    assert report.held == {"1": "2 kept: nothing in the branch of 2:sum could take their constant"}


def test_one_neuron_alone_has_nobody_to_carry_its_constant():
    model, inputs = constant_neurons(nn.Linear(6, 3, bias=False))
    before = comparing.state(model)
    report = cut(model, inputs, [2])
    assert not report.happened and "no bias or norm that could take their constant" in report.held["1"]
    assert comparing.same_state(before, model)


def test_a_norm_of_other_channels_is_no_place():
    model, inputs = constant_neurons(
        nn.Sequential(nn.Linear(6, 4, bias=False), nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2))
    )
    report = cut(model, inputs, [2])
    assert not report.happened and "no bias or norm that could take their constant" in report.held["1"]


def test_a_weight_that_also_makes_neurons_carries_nothing():
    model, inputs = nets.paths(5, 3, tied=True)
    nets.settle(model)
    graph, inputs = demp.trace(model, inputs), (inputs[0].double(),)
    last = graph.layers[-1].name
    removable = graph.layers[-1].removable.nonzero().flatten().tolist()
    saturate(model, graph, {last: removable[:3]}, 0.5)
    before = comparing.outputs(model, inputs)
    report = demp.cut(model, {layer.name: removable[:3] for layer in graph.layers if layer.width == 5},
                      example_inputs=inputs, constants=True, graph=graph)  # fmt: skip
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10 or report.drift > 0


def test_uses_of_one_reader_that_see_other_constants_keep_the_neuron():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act, self.read = nn.Linear(4, 6), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(self.act(self.a(x))) + self.read(self.act(self.b(x))).tanh()

    model, x = nets.settle(Two()), (torch.randn(8, 4, dtype=torch.float64),)
    saturate(model, demp.trace(model, x), {"act": [1, 2]}, 0.5)
    with torch.no_grad():
        model.b.bias[2] = 1.25
    dense = copy.deepcopy(model)
    report = demp.cut(model, {"act": [1, 2], "act#2": [1, 2]}, example_inputs=x, constants=True)
    assert report.removed == 2 and "is used several times" in report.held["act"]
    assert comparing.gap(comparing.outputs(dense, x), comparing.outputs(model, x)) < 1e-10


def test_copies_gain_the_same():
    model, inputs = constant_neurons(nn.Linear(6, 3))
    average = torch.optim.swa_utils.AveragedModel(model)
    plain = {name: t.detach().clone() for name, t in model.named_parameters()}
    before = comparing.outputs(average, inputs)
    cut(model, inputs, copies=[average, plain])
    assert comparing.gap(before, comparing.outputs(average, inputs)) < 1e-10
    assert torch.equal(plain["2.bias"], model[2].bias)


def test_a_tied_weight_reads_other_neurons_along_its_other_axis():
    def forward(s: nn.Module, x: Tensor) -> Tensor:
        h = F.relu(s.a(x))[..., None, None]
        return s.c((F.relu(F.conv_transpose2d(F.relu(s.b(h)), s.b.weight)) + h).flatten(1))

    parts = {"a": nn.Linear(4, 6), "b": nn.Conv2d(6, 6, 1), "c": nn.Linear(6, 3)}
    model = nets.settle(nets.Forward(forward, **parts))
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1], model.b.weight[:, 1] = 0.0, 0.0, 0.0
    inputs = (torch.randn(9, 4, dtype=torch.float64),)
    graph, before = demp.trace(model, inputs), comparing.outputs(model, inputs)
    mine = graph.layers[0].classes[1]
    dead = {layer.name: (layer.classes == mine) for layer in graph.layers if bool((layer.classes == mine).any())}
    report = demp.cut(model, dead, example_inputs=inputs, graph=graph, constants=True)
    assert report.happened and comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10


def test_a_weight_that_is_expanded_for_a_batch_carries():
    class Expanded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(self.weight.expand(len(x), -1, -1), x[:, :, None])[:, :, 0]

    model, inputs = constant_neurons(Expanded(6, 3, bias=False))
    before = comparing.outputs(model, inputs)
    report = cut(model, inputs)
    assert report.removed == 2 and told(report) == {"stays"}
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10


def test_a_masked_weight_carries_nothing():
    model, inputs = constant_neurons(nn.Linear(6, 3, bias=False))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 2] = False
    assert not cut(copy.deepcopy(model), inputs, copies=[{"2.weight": mask}]).happened
    assert cut(model, inputs, copies=[{"2.weight": torch.ones_like(mask)}]).removed == 2


def test_a_model_that_takes_constants_otherwise_keeps_its_neurons(monkeypatch):
    """Were the outputs after the cut not those with constants at every read, nothing would be left of it."""
    model, inputs = constant_neurons(nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.0
    before = comparing.state(model)
    monkeypatch.setattr(
        "demp.surgery.constants.outputs_after",
        lambda model, moves, inputs, _: [t + 0.1 * bool(moves.shifts) for t in comparing.outputs(model, inputs)],
    )
    report = cut(model, inputs)
    assert not report.happened and "otherwise than the graph sees" in report.held["1"]
    assert comparing.same_state(before, model) and record_of(model) is None
    report = cut(model, inputs, [0, *CONSTANTS])
    assert (report.removed, report.dead, report.saturated) == (1, 1, 0)


def test_if_nothing_explains_the_outputs_the_cut_is_refused(monkeypatch):
    model, inputs = constant_neurons(nn.Linear(6, 3))
    monkeypatch.setattr(
        "demp.surgery.constants.outputs_after",
        lambda model, moves, inputs, _: [t + 0.1 for t in comparing.outputs(model, inputs)],
    )
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.0
    before = comparing.state(model)
    with pytest.raises(CutError, match="rolled back: outputs changed by"):
        cut(model, inputs, [0, *CONSTANTS])
    assert comparing.same_state(before, model)


def test_a_bias_that_something_else_reads_takes_no_constants():
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.bias

    model, inputs = constant_neurons(Odd(6, 3))
    dense = copy.deepcopy(model)
    report = cut(model, inputs)
    assert report.removed == 2 and told(report) == {"stays"}
    same_in_both_modes(dense, model, inputs)


def test_a_failed_cut_takes_its_constants_back(monkeypatch):
    model, inputs = constant_neurons(nn.Linear(6, 3))
    before = comparing.state(model)

    def fail(*args):
        raise MemoryError("no room")

    monkeypatch.setattr("demp.surgery.transaction.shrink_all", fail)
    with pytest.raises(MemoryError):
        cut(model, inputs)
    assert comparing.same_state(before, model) and record_of(model) is None


def test_without_a_proof_constants_leave_all_the_same():
    model, inputs = constant_neurons(nn.Linear(6, 3))
    before = comparing.outputs(model, inputs)
    report = cut(model, inputs, verify=False)
    assert report.removed == 3 and report.difference is None
    assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10


def test_the_older_name_means_the_same():
    model, inputs = constant_neurons(nn.Linear(6, 3))
    other = copy.deepcopy(model)
    cut(model, inputs)
    demp.cut(other, {"1": list(CONSTANTS)}, example_inputs=inputs, exact=False, fold=True)
    assert comparing.same_state(comparing.state(model), other)
    killed, _ = constant_neurons(nn.Linear(6, 3))
    with pytest.raises(CutError, match="are not dead on the example inputs"):  # fold alone never made a cut inexact
        demp.cut(killed, {"1": list(CONSTANTS)}, example_inputs=inputs, fold=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype):
    model, inputs = constant_neurons(nn.Sequential(nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3)))
    model, inputs = model.to(dtype), (inputs[0].to(dtype),)
    before = comparing.outputs(model, inputs)
    report = cut(model, inputs)
    assert report.removed == 3
    assert comparing.gap(before, comparing.outputs(model, inputs)) < {torch.float32: 1e-5}.get(dtype, 0.1)
