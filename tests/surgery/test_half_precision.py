"""An exact cut in half precision asks whether neurons are dead: its tolerance alone would take live ones."""

import pytest
import torch
from torch import nn

import demp


def wide(dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    """A layer so wide that three of its neurons are less than what rounding explains."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 4)).to(dtype).eval()
    return model, torch.randn(16, 8).to(dtype)


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_live_neurons_are_refused_before_anything_is_touched(dtype):
    model, x = wide(dtype)
    before, parameters = outputs(model, x), [(p, p.data_ptr()) for p in model.parameters()]
    with pytest.raises(demp.CutError, match=r"neurons of 1 are not dead on the example inputs.*nothing was cut"):
        demp.cut(model, {"1": [0, 1, 2]}, example_inputs=(x,))
    assert all(p.data_ptr() == address for p, address in parameters) and torch.equal(outputs(model, x), before)
    assert demp.cut(model, {"1": [0, 1, 2]}, example_inputs=(x,), exact=False).removed == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["dead", "read by zeros"])
def test_neurons_that_nobody_misses_go(dtype, how):
    model, x = wide(dtype)
    with torch.no_grad():
        if how == "dead":
            model[0].weight[:3], model[0].bias[:3] = 0, -1
        else:
            model[2].weight[:, :3] = 0
    report = demp.cut(model, {"1": [0, 1, 2]}, example_inputs=(x,))
    assert report.removed == 3 and model[0].out_features == 509


def test_a_tolerance_of_your_own_is_taken():
    model, x = wide(torch.bfloat16)
    assert demp.cut(model, {"1": [0]}, example_inputs=(x,), tolerance=0.5).removed == 1


class Counting(nn.Module):
    """Outputs depend a little on the number of neurons, less than rounding in half precision explains."""

    def __init__(self, *, own_type: bool) -> None:
        super().__init__()
        self.a, self.b, self.own_type = nn.Linear(8, 12), nn.Linear(12, 4), own_type

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x.to(torch.bfloat16) if self.own_type else x))
        return self.b(h) * torch.tensor(1 + 0.001 * h.shape[1]).to(h)


def counting(dtype: torch.dtype, own_type: bool) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = Counting(own_type=own_type).to(dtype)
    with torch.no_grad():
        model.a.weight[:2], model.a.bias[:2] = 0, -1
    return model, torch.randn(16, 8).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exact", [True, False])
def test_the_proof_is_made_in_float32(dtype, exact):
    model, x = counting(dtype, own_type=False)
    before = [(p, p.data_ptr(), p.dtype) for p in model.parameters()]
    with pytest.raises(demp.CutError, match=r"outputs changed by .* \(tolerance 1e-04\)"):
        demp.cut(model, {"relu": [0, 1]}, example_inputs=(x,), exact=exact)
    now = zip(model.parameters(), before, strict=True)
    assert all(p is q and p.data_ptr() == address and p.dtype == kind for p, (q, address, kind) in now)


def test_a_forward_that_asks_for_its_own_type_is_proven_in_it():
    model, x = counting(torch.bfloat16, own_type=True)
    assert demp.cut(model, {"relu": [0, 1]}, example_inputs=(x,)).removed == 2
