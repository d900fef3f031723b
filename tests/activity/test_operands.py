"""A read point is found in whatever operation its line of code becomes: another memory format, another device."""

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
import killing
import nets
from demp.activity.observe import observing, quiet
from demp.graph.contraction_rules import operand_of

X, W, B = torch.zeros(3, 5), torch.zeros(5, 4), torch.zeros(4)


@pytest.mark.parametrize(
    ("name", "args", "weight", "wanted"),
    [
        ("mm", (X, W), 1, (0, 1)),
        ("mm", (W.t(), X.t()), 0, (1, 0)),
        ("addmm", (B, X, W), 2, (1, 1)),
        ("addmm", (B, W.t(), X.t()), 1, (2, 0)),
        ("linear", (X, W.t(), B), 1, (0, 1)),
        ("linear", (W.t(), X), 0, (1, 1)),
        ("bmm", (X[None], W[None]), 1, (0, 2)),
        ("bmm", (W.t()[None], X.t()[None]), 0, (1, 1)),
        ("baddbmm", (B, X[None], W[None]), 2, (1, 2)),
        ("mv", (W.t(), X[0]), 0, (1, 0)),
        ("addmv", (B, W.t(), X[0]), 1, (2, 0)),
        ("convolution", (torch.zeros(2, 5, 6), torch.zeros(4, 5, 3)), 1, (0, 1)),
        ("convolution", (torch.zeros(5, 6), torch.zeros(4, 5, 3)), 1, (0, 0)),
        ("addmm", (W, X, W), 0, None),
        ("convolution", (torch.zeros(2, 5, 6), torch.zeros(4, 5, 3)), 0, None),
    ],
)
def test_the_factor_that_is_no_weight(name, args, weight, wanted):
    found = operand_of(name, args, weight)
    assert found == wanted
    if found is not None and name not in ("linear", "convolution"):
        assert args[found[0]].shape[found[1]] == 5


class Tokens(nn.Module):
    """Linear layers on pixels as tokens: one operation or two, as the strides of the map have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 10, 1)
        self.two, self.head = nn.Linear(10, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(self.stem(x)))
        return self.head(self.two(x.flatten(2).transpose(1, 2)).mean(1))


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("traced", LAYOUTS)
@pytest.mark.parametrize("judged", LAYOUTS)
def test_memory_formats_of_examples_and_batches_may_differ(traced, judged):
    model = nets.settle(Tokens())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    graph = demp.trace(model.to(memory_format=traced), (x.contiguous(memory_format=traced),))
    killing.kill(model, graph, {"relu": [0, 4, 7]})
    other = x.contiguous(memory_format=judged)
    (alive,) = demp.alive(model, [other], graph=graph).values()
    assert (~alive).nonzero().flatten().tolist() == [0, 4, 7]
    before = comparing.outputs(model, (other,))
    report = demp.cut(model, {"relu": [0, 4, 7, 8]}, example_inputs=(other,), graph=graph, exact=False)
    assert report.removed == 4 and report.difference < 1e-10 < report.drift
    assert model.two.in_features == 6 and [t.shape for t in comparing.outputs(model, (other,))] == [before[0].shape]


@pytest.mark.parametrize("judged", LAYOUTS)
def test_what_is_seen_are_the_neurons(judged):
    model = nets.settle(Tokens())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    graph, seen = demp.trace(model, (x,)), []
    with quiet(model), observing(model, graph, lambda read, value: seen.append(value.movedim(read.axis, 0).flatten(1))):
        model(x.contiguous(memory_format=judged))
    with torch.no_grad():
        wanted = torch.relu(model.one(model.stem(x))).movedim(1, 0).flatten(1)
    (found,) = seen
    assert torch.allclose(found.sort(1).values, wanted.sort(1).values)
