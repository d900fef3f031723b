"""What no activation carries is named with its reason: in the graph, in the table, and when nothing is left."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from nets import Forward

MAP, VECTOR = torch.randn(2, 3, 6, 6), torch.randn(4, 6)


def between(operation, inner: int = 8, outer: int = 8) -> Forward:
    """An operation between a linear layer's outputs and what reads them."""
    return Forward(lambda s, x: s.b(operation(s.a(x))), a=nn.Linear(6, inner), b=nn.Linear(outer, 3))


CASES = {
    "layer norm": (
        between(lambda h: F.relu(F.layer_norm(h, (8,)))), VECTOR,
        {"a": ("layer_norm over the neuron axis mixes neurons (at the model itself)", 8)},
    ),
    "an unknown operation": (
        between(lambda h: F.relu(torch.fft.fft(h, dim=1).real)), VECTOR,
        {"a": ("_fft_r2c over the neuron axis mixes neurons (at the model itself)", 8)},
    ),
    "a view": (
        between(lambda h: F.relu(h.t().reshape(4, -1))), VECTOR,
        {"a": ("a view splits or mixes the neuron axis (at the model itself)", 8)},
    ),
    "no activation": (between(lambda h: h), VECTOR, {"a": ("read before any activation (by b.weight)", 8)}),
    "nobody reads": (
        Forward(lambda s, x: (s.a(x), s.b(x))[1], a=nn.Linear(6, 5), b=nn.Linear(6, 3)), VECTOR,
        {"a": ("no activation that keeps zero at zero follows", 5)},
    ),
    "a weight in an unknown operation": (
        Forward(lambda s, x: s.b(F.relu(s.a(x, x))), a=nn.Bilinear(6, 6, 8), b=nn.Linear(8, 3)), VECTOR,
        {"a": ("unknown operation _trilinear (at a)", 8)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_weight_that_is_not_offered_has_its_reason(name: str):
    model, x, expected = CASES[name]
    graph = demp.trace(model, (x,))
    assert not graph.layers
    assert {r.name: (r.reason, r.neurons) for r in graph.refused} == expected
    where, (reason, _) = next(iter(expected.items()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(demp.UsageError) as refused:
        demp.DemP(model, optimizer, example_inputs=(x,), total_steps=2)
    assert f"has no layer whose neurons can be removed ({where}: {reason}" in str(refused.value)
    found = demp.inspect(model, (x,))
    assert found.rows == () and found.others == graph.refused
    assert "Not offered, since no activation carries them:" in str(found) and reason in str(found)


class Half(nn.Module):
    """One layer that is offered, one that a norm mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))


def test_beside_what_is_offered():
    model = Half()
    graph = demp.trace(model, (VECTOR,))
    assert [(r.name, r.neurons) for r in graph.refused] == [("a", 8)] and graph.removable() == 5
    text = str(demp.inspect(model, (VECTOR,)))
    assert "  8 outputs of a: layer_norm over the neuron axis mixes neurons (at norm)" in text.splitlines()
    pruner = demp.DemP(model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=(VECTOR,), total_steps=2)
    assert (
        "  not offered: 8 neurons, layer_norm over the neuron axis mixes neurons (at norm)"
        in str(pruner.summary()).splitlines()
    )


def test_rows_are_summed_by_reason_wherever_it_is():
    model = nn.Sequential(*(part for _ in range(5) for part in (nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU())), Half())
    text = str(demp.inspect(model, (VECTOR,)))
    why = "layer_norm over the neuron axis mixes neurons (at 1 and 5 more)"
    assert [line for line in text.splitlines() if "outputs of" in line] == [
        f"  38 outputs of 0, 3, 6 and 3 more: {why}"
    ]
    pruner = demp.DemP(model, None, example_inputs=(VECTOR,), total_steps=2)
    assert f"  not offered: 38 neurons, {why}" in str(pruner.summary()).splitlines()
