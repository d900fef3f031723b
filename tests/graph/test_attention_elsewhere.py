"""A network that lost heads, in other people's tools: compiled, exported, traced, copied, pickled, saved."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import demp
from attentive import HEADS, WIDTH, Attention, Block, examples
from thinning import covering

NAME = "attention.attention"


class Torch(nn.Module):
    """Attention of torch's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


MAKERS: dict[str, Callable[[], Any]] = {
    "torch": Torch,
    "literal": lambda: Block(Attention("literal")),
    "unbound": lambda: Block(Attention("unbound", fused=False)),
}
TOOLS: dict[str, Callable[[Any, tuple[Any, ...]], Any]] = {
    "compile": lambda model, x: torch.compile(model, backend="eager", fullgraph=True),
    "export": lambda model, x: torch.export.export(model, x).module(),
    "strict export": lambda model, x: torch.export.export(model, x, strict=True).module(),
    "trace": lambda model, x: torch.jit.trace(model, x),
    "copy": lambda model, x: copy.deepcopy(model),
    "pickle": lambda model, x: pickle.loads(pickle.dumps(model)),
}


def without_a_head(make: Callable[[], Any], x: torch.Tensor) -> Any:
    model = make().double().eval()
    assert demp.cut(model, {NAME: [1]}, example_inputs=(x,), exact=False).removed == 1
    return model


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("name", "tool"), covering(MAKERS, TOOLS))
@torch.no_grad()
def test_other_tools_see_the_heads_that_are_left(name: str, tool: str):
    torch._dynamo.reset()
    x = examples()
    model = without_a_head(MAKERS[name], x)
    assert float((TOOLS[tool](model, (x,))(x) - model(x)).abs().max()) < 1e-12


@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_saved_and_loaded(name: str, tmp_path: Path):
    x = examples()
    model = without_a_head(MAKERS[name], x)
    demp.save(model, tmp_path / "model", example_inputs=(x,))
    loaded = demp.load(lambda: MAKERS[name]().double(), tmp_path / "model").eval()
    assert float((loaded(x) - model(x)).abs().max()) < 1e-12
