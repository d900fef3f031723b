"""Statistics that optimizers keep per axis: Adafactor's kinds, CAME, SM3."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from twins import DEAD, batch, dying, remaining, stays, train


class Stepping(optim.Optimizer):
    """SGD that divides by what ``second`` makes of the squared gradient, and of what it remembers."""

    def __init__(self, parameters: Any, least: int = 0) -> None:
        super().__init__(parameters, {"lr": 1e-3, "least": least})

    def second(self, square: torch.Tensor, state: dict, least: int) -> torch.Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    second = self.second(p.grad.square() + 1e-12, self.state[p], group["least"])
                    p.addcdiv_(p.grad, second.sqrt(), value=-group["lr"])


class Factored(Stepping):
    """As Adafactor of transformers and CAME: rows and columns of the last two axes, without the axis of their mean."""

    names = ("exp_avg_sq_row", "exp_avg_sq_col")

    def axes(self, shape: torch.Size, least: int) -> tuple[int, int]:
        """Of whose mean the rows are, and the columns."""
        return len(shape) - 1, len(shape) - 2

    def second(self, square: torch.Tensor, state: dict, least: int) -> torch.Tensor:
        if square.dim() < 2 or min(square.shape[:2]) <= least:
            return state.setdefault("exp_avg_sq", torch.zeros_like(square)).lerp_(square, 0.5)
        halves = []
        for name, axis in zip(self.names, self.axes(square.shape, least), strict=True):
            mean = square.mean(axis)
            halves.append(state.setdefault(name, torch.zeros_like(mean)).lerp_(mean, 0.5).unsqueeze(axis))
        return halves[0] * halves[1] / halves[0].mean(self.axes(square.shape, least)[1], keepdim=True)


class Residual(Factored):
    """As CAME's second pair."""

    names = ("exp_avg_res_row", "exp_avg_res_col")


class InFront(Factored):
    """As timm's: of a convolution the axes of its channels."""

    def axes(self, shape: torch.Size, least: int) -> tuple[int, int]:
        return 1, 0


class Maxima(Stepping):
    """As SM3."""

    def second(self, square: torch.Tensor, state: dict, least: int) -> torch.Tensor:
        shape, names = square.shape, [f"accumulator_{axis}" for axis in range(square.dim())]
        for axis, name in enumerate(names):
            ones = [n if a == axis else 1 for a, n in enumerate(shape)]
            state.setdefault(name, square.new_zeros(ones))
        found = state[names[0]]
        for name in names[1:]:
            found = torch.minimum(found, state[name])
        found = found + square
        for axis, name in enumerate(names):
            others = [a for a in range(len(shape)) if a != axis]
            state[name] = found.amax(others, keepdim=True) if others else found
        return found


def transformers_adafactor(parameters: Any) -> optim.Optimizer:
    module = pytest.importorskip("transformers.optimization")
    return module.Adafactor(parameters, lr=1e-3, relative_step=False, scale_parameter=False, clip_threshold=1e9)


MAKES: dict[str, Callable[..., optim.Optimizer]] = {
    "last two": Factored,
    "residuals": Residual,
    "channels": InFront,
    "transformers": transformers_adafactor,
}


