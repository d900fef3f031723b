"""What the graph says of a network: layers, producers, reads, couplings, sizes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from exactly import cut_twice
from nets import Forward


def described(graph: demp.NeuronGraph) -> dict[str, tuple]:
    return {layer.name: (layer.activation, layer.width, layer.coupled) for layer in graph.layers}


def test_mlp():
    graph = demp.trace(nets.mlp(4, 8, 5, 3), (torch.randn(2, 4),))
    assert described(graph) == {"1": ("relu", 8, ()), "3": ("relu", 5, ())}
    assert graph.layer("1").producers == (("0.weight", 0),) and graph.layer("1").reads == (("2.weight", 0),)
    assert graph.layer("3").producers == (("2.weight", 0),) and graph.layer("3").reads == (("4.weight", 0),)
    assert graph.dense.neurons == 13 and graph.refused == ()
    assert {(slot.tensor, slot.axis) for slot in graph.slots} == {
        ("0.weight", 0), ("0.bias", 0), ("2.weight", 0), ("2.weight", 1), ("2.bias", 0), ("4.weight", 1)
    }  # fmt: skip


def test_a_residual_stream_couples_the_stem_and_every_block():
    model, inputs = nets.residual((4, 4, 4), inner=3)
    graph = demp.trace(model, inputs, joins=False)
    stream = ("1", "2.act2", "3.act2")
    assert described(graph) == {
        "1": ("relu", 4, stream[1:]),
        "2.act1": ("relu", 3, ()),
        "2.act2": ("relu", 4, (stream[0], stream[2])),
        "3.act1": ("relu", 3, ()),
        "3.act2": ("relu", 4, stream[:2]),
    }
    makers = (("0.weight", 0), ("2.conv2.weight", 0), ("3.conv2.weight", 0))
    assert all(graph.layer(name).producers == makers for name in stream)
    assert graph.layer("1").reads == (("2.conv1.weight", 0),)
    assert graph.layer("3.act2").reads == (("6.weight", 0),)


def test_a_projection_starts_a_new_stream():
    model, inputs = nets.residual((4, 6, 6), inner=3)
    graph = demp.trace(model, inputs, joins=False)
    assert graph.layer("1").coupled == () and graph.layer("2.act2").coupled == ("3.act2",)
    assert graph.layer("1").reads == (("2.conv1.weight", 0), ("2.shortcut.weight", 0))
    assert graph.layer("2.act2").producers == (
        ("2.conv2.weight", 0), ("2.shortcut.weight", 0), ("3.conv2.weight", 0)
    )  # fmt: skip


def test_every_branch_of_a_join_is_a_producer():
    parts = {f"c{i}": nn.Conv2d(3, width, 1) for i, width in enumerate((2, 3, 4))}
    model = Forward(
        lambda s, x: s.head(F.relu(torch.cat([s.c0(x), s.c1(x), s.c2(x)], 1)).mean((2, 3))),
        head=nn.Linear(9, 2),
        **parts,
    )
    graph = demp.trace(model, (torch.randn(2, 3, 4, 4),))
    assert graph.layer("relu").producers == (("c0.weight", 0), ("c1.weight", 0), ("c2.weight", 0))
    assert [slot.classes.tolist() for slot in graph.slots if slot.tensor.startswith("c") and slot.axis == 0
            and slot.tensor.endswith("weight")] == [[1, 2], [3, 4, 5], [6, 7, 8, 9]]  # fmt: skip


def test_a_depthwise_convolution_passes_its_channels_on():
    model, inputs = nets.separable(width=4, hidden=6, squeeze=3)
    graph = demp.trace(model, inputs)
    assert described(graph) == {
        "act1": ("relu", 6, ("act2",)),
        "act2": ("relu", 6, ("act1",)),
        "act3": ("relu", 3, ()),
        "act4": ("relu", 4, ()),
    }
    assert graph.layer("act1").reads == () and set(graph.attributes) == {("depthwise", "groups")}
    assert graph.layer("act2").reads == (("reduce.weight", 0), ("project.weight", 0))
    assert ("excite.weight", 0) in graph.layer("act2").producers


@pytest.mark.parametrize("how", ["separate", "packed", "glu"])
def test_a_gate_takes_its_value_along(how):
    model, inputs = nets.gated(6, how)
    graph = demp.trace(model, inputs)
    gone = graph.none_removed()
    gone[graph.layers[0].classes[2]] = True
    shapes = {name: shape for name, shape in graph.at(gone).shapes.items() if name.endswith("weight")}
    if how == "separate":
        assert shapes == {"gate.weight": (5, 4), "value.weight": (5, 4), "down.weight": (3, 5)}
    else:
        assert shapes == {"both.weight": (10, 4), "down.weight": (3, 5)}
        halves = next(slot.classes for slot in graph.slots if (slot.tensor, slot.axis) == ("both.weight", 0))
        assert halves[:6].tolist() == halves[6:].tolist() == graph.layers[0].classes.tolist()


def test_a_flattened_channel_owns_a_column_per_position():
    model, inputs = nets.plain(2, (3,), pool="none", norm=False)
    graph = demp.trace(model, inputs)
    reader = next(slot for slot in graph.slots if (slot.tensor, slot.axis) == ("3.weight", 1))
    assert reader.classes.tolist() == [c for c in graph.layer("1").classes.tolist() for _ in range(36)]


def test_names_of_functional_and_repeated_activations():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 4)

        def forward(self, x):
            return F.relu(self.b(F.gelu(self.a(x))))

    model = Forward(
        lambda s, x: s.head(F.relu(s.two(F.relu(s.one(x))))), one=Inner(), two=Inner(), head=nn.Linear(4, 2)
    )
    graph = demp.trace(model, (torch.randn(2, 4),))
    assert [layer.name for layer in graph.layers] == ["one.gelu", "one.relu", "relu", "two.gelu", "two.relu", "relu#2"]
    assert [layer.activation for layer in graph.layers] == ["gelu", "relu", "relu", "gelu", "relu", "relu"]


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.Threshold(0.0, 0.0), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.LeakyReLU(), "leaky_relu"),
        (nn.PReLU(), "leaky_relu"),
        (nn.RReLU(), "leaky_relu"),
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu"),
        (nn.SiLU(), "silu"),
        (nn.SiLU(inplace=True), "silu"),
        (nn.Mish(), "mish"),
        (nn.Hardswish(), "hardswish"),
        (nn.ELU(), "elu"),
        (nn.CELU(), "elu"),
        (nn.SELU(), "elu"),
        (nn.Softplus(), "softplus"),
    ],
    ids=str,
)
def test_kinds_of_activation(module, kind):
    graph = demp.trace(nn.Sequential(nn.Linear(4, 5), module, nn.Linear(5, 2)), (torch.randn(2, 4),))
    assert [(layer.name, layer.activation, layer.width) for layer in graph.layers] == [("1", kind, 5)]
    assert graph.layers[0].removable.all()


def test_two_gates_of_one_product_are_coupled():
    model = Forward(
        lambda s, x: s.c(F.relu(s.a(x)) * F.silu(s.b(x))), a=nn.Linear(4, 5), b=nn.Linear(4, 5), c=nn.Linear(5, 2)
    )
    graph = demp.trace(model, (torch.randn(2, 4),))
    assert described(graph) == {"relu": ("relu", 5, ("silu",)), "silu": ("silu", 5, ("relu",))}
    assert graph.voters()[1:].tolist() == [2] * 5


def test_tied_tensors_have_one_name():
    model = Forward(lambda s, x: F.linear(F.relu(s.fc(x)), s.same.weight.t()), fc=nn.Linear(4, 5), same=nn.Linear(4, 5))
    model.same.weight = model.fc.weight
    graph = demp.trace(model, (torch.randn(2, 4),))
    assert graph.aliases == {"same.weight": "fc.weight"}
    assert graph.shapes == {"fc.weight": (5, 4), "fc.bias": (5,), "same.bias": (5,)}


def test_sizes_and_parameters_follow_what_is_gone():
    model, inputs = nets.plain(2, (5, 4))
    graph = demp.trace(model, inputs)
    names = {name for name, _ in model.named_parameters()}
    none = graph.none_removed()
    assert graph.at(none).shapes == {name: tuple(t.shape) for name, t in comparing.tensors_of(model).items()}
    assert graph.at(none).parameters(names) == sum(p.numel() for p in model.parameters())
    dead = killing.killed(model.double(), graph, 0.5)
    gone = killing.classes_of(graph, dead)
    demp.cut(model, dead, example_inputs=tuple(x.double() for x in inputs))
    assert graph.at(gone).shapes == {name: tuple(t.shape) for name, t in comparing.tensors_of(model).items()}
    assert graph.at(gone).parameters(names) == sum(p.numel() for p in model.parameters())
    assert graph.at(gone).neurons == graph.dense.neurons - sum(map(len, dead.values()))


def test_an_unknown_layer_is_named_with_a_suggestion():
    graph = demp.trace(nets.mlp(4, 8, 3), (torch.randn(2, 4),))
    with pytest.raises(demp.UsageError, match="no layer called '1.0' in the graph"):
        graph.layer("1.0")


def test_norms_know_who_feeds_them():
    model, inputs = nets.plain(2, (5,), end="mean")
    graph = demp.trace(model, inputs)
    found = {(norm.scale, norm.shift, norm.producer) for norm in graph.norms}
    assert ("1.weight", "1.bias", "0.weight") in found and (None, "0.bias", "0.weight") in found


def test_a_norm_over_a_join_or_a_flattened_axis_has_no_one_producer():
    model, inputs = nets.dense(layers=1)
    producers = {norm.scale: norm.producer for norm in demp.trace(model, inputs).norms if norm.scale}
    assert producers == {
        "layers.0.0.weight": "stem.weight",
        "layers.0.3.weight": "layers.0.2.weight",
        "norm.weight": None,
    }
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2))
    graph = demp.trace(model, (torch.randn(2, 2, 4),))
    assert [norm.producer for norm in graph.norms if norm.scale] == [None]
    assert graph.layer("3").width == 3 and graph.layer("3").removable.all()


def restrided(change):
    """Convolution, ReLU, something that writes steps in memory anew, and a head over channels."""

    def forward(self, x):
        return self.head(change(F.relu(self.conv(x))).flatten(1))

    torch.manual_seed(0)
    return Forward(forward, conv=nn.Conv2d(3, 6, 3), head=nn.Linear(6, 4)).double()


def test_pooling_to_one_pixel_keeps_channels_in_any_order_of_memory():
    model = restrided(lambda x: F.adaptive_avg_pool2d(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 1))
    assert min(cut_twice(model, (torch.randn(3, 3, 8, 8).double(),))) > 0


@pytest.mark.parametrize("strides", [lambda n: (1, n, n, n), lambda n: (0, 1, 1, 1), lambda n: (n, 1, 7, 7)])
def test_other_steps_in_memory_are_other_numbers(strides):
    def again(x):
        x = x.mean((2, 3), keepdim=True).clone()
        return x.as_strided_(x.shape, strides(x.shape[1]))

    graph = demp.trace(restrided(again), (torch.randn(6, 3, 8, 8).double(),))
    assert graph.removable() == (6 if strides(5) == (5, 1, 7, 7) else 0)
