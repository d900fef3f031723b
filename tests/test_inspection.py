"""What demp could remove, and who owns how much."""

import json

import torch
from torch import nn
from torch.nn import functional as F

import demp
import nets
from demp.train.models import resnet18
from nets import Forward


def rows(inspection) -> dict:
    return {row.layer: row for row in inspection.rows}


def test_an_mlp():
    found = demp.inspect(nets.mlp(4, 8, 6, 3), (torch.randn(5, 4),))
    assert (found.model, found.parameters, found.neurons, found.removable) == ("Sequential", 115, 14, 14)
    assert found.flops == 2 * 5 * (32 + 48 + 18)
    one, two = rows(found)["1"], rows(found)["3"]
    assert (one.activation, one.width, one.removable, one.group, one.reason) == ("relu", 8, 8, "", "")
    assert one.parameters == 4 * 8 + 8 + 8 * 6 and one.flops == 2 * 5 * (32 + 48)
    assert two.parameters == 8 * 6 + 6 + 6 * 3 and two.flops == 2 * 5 * (48 + 18)
    assert found.owned_parameters == 115 - 3


def test_coupled_layers_share_a_letter_and_are_counted_once():
    model, inputs = nets.residual((4, 4, 5), inner=3)
    found = rows(demp.inspect(model, inputs, joins=False))
    assert {name: row.group for name, row in found.items()} == {
        "1": "A", "2.act1": "", "2.act2": "A", "3.act1": "", "3.act2": ""
    }  # fmt: skip
    assert found["1"].parameters > 0 and found["2.act2"].parameters == found["2.act2"].flops == 0


def test_reasons_stand_beside_the_layers():
    def forward(s, x):
        a, b = F.relu(s.one(x)), F.relu(s.two(x))
        return s.head(F.relu(torch.cat([a, b], 1))) + a.std(1, keepdim=True)

    model = Forward(forward, one=nn.Linear(6, 3), two=nn.Linear(6, 4), head=nn.Linear(7, 2))
    found = demp.inspect(model, (torch.randn(3, 6),))
    assert rows(found)["relu"].reason == "3 refused: std over the neuron axis mixes neurons (at the model itself)"
    assert rows(found)["relu#2"].reason == ""
    assert (found.neurons, found.removable) == (14, 8)


def test_several_reasons_for_one_layer_are_all_named():
    def forward(s, x):
        h = F.relu(torch.cat([s.one(x), s.two(x), s.three(x)], 1))
        return s.head(h) + h[:, :3].softmax(1).sum(1, keepdim=True)

    model = Forward(forward, one=nn.Linear(6, 3), two=nn.Linear(6, 4), three=nn.Linear(6, 2), head=nn.Linear(9, 2))
    graph = demp.trace(model, (torch.randn(3, 6),))
    reason = rows(demp.inspect(model, (torch.randn(3, 6),)))["relu"].reason
    assert all(f"{refusal.neurons} refused: {refusal.reason}" in reason for refusal in graph.refused)


def test_ownership_is_exact_for_large_models():
    """More than 2**24 parameters in one layer: no rounding of floats."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4097, 4099), nn.ReLU(), nn.Linear(4099, 3))
    found = demp.inspect(model, (torch.empty(1, 4097, device="meta"),))
    assert found.rows[0].parameters == 4097 * 4099 + 4099 + 4099 * 3


def test_the_table_and_its_plain_form():
    found = demp.inspect(resnet18(10, width=0.25), (torch.randn(1, 3, 32, 32),))
    text = str(found)
    assert text.startswith("ResNet: 701,466 parameters") and "976 neurons in 17 layers; 976 removable" in text
    lines = text.splitlines()
    assert lines[2].split() == ["layer", "act", "width", "removable", "group", "params", "FLOPs"]
    assert sum(line.startswith("layer") for line in lines[3:]) == 16
    assert max(map(len, lines)) < 140
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["neurons"] == 976 and len(plain["rows"]) == 17


def test_a_model_without_neurons():
    found = demp.inspect(nn.Linear(4, 2), (torch.randn(1, 4),))
    assert found.rows == () and found.neurons == 0 and "0 neurons in 0 layers" in str(found)