def moments(optimizer: optim.Optimizer, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The second moment of every factored parameter, as its factors have it."""
    for name, p in model.named_parameters():
        halves = [value for key, value in optimizer.state[p].items() if key.endswith(("_row", "_col"))]
        if halves:
            row, col = (1, 0) if isinstance(optimizer, InFront) else (p.dim() - 1, p.dim() - 2)
            rows, columns = halves[0].unsqueeze(row), halves[1].unsqueeze(col)
            yield name, rows * columns / rows.mean(col, keepdim=True)


@pytest.mark.parametrize("make", MAKES)
def test_factored_second_moments_are_what_they_were(make: str):
    """Of every entry that stays, also where the removed ones have the share that ``eps`` gives them."""
    model = dying()
    optimizer = MAKES[make](model.parameters())
    train(model, optimizer, range(4))
    before = dict(moments(optimizer, model))
    assert demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optimizer).removed == 7
    kept = demp.surgery.record_of(model).kept
    after = dict(moments(optimizer, model))
    assert after.keys() == before.keys() >= {"conv.weight", "fc.weight", "head.weight"}
    for name, second in before.items():
        assert after[name].shape == model.get_parameter(name).shape
        assert torch.allclose(after[name], stays(name, second, kept), rtol=1e-10, atol=0)
    assert all(torch.isfinite(torch.tensor(train(model, optimizer, range(4, 8)))))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *((Factored, shape) for shape in ((6, 6), (8, 6, 6), (6, 3, 3, 3), (6, 6, 3, 3))),
        *((InFront, shape) for shape in ((6, 6), (6, 6, 3, 3), (6, 4, 3, 3))),
    ],
)
def test_equal_lengths_are_told_apart_by_the_name(kind: type[Factored], shape: tuple[int, ...]):
    """Statistics of a gradient whose slices differ, sliced, are those of the sliced gradient's own entries."""
    keep = {axis: torch.arange(1, shape[axis]) for axis in (0, 1) if shape[axis] > 3}
    p = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = kind([p])
    outer = torch.ones(shape, dtype=torch.float64)
    for axis, n in enumerate(shape):
        outer *= torch.arange(1, n + 1, dtype=torch.float64).view([n if a == axis else 1 for a in range(len(shape))])
    p.grad = outer.clone()
    optimizer.step()
    entries = demp.surgery.state.entries_of(optimizer, "p", p, keep)
    halves = [entry.shrink(entry.place[entry.key]) for entry in entries]
    row, col = optimizer.axes(p.shape, 0)
    rows, columns = halves[0].unsqueeze(row), halves[1].unsqueeze(col)
    wanted = outer
    for axis, stay in keep.items():
        wanted = wanted.index_select(axis, stay)
    assert torch.allclose(rows * columns / rows.mean(col, keepdim=True), wanted.square() / 2, rtol=1e-9)


def test_maxima_step_on_as_in_the_dense_twin():
    model = dying()
    twins = [(model, Maxima(model.parameters()))]
    train(*twins[0], range(5))
    dense = dying()
    dense.load_state_dict(model.state_dict())
    other = Maxima(dense.parameters())
    other.load_state_dict(twins[0][1].state_dict())
    demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=twins[0][1])
    wanted, found = train(dense, other, range(5, 12)), train(*twins[0], range(5, 12))
    assert max(abs(a - b) for a, b in zip(wanted, found, strict=True)) < 1e-5
    assert remaining(dense, model) < 1e-5


def test_state_begins_anew_where_the_new_size_is_laid_out_otherwise():
    """As timm's, which factors from a size on: what it kept of the larger tensor is of no use to the smaller one."""
    model = nets.mlp(6, 8, 7, 3, bias=False).double()
    inputs = (torch.randn(5, 6, dtype=torch.float64),)
    killing.kill(model, demp.trace(model, inputs), {"1": [0, 1, 2, 3]})
    optimizer = Factored(model.parameters(), least=5)
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append(args))
    step(model, optimizer, inputs)
    random = torch.get_rng_state()
    report = demp.cut(model, {"1": [0, 1, 2, 3]}, example_inputs=inputs, optimizer=optimizer)
    assert report.notes == ("Factored began anew for tensors of which it keeps other statistics at their new size",)
    assert torch.equal(random, torch.get_rng_state()) and len(calls) == 1
    assert [dict(optimizer.state[p]).keys() for p in model.parameters()][:2] == [set(), set()]
    step(model, optimizer, inputs)
    assert all(optimizer.state[p]["exp_avg_sq"].shape == p.shape for p in list(model.parameters())[:2])


def step(model: nn.Module, optimizer: optim.Optimizer, inputs: tuple[torch.Tensor, ...]) -> None:
    F.mse_loss(model(*inputs), torch.ones(5, 3, dtype=torch.float64)).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("odd", ["shape", "alone", "sparse"])
def test_other_layouts_under_these_names_are_refused(odd: str):
    class Odd(optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                rows = p.new_zeros(len(p), 2) if odd == "shape" else p.new_zeros(p.shape[:-1])
                name = "accumulator_0" if odd == "sparse" else "exp_avg_sq_row"
                self.state[p][name] = rows if p.dim() > 1 else p.clone()

    model = dying()
    optimizer = Odd(model.parameters(), lr=0.01)
    train(model, optimizer, range(1))
    before = comparing.state(model)
    with pytest.raises(demp.CutError, match=r"Odd keeps state '\w+' \(.*\) for .* does not know how to cut it"):
        demp.cut(model, DEAD, example_inputs=batch(0)[:1], optimizer=optimizer)
    assert comparing.same_state(before, model)
