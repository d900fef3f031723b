"""What a proof compares may be named: outputs that a forward selects from, by module or by function."""

import pytest
import torch
from torch import Tensor, nn

import demp
import killing
import nets
from demp.errors import UsageError


class Detector(nn.Module):
    """Scores and boxes; what it returns changes with rounding, here with the width of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scores, self.boxes = nn.Linear(6, 12), nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.relu(self.body(x))
        scores, boxes = self.scores(h), self.boxes(h)
        order = scores.argsort(1) if h.shape[1] == 12 else scores.argsort(1, descending=True)
        return {"boxes": boxes.gather(1, order), "scores": scores}


def detector() -> tuple[nn.Module, tuple[Tensor, ...], demp.NeuronGraph]:
    torch.manual_seed(0)
    model, inputs = nets.settle(Detector()), (torch.randn(7, 6, dtype=torch.float64),)
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, {"relu": [2, 3]})
    return model, inputs, graph


WAYS = {"modules": ["scores", "boxes"], "function": lambda out: out["scores"]}


def test_without_it_the_right_cut_is_rolled_back_and_the_remedy_named():
    model, inputs, graph = detector()
    with pytest.raises(demp.CutError, match="rolled back: outputs changed by .* give outputs="):
        demp.cut(model, {"relu": [2, 3]}, example_inputs=inputs, graph=graph)
    assert model.body.out_features == 12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", [{}, {"exact": False}, {"constants": True}])
def test_with_it_the_cut_is_proven_on_what_is_named(way, how):
    model, inputs, graph = detector()
    copy, _, _ = detector()
    more = {**how, "outputs": WAYS[way], "copies": [copy]}
    report = demp.cut(model, {"relu": [2, 3]}, example_inputs=inputs, graph=graph, **more)
    assert report.removed == 2 and report.difference < 1e-12 and report.copies["Detector"] < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_live_neurons_are_still_refused(way):
    model, inputs, graph = detector()
    with pytest.raises(demp.CutError, match="neurons of relu are not dead"):
        demp.cut(model, {"relu": [2, 3, 4]}, example_inputs=inputs, graph=graph, outputs=WAYS[way])


def test_a_pruner_takes_it_too():
    model, inputs, _ = detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = demp.DemP(
        model, optimizer, example_inputs=inputs, total_steps=2, batches=[inputs], period=2, outputs=["scores", "boxes"]
    )
    for _ in range(2):
        optimizer.zero_grad()
        model(*inputs)["scores"].sum().backward()
        optimizer.step()
    assert pruner.finish().happened and model.body.out_features == 10


@pytest.mark.parametrize("outputs", ["scores", [], ["scores", "none of these"]])
def test_what_is_neither_is_refused(outputs):
    model, inputs, graph = detector()
    with pytest.raises(UsageError, match="outputs"):
        demp.cut(model, {"relu": [2]}, example_inputs=inputs, graph=graph, outputs=outputs)
