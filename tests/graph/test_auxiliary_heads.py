"""What runs in training alone reads neurons, too: they go where evaluation judges what it reads, as zeros."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from exactly import cut_twice, trained
from nets import Forward

X = torch.randn(16, 6, dtype=torch.float64)


def written_into(h: Tensor) -> Tensor:
    """A view of a tensor that changes afterwards."""
    view = h.view(h.shape)
    h += 1
    return view


def with_head(read: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> nn.Module:
    """Two layers, and a head over the first that runs in training only; ``read`` makes its input of both its forms."""

    def forward(s, x):
        before = s.one(x)
        h = s.act(before)
        out = s.head(F.relu(s.two(h)))
        return (out, s.aux(read(s, before, h.clone()))) if s.training else out

    torch.manual_seed(0)
    parts = {"one": nn.Linear(6, 8), "two": nn.Linear(8, 7), "head": nn.Linear(7, 3), "aux": nn.Linear(8, 2)}
    return nets.settle(
        Forward(forward, **parts, act=nn.ReLU(), bend=nn.Tanh(), again=nn.ReLU(), norm=nn.BatchNorm1d(8))
    )


def test_neurons_of_an_auxiliary_head_go_with_its_inputs():
    model = with_head(lambda s, before, h: h)
    graph = demp.trace(model, (X,))
    assert graph.refused == () and graph.removable() == 15 and int(graph.only_zeros.sum()) == 8
    assert min(cut_twice(model, (X,))) > 0
    assert model.aux.in_features == model.one.out_features < 8


@pytest.mark.parametrize(
    "read",
    [
        lambda s, before, h: before,
        lambda s, before, h: s.bend(before),
        lambda s, before, h: s.again(-before),
        lambda s, before, h: s.act(-before),
        lambda s, before, h: s.again(h - 1),
        lambda s, before, h: h - 1,
        lambda s, before, h: h.exp(),
        lambda s, before, h: s.norm(h),
        lambda s, before, h: written_into(h),
    ],
    ids=["bare", "another kind", "another module", "once more", "of its output", "less", "exp", "norm", "a view"],
)
def test_what_it_reads_in_another_way_stays(read):
    graph = demp.trace(with_head(read), (X,))
    assert [int(layer.removable.sum()) for layer in graph.layers if layer.name == "act"] == [0]
    assert any("training forward reads these neurons" in refusal.reason for refusal in graph.refused)


def test_a_constant_stays_that_an_auxiliary_head_would_miss():
    model = with_head(lambda s, before, h: h)
    with torch.no_grad():
        model.one.weight[:3] = 0.0
        model.one.bias[:3] = torch.tensor([1.0, -1.0, 2.0])
    before = trained(model, (X,))
    report = demp.cut(model, {"act": [0, 1, 2]}, example_inputs=(X,), constants=True)
    assert report.removed == 1 and model.aux.in_features == 7
    assert any("the training forward reads them once more" in why for why in report.held.values())
    assert comparing.gap(before, trained(model, (X,))) < 1e-12


def test_a_run_removes_them_and_the_head_trains_on():
    torch.manual_seed(0)
    model = with_head(lambda s, before, h: h).float().train()
    x, y = X.float(), torch.randint(0, 3, (16,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=60, budget=demp.Budget(neurons=0.5))
    for _ in range(60):
        out, aux = model(x)
        (F.cross_entropy(out, y) + aux.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    report = pruner.finish()
    assert report.neurons_after <= 7 and model.aux.in_features == model.one.out_features < 8
    assert all(one.drift is None or one.drift < 1e-3 for one in pruner.history)


def test_masks_of_all_other_readers_do_not_make_it_unread():
    model = with_head(lambda s, before, h: h)
    graph = demp.trace(model, (X,))
    masks = {"two.weight": torch.ones(7, 8, dtype=torch.bool)}
    masks["two.weight"][:, 2] = False
    from demp.masking.masks import present, unread

    state = graph.dense
    assert not bool(unread(graph, masks, present(state, masks), graph.none_removed()).any())


def test_convolutions_of_a_joined_stream():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.act1, self.act2, self.head, self.aux = nn.ReLU(), nn.ReLU(), nn.Linear(6, 4), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> object:
            x = self.act1(self.stem(x))
            y = self.act2(x + self.branch(x))
            out = self.head(y.mean((2, 3)))
            return (out, self.aux(F.avg_pool2d(y, 2))) if self.training else out

    torch.manual_seed(0)
    model, inputs = Joined().double(), (torch.randn(3, 3, 8, 8).double(),)
    assert demp.trace(model, inputs).refused == ()
    assert min(cut_twice(model, inputs)) > 0
    dead = killing.killed(model, demp.trace(model, inputs), 0.3)
    assert dead is not None
