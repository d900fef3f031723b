"""Views that merge examples or positions with neurons: what a cut plans holds for other batches and lengths."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
from demp.graph.calls import calls_of
from demp.graph.joins import set_calls

DEAD = [1, 2, 5, 7, 8, 10]


def smoothed(h: Tensor) -> Tensor:
    return F.avg_pool1d(h, 3, 1, 1)


FORMS = {
    "b*12, 1, -1": lambda h, b, t: smoothed(h.reshape(b * 12, 1, -1)).view(b, 12, -1),
    "b*12, -1": lambda h, b, t: F.pad(h.reshape(b * 12, -1), (1, 0))[:, :-1].reshape(b, -1, t),
    "1, b*12, t": lambda h, b, t: smoothed(h.reshape(1, b * 12, t)).view(b, 12, t),
    "1, b*12, -1": lambda h, b, t: smoothed(h.reshape(1, b * 12, -1)).view(-1, 12, t),
    "b, 12*t": lambda h, b, t: h.reshape(b, 12 * t).view(b, 12, -1),
    "-1, 12*t": lambda h, b, t: h.reshape(-1, 12 * t).view(-1, 12, t),
    "-1, b*12": lambda h, b, t: h.permute(2, 0, 1).reshape(-1, b * 12).transpose(0, 1).view(b, 12, -1),
    "-1, 12": lambda h, b, t: h.transpose(1, 2).reshape(-1, 12).view(b, -1, 12).transpose(1, 2),
    "unflatten": lambda h, b, t: h.flatten(0, 1).unflatten(0, (b, 12)),
}


class Net(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.form, self.a, self.b = FORMS[name], nn.Conv1d(3, 12, 3, padding=1), nn.Conv1d(12, 5, 1)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.b(self.form(h, len(x), x.shape[2])).mean(2)


@pytest.mark.parametrize("examples", [1, 2, 4])
@pytest.mark.parametrize("name", FORMS)
def test_other_batches_and_lengths_are_right(name: str, examples: int):
    torch.manual_seed(0)
    model, x = Net(name).double().eval(), torch.randn(examples, 3, 8).double()
    graph = demp.trace(model, (x,))
    if not bool(graph.layer("relu").removable.any()):
        assert name == "1, b*12, -1" and examples > 1
        return
    killing.kill(model, graph, {"relu": DEAD})
    dense = copy.deepcopy(model)
    assert demp.cut(model, {"relu": DEAD}, example_inputs=(x,), graph=graph).removed == len(DEAD)
    for batch in (1, 2, 3, 8):
        for length in (4, 8, 16):
            z = torch.randn(batch, 3, length).double()
            assert comparing.gap(comparing.outputs(dense, (z,)), comparing.outputs(model, (z,))) < 1e-12


def test_a_plan_of_an_earlier_version_holds_for_its_own_examples():
    torch.manual_seed(0)
    model, x = Net("-1, 12*t").double().eval(), torch.randn(1, 3, 8).double()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {"relu": DEAD})
    demp.cut(model, {"relu": DEAD}, example_inputs=(x,), graph=graph)
    before = model(x)
    old = {key: replace(plan, block=(), places=()) for key, plan in calls_of(model).items()}
    set_calls(model, old)
    assert torch.equal(model(x), before)


def test_what_an_axis_of_length_one_hid_is_an_error():
    """With one example nobody can know that the view merges examples, too: another batch is an error."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(4, 12), nn.Linear(12, 3)

        def forward(self, x):  # (positions, examples, 4)
            merged = F.relu(self.fc(x)).permute(2, 1, 0).reshape(12 * x.shape[1], -1)
            return self.head(merged.reshape(12, x.shape[1], -1).permute(1, 2, 0))

    model, x = Behind().double().eval(), torch.randn(5, 1, 4).double()
    graph = demp.trace(model, (x,))
    killing.kill(model, graph, {"relu": DEAD})
    before = comparing.outputs(model, (x,))
    assert demp.cut(model, {"relu": DEAD}, example_inputs=(x,), graph=graph).removed == len(DEAD)
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-12
    with pytest.raises(RuntimeError, match="in the examples that were traced an axis of length 1 hid"):
        model(torch.randn(5, 2, 4).double())
