"""Whose gradient says that a neuron is live."""

import torch
from torch import nn

import demp
from demp.regularization.targets import LiveNeurons


class PreActivation(nn.Module):
    """conv -> (+ conv(relu(bn1))) -> relu(bn2) -> fc: two norms look at one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(4), nn.ReLU()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.conv(self.act1(self.bn1(x)))
        return self.fc(self.act2(self.bn2(x)).mean((2, 3)))


def test_a_neuron_dead_behind_one_norm_and_alive_behind_another_is_live():
    torch.manual_seed(0)
    model = PreActivation()
    with torch.no_grad():
        model.bn1.weight[1], model.bn1.bias[1] = 0.0, -1.0
    x = torch.randn(8, 3, 6, 6)
    graph = demp.trace(model, (x,))
    live = LiveNeurons(model, graph, mask="neuron-gradient", weights_only=False, others=True)
    model(x).square().sum().backward()
    live.look()
    masks = {id(t.parameter): t.mask for t in live.targets(graph.dense)}

    def alive(parameter: nn.Parameter) -> list[bool]:
        mask = masks[id(parameter)]
        return mask.flatten().tolist()

    assert alive(model.bn1.bias) == [True, False, True, True]
    assert alive(model.bn1.weight) == [True, False, True, True]
    assert alive(model.bn2.bias) == [True] * 4
    assert alive(model.conv.weight) == [True] * 4


def test_a_norm_behind_the_activation_is_no_witness():
    """conv -> relu -> bn: the shift of the norm has a gradient even where the neuron is dead."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2)
    )
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, -1.0  # type: ignore[index]
    x = torch.randn(8, 3, 6, 6)
    graph = demp.trace(model, (x,))
    live = LiveNeurons(model, graph, mask="neuron-gradient", weights_only=False, others=True)
    model(x).square().sum().backward()
    live.look()
    masks = {id(t.parameter): t.mask for t in live.targets(graph.dense)}
    for parameter in (model[0].weight, model[0].bias):
        mask = masks[id(parameter)]
        assert mask is not None and mask.flatten().tolist() == [True, False, True, True]
    norm = masks[id(model[2].bias)]
    assert norm is not None and norm.flatten().tolist() == [True] * 4  # it speaks for itself
