"""``torch.set_default_device`` and ``set_default_dtype`` are the user's: what demp computes does not follow them."""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import contract
import demp
from runs import IMAGE, PlainNet, batch_at, build, examples
from thinning import mostly_slow

SOURCE = Path(demp.__file__).parent
SCRIPTS = ("train", "recipes", "experiments", "cli")
"""What runs as a program of its own, with models of its own."""
FACTORIES = frozenset({
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
})  # fmt: skip
"""Functions of torch whose results lie on the default device."""
QUICK = ("demp", "rigl", "chase", "early-crop-s", "snap")


@contextmanager
def default(device: str | None, dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_device(device)
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


def on_default(path: Path) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [
        f"{path.relative_to(SOURCE)}:{call.lineno}: {ast.unparse(call)}"
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) == "torch"
        and call.func.attr in FACTORIES
        and "device" not in {keyword.arg for keyword in call.keywords}
    ]


def test_every_tensor_is_made_on_a_device_that_is_named():
    rooms = (path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] not in SCRIPTS)
    assert [line for path in rooms for line in on_default(path)] == []


def run(name: str, device: str | None = None, dtype: torch.dtype | None = None, **given: Any) -> dict[str, Any]:
    """A run of one method whose images are made before the user's defaults are set; everything that it ends with."""
    torch.manual_seed(0)
    made = [batch_at(step, IMAGE) for step in range(contract.STEPS)]
    model, inputs, scored = contract.network(), (examples(IMAGE),), contract.scoring_batches(7)
    contract.smaller()
    with default(device, dtype):
        parts = contract.parts(name, model, example_inputs=inputs, batches=lambda seed: scored, **given)
        pruner = train(*parts, made)
    moments = {f"{at}.{key}": t for at, kept in parts[1].state_dict()["state"].items() for key, t in kept.items()}
    return {**model.state_dict(), **moments, "neurons": torch.tensor(pruner.state.neurons)}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Any, batches: list[Any]) -> Any:
    for x, y in batches:
        optimizer.zero_grad()
        contract.backward(F.cross_entropy(model(x), y))
        optimizer.step()
    pruner.finish()
    return pruner


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", mostly_slow((*contract.rows(), *contract.COMBINATIONS), QUICK))
def test_a_run_is_the_same_to_the_bit(name: str):
    plain = run(name)
    assert same(run(name, "meta"), plain)
    assert same(run(name, dtype=torch.bfloat16), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_run_to_a_budget_is_the_same_to_the_bit(dtype: torch.dtype):
    given = {"budget": demp.Budget(flops=0.5), "period": 50}
    plain = run("demp", **given)
    assert int(plain["neurons"]) < 28
    assert same(run("demp", "meta", dtype, **given), plain)


@pytest.mark.parametrize("ways", [{}, {"criterion": "saturated"}, {"criterion": "saturated", "batches": None}])
def test_constants_leave_as_they_do_otherwise(ways: dict[str, Any]):
    inputs = (examples((2, 2, 2)),)
    made = [batch_at(step, (2, 2, 2)) for step in range(8)]

    def ended(device: str | None) -> dict[str, Any]:
        torch.manual_seed(0)
        own: Any = build(PlainNet)
        with torch.no_grad():
            own.norm1.weight[:2], own.norm1.bias[:2] = 0, torch.tensor([0.5, -0.5])
        own.double()
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)
        with default(device, torch.bfloat16 if device else None):
            options = {"batches": [x for x, _ in made], **ways}
            pruner = demp.DemP(
                own, optimizer, example_inputs=inputs, total_steps=8, period=4, peak_strength=0.0, peak_noise_std=0.0,
                **options,
            )  # fmt: skip
            train(own, optimizer, pruner, made)
        return own.state_dict()

    plain = ended(None)
    assert len(plain["norm1.weight"]) < 6
    assert same(ended("meta"), plain)


def test_what_is_asked_of_a_model_and_its_files(tmp_path):
    model, inputs = contract.network(), (examples(IMAGE),)
    expected = str(demp.inspect(model, inputs))
    with default("meta", torch.bfloat16):
        assert str(demp.inspect(model, inputs)) == expected
        demp.cut(model, {"act1": [2, 5]}, example_inputs=inputs)
        demp.save(model, tmp_path / "small", example_inputs=inputs)
        plain = demp.plain(model)
    again = demp.load(contract.network, tmp_path / "small")
    assert torch.equal(again(*inputs), model(*inputs)) and torch.allclose(plain(*inputs), model(*inputs), rtol=1e-12)
