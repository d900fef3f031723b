"""Saturated neurons leave with their constants: exact where the table in docs/design.md says so, measured elsewhere."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_exact_random import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import nets
from saturating import saturate, some_constant

X = torch.randn(8, 4, dtype=torch.float64)
IMAGES = torch.randn(8, 4, 5, 5, dtype=torch.float64)
CONSTANTS = {2: 1.5, 3: -0.7, 5: 0.4}
"""Neuron -> what it says whatever the input, before GELU."""


def constant_neurons(reader: nn.Module, *, conv: bool = False, activation: nn.Module | None = None):
    """Neurons 2, 3 and 5 of a layer of 6 say the same for every example; ``reader`` reads them."""
    first = nn.Conv2d(4, 6, 1) if conv else nn.Linear(4, 6)
    model = nets.settle(nn.Sequential(first, activation or nn.GELU(), reader))
    with torch.no_grad():
        for neuron, value in CONSTANTS.items():
            first.weight[neuron], first.bias[neuron] = 0.0, value
    return model, ((IMAGES if conv else X),)


def cut(model: nn.Module, inputs, neurons=tuple(CONSTANTS), **options) -> demp.CutReport:
    return demp.cut(model, {"1": list(neurons)}, example_inputs=inputs, constants=True, **options)


def training_outputs(model: nn.Module, inputs) -> list[Tensor]:
    """Outputs in training mode; running statistics move."""
    torch.manual_seed(0)
    model.train()
    out = model(*inputs)
    model.eval()
    return [out.detach() if isinstance(out, Tensor) else out[0].detach()]


def same_in_both_modes(dense: nn.Module, small: nn.Module, inputs, limit: float = 1e-10) -> None:
    """Evaluation, training, and evaluation again with the statistics that training left."""
    assert comparing.gap(comparing.outputs(dense, inputs), comparing.outputs(small, inputs)) < limit
    for _ in range(2):
        assert comparing.gap(training_outputs(dense, inputs), training_outputs(small, inputs)) < 10 * limit
    assert comparing.gap(comparing.outputs(dense, inputs), comparing.outputs(small, inputs)) < 10 * limit


class Added(nn.Module):
    """Two readers of one layer, one with a bias and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


class Twice(nn.Module):
    """One reader that is used twice."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + 2 * self.a(x.flip(0)).tanh()


class Bare(nn.Module):
    """Read by a bare parameter; ``how`` it is spelled."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.w = how, nn.Parameter(torch.randn((3, 6) if how == "linear" else (6, 3)))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "linear":
            return F.linear(x, self.w)
        return x @ self.w if self.how == "matmul" else torch.einsum("bi,io->bo", x, self.w)


