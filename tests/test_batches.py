"""Batches are the user's: demp runs on copies of them, tries them early, and says what is wrong with them."""

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
import killing
from demp.errors import UsageError
from demp.graph import inputs


@dataclass
class Batch:
    x: Tensor


def in_place(batch: Tensor) -> Tensor:
    return batch.sub_(0.5)


def popped(batch: dict[str, Tensor]) -> Tensor:
    return batch.pop("x")


def of_object(batch: Batch) -> Tensor:
    batch.x = batch.x * 2
    return batch.x.sub_(0.5)


FORMS: dict[str, tuple[Any, Any]] = {
    "in place": (in_place, lambda x: x),
    "popped": (popped, lambda x: {"x": x}),
    "object": (of_object, Batch),
}


class Net(nn.Module):
    """Takes its input out of a batch in a way that changes it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.take, self.a, self.b = FORMS[form][0], nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, batch):
        return self.b(torch.relu(self.a(self.take(batch))))


def given(form: str, x: Tensor) -> tuple[Any, ...]:
    return (FORMS[form][1](x.clone()),)


def tensor_of(batch: Any) -> Tensor:
    return batch["x"] if isinstance(batch, dict) else batch.x if isinstance(batch, Batch) else batch


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_leaves_the_examples_as_they_were(form: str):
    torch.manual_seed(0)
    model, x = Net(form).double(), torch.randn(16, 6).double()
    examples = given(form, x)
    graph = demp.trace(model, examples)
    killing.kill(model, graph, {"relu": [0, 5]})
    assert [not bool(flag) for flag in demp.alive(model, [examples])["relu"]].count(True) >= 2
    before = model(*given(form, x)).detach()
    assert demp.cut(model, {"relu": [0, 5]}, example_inputs=examples, graph=graph).removed == 2
    torch.testing.assert_close(model(*given(form, x)), before, rtol=0, atol=1e-12)
    assert torch.equal(tensor_of(examples[0]), x)


def trained(form: str, batches: Any, steps: int = 60) -> tuple[nn.Module, Any]:
    """A short run in which the lasso silences neurons."""
    torch.manual_seed(0)
    model, x, y = Net(form), torch.randn(64, 6), torch.randint(0, 3, (64,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    pruner = demp.DemP(model, optimizer, example_inputs=given(form, x), total_steps=steps, period=5, peak_strength=0.3,
                       batches=batches, on_error="raise")  # fmt: skip
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(*given(form, x)), y).backward()
        optimizer.step()
    return model, pruner


@pytest.mark.parametrize("window", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_run_judges_on_the_batches_as_they_were_given(form: str, window: bool):
    """The same neurons go as where the forward leaves its input alone; the batches of the user are never changed."""
    x = torch.randn(32, 6)
    batches = None if window else [given(form, x)]
    model, pruner = trained(form, batches)
    assert 12 > model.a.out_features == pruner.state.neurons > 0 and pruner.history
    if batches is not None:
        assert torch.equal(tensor_of(batches[0][0]), x)


def test_batches_with_targets_are_refused_when_the_pruner_is_built():
    x, y = torch.randn(8, 6), torch.zeros(8, dtype=torch.long)
    with pytest.raises(UsageError, match=r"Net does not run on the examples .* takes 2 positional .* without targets"):
        trained("in place", [(x, y)])


def test_a_loader_with_targets_is_named_at_the_first_check(caplog):
    x, y = torch.randn(8, 6), torch.zeros(8, dtype=torch.long)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    with pytest.raises(UsageError, match="without targets"):
        trained("in place", loader)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=10, period=2, batches=loader)
    with caplog.at_level(logging.WARNING, logger="demp"):
        for _ in range(4):
            model(x).sum().backward()
            optimizer.step()
    assert "without targets; training goes on" in caplog.text and "without targets" in str(pruner.finish())


@pytest.mark.parametrize("once", [iter([1]), (x for x in [1]), zip([1], [2], strict=True)])
def test_what_can_be_read_once_is_refused(once: Any):
    with pytest.raises(UsageError, match="can be read once, and every check reads them"):
        trained("in place", once)


def test_a_forward_that_takes_other_widths_is_skipped_with_the_reason(caplog):
    """A network that is trained at several widths (slices of its weights)."""

    class Slim(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.w = nn.Linear(6, 16), nn.Linear(16, 3), 16

        def forward(self, x):
            h = torch.relu(F.linear(x, self.a.weight[: self.w], self.a.bias[: self.w]))
            return F.linear(h, self.b.weight[:, : self.w], self.b.bias)

    torch.manual_seed(0)
    model, x = Slim(), torch.randn(32, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = demp.DemP(model, optimizer, example_inputs=(x,), total_steps=20, period=2, batches=[(x,)])
    with torch.no_grad():
        model.a.weight[2], model.a.bias[2] = 0, -1
    model.w = 8
    with caplog.at_level(logging.WARNING, logger="demp"):
        for _ in range(20):
            model(x).sum().backward()
            optimizer.step()
    assert "reads 8 neurons where there were 16" in caplog.text and "a switch" in str(pruner.finish())


def test_sparse_outputs_are_compared_as_dense_ones():
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x):
            out = self.b(torch.relu(self.a(x)))
            return out, torch.where(out > 0, out, 0.0).to_sparse()

    torch.manual_seed(0)
    model, x = Sparse().double(), torch.randn(16, 6).double()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {"relu": [3]})
    before = model(x)[1].to_dense().detach()
    assert demp.cut(model, {"relu": [3]}, example_inputs=(x,), graph=graph).difference < 1e-12
    torch.testing.assert_close(model(x)[1].to_dense(), before, rtol=0, atol=1e-12)


class Graph(nn.Module):
    """Nodes and the edges between them: not every first few of the nodes have theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, nodes, edges):
        h = torch.relu(self.a(nodes))
        return self.b(h.index_add(0, edges[1], h[edges[0]]))


@pytest.mark.parametrize("window", [True, False])
def test_examples_that_cannot_be_divided_prove_as_a_whole(window: bool):
    torch.manual_seed(0)
    model, nodes, edges = Graph(), torch.randn(200, 6), torch.randint(0, 200, (2, 500))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = demp.DemP(model, optimizer, example_inputs=(nodes, edges), total_steps=4, period=2, on_error="raise",
                       batches=None if window else [(nodes, edges)], peak_strength=0.0)  # fmt: skip
    with torch.no_grad():
        model.a.weight[3], model.a.bias[3] = 0.0, -1.0
    for _ in range(4):
        optimizer.zero_grad()
        model(nodes, edges).square().mean().backward()
        optimizer.step()
    pruner.finish()
    assert model.a.out_features == 11 and pruner.state.neurons == 11


def test_a_copy_of_an_object_shares_its_modules_and_nothing_else():
    """What a forward writes into a batch stays in the copy; a module that a batch carries is one and the same."""

    @dataclass
    class Carries:
        x: Tensor
        parts: list[nn.Module]
        notes: dict[str, Any]

    batch = Carries(torch.ones(3), [nn.Linear(2, 2)], {"seen": [torch.zeros(2)]})
    for copy_of in (inputs.copied, inputs.on_meta):
        other = copy_of((batch,))[0]
        assert other is not batch and other.parts is not batch.parts and other.parts[0] is batch.parts[0]
        other.notes["seen"].append("more")
        assert len(batch.notes["seen"]) == 1 and other.notes["seen"][0] is not batch.notes["seen"][0]
    inputs.copied(batch).x.zero_()
    assert batch.x.sum() == 3