class FromTheLeft(nn.Module):
    """The weight is the left factor of the product."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w @ x.t()).t()


def bn(width: int, **options) -> nn.Module:
    return nn.BatchNorm2d(width, **options)


EXACT = {
    # name: (reader, does it read images?, how constants move, how many neurons stay to carry)
    "linear": (lambda: nn.Linear(6, 3), False, {"biases"}, 0),
    "two layers": (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), False, {"biases"}, 0),
    "linear and norm": (lambda: nn.Sequential(nn.Linear(6, 3, bias=False), nn.BatchNorm1d(3)), False, {"running"}, 0),
    "linear with bias and norm": (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), False, {"biases"}, 0),
    "linear alone": (lambda: nn.Linear(6, 3, bias=False), False, {"stays"}, 1),
    "convolution": (lambda: nn.Conv2d(6, 3, 3), True, {"biases"}, 0),
    "strided": (lambda: nn.Conv2d(6, 3, 3, stride=2), True, {"biases"}, 0),
    "convolution and norm": (lambda: nn.Sequential(nn.Conv2d(6, 3, 3, bias=False), bn(3)), True, {"running"}, 0),
    "norm without statistics": (
        lambda: nn.Sequential(nn.Conv2d(6, 3, 3, bias=False), bn(3, track_running_stats=False)), True, {"running"}, 0),
    "norm without affine": (
        lambda: nn.Sequential(nn.Conv2d(6, 3, 1, bias=False), bn(3, affine=False)), True, {"running"}, 0),
    "convolution alone": (lambda: nn.Conv2d(6, 3, 3, bias=False), True, {"stays"}, 1),
    "padded": (lambda: nn.Conv2d(6, 3, 3, padding=1), True, {"stays"}, 1),
    "padded and norm": (lambda: nn.Sequential(nn.Conv2d(6, 3, 3, padding=1, bias=False), bn(3)), True, {"stays"}, 1),
    "padded with ones": (lambda: nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect"), True, {"biases"}, 0),
    "transposed": (lambda: nn.ConvTranspose2d(6, 3, 1), True, {"biases"}, 0),
    "transposed, strided": (lambda: nn.ConvTranspose2d(6, 3, 2, 2), True, {"stays"}, 1),
    "transposed, overlapping": (lambda: nn.ConvTranspose2d(6, 3, 3), True, {"stays"}, 1),
    "flatten": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(150, 3)), True, {"biases"}, 0),
    "flatten without bias": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(150, 3, bias=False)), True, {"stays"}, 1),
    "pooled": (lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(6, 3, 1)), True, {"biases"}, 0),
    "two readers": (Added, False, {"biases", "stays"}, 1),
    "twice": (Twice, False, {"biases"}, 0),
    "twice without bias": (lambda: Twice(bias=False), False, {"stays"}, 1),
    "bare matmul": (lambda: Bare("matmul"), False, {"stays"}, 1),
    "bare einsum": (lambda: Bare("einsum"), False, {"stays"}, 1),
    "bare linear": (lambda: Bare("linear"), False, {"stays"}, 1),
    "from the left": (FromTheLeft, False, {"stays"}, 1),
    "norm of other channels": (
        lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2)), False,
        {"stays"}, 1),
    "grouped": (lambda: nn.Conv2d(6, 6, 3, groups=2), True, {"biases"}, 0),
    "grouped, padded": (lambda: nn.Conv2d(6, 6, 3, groups=2, padding=1), True, {"stays"}, 1),
    "grouped, transposed": (lambda: nn.ConvTranspose2d(6, 6, 2, 2, groups=2, bias=False), True, {"stays"}, 1),
}  # fmt: skip


def told(report: demp.CutReport) -> set[str]:
    """How the report says that constants moved."""
    words = {"into biases (": "biases", "running means (": "running", "that stays (": "stays", "right on av": "border"}
    return {short for long, short in words.items() for note in report.notes[-1:] if long in note}


@pytest.mark.parametrize("name", EXACT)
def test_constants_leave_exactly(name):
    make, conv, ways, stay = EXACT[name]
    model, inputs = constant_neurons(make(), conv=conv)
    graph, neurons = demp.trace(model, inputs), tuple(CONSTANTS)
    if "grouped" in name:  # the channels at one position of both groups are one neuron, and two constants
        saturate(model, graph, {"1": [1, 2]})
        with torch.no_grad():
            model[0].bias[[1, 4]], neurons = torch.tensor([0.8, -0.4], dtype=torch.float64), (1, 2)
    dense = copy.deepcopy(model)
    report = cut(model, inputs, neurons)
    assert report.removed == (len(neurons) - stay)
    assert (report.dead, report.saturated) == (0, report.removed)
    assert report.drift < 1e-10 and report.difference < 1e-10
    assert told(report) == ways
    same_in_both_modes(dense, model, inputs)


def property_test(name: str, examples: int):
    """Outputs of a random network with random constant neurons."""

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(options=NETWORKS[name], share=st.sampled_from([0.3, 0.6, 1.0]), seed=st.integers(0, 1000))
    def run(options, share, seed):
        check_network(name, options, share, seed)

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_random_networks(name):
    property_test(name, 3)()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_many_random_networks(name):
    property_test(name, 100)()


def check_network(name: str, options: dict, share: float, seed: int) -> None:
    """Two cuts of constant neurons: outputs as they were in both modes, but where the report speaks of borders."""
    model, inputs = getattr(nets, name)(**options)
    nets.settle(model, seed)
    inputs = tuple(x.double() for x in inputs)
    for number in range(2):
        graph = demp.trace(model, inputs)
        flags, detection = some_constant(model, graph, inputs, share, seed + number)
        dense = copy.deepcopy(model)
        report = demp.cut(model, flags, example_inputs=inputs, graph=graph, constants=True)
        assert not report.happened or report.difference < 1e-10
        if "border" in told(report):
            assert report.drift == pytest.approx(drift(dense, model, inputs), rel=1e-6, abs=1e-12)
            return
        assert not report.happened or report.drift < 1e-9
        assert comparing.gap(comparing.outputs(dense, inputs), comparing.outputs(model, inputs)) < 1e-9
        same_training(dense, model, inputs)
        if report.happened:
            assert report.dead + report.saturated == report.removed
            zero = sum(int((flags[n] & ~detection.saturated(n)).sum()) for n in flags)
            assert report.dead <= zero


def same_training(dense: nn.Module, small: nn.Module, inputs) -> None:
    """Training-mode outputs agree, where a batch of one position does not stop the norm."""
    try:
        wanted = training_outputs(copy.deepcopy(dense), inputs)
    except ValueError:
        return
    assert comparing.gap(wanted, training_outputs(copy.deepcopy(small), inputs)) < 1e-8


def drift(before: nn.Module, after: nn.Module, inputs) -> float:
    """Largest change over the largest output."""
    was, now = comparing.outputs(before, inputs), comparing.outputs(after, inputs)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(was, now, strict=True))
