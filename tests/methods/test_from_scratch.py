"""The honest opponents: scaled widths and the shapes of another network, with the weights of a constructor."""

import copy
import math

import pytest
import torch
from torch import nn

import demp
from demp.errors import UsageError
from demp.pruner.initialization import draw_weights
from demp.train.models import build as build_model
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, build, examples, same, sgd, train


class Drawn(ResidualNet):
    """With a constructor's rule of its own, which depends on widths."""

    def __init__(self):
        super().__init__(stream=16, inner=24)
        self.reset_parameters()

    def reset_parameters(self):
        for module in self.children():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out")


def narrow(model, shape=IMAGE, **options):
    return demp.methods.create(
        "narrow", model, sgd(model), example_inputs=(examples(shape),), total_steps=10, **({"seed": 3} | options)
    )


@pytest.mark.parametrize("budget", ["flops=0.4", "parameters=0.3", "neurons=0.5", "flops=0.9,memory=0.5"])
@pytest.mark.parametrize("kind", [Drawn, lambda: Mlp(hidden=(80, 60)).double()])
def test_it_fits_and_every_width_is_scaled_alike(kind, budget):
    model = kind().double()
    shape = VECTOR if isinstance(model, Mlp) else IMAGE
    pruner = narrow(model, shape, budget=budget)
    graph, meter = pruner.graph, pruner._view.meter
    goals = meter.goals(pruner.config.budget)
    assert not meter.lack(goals, pruner.state.removed)
    shares = [int((~pruner.state.removed[layer.classes]).sum()) / layer.width for layer in graph.layers]
    assert max(shares) - min(shares) <= max(1 / layer.width for layer in graph.layers) + 1e-9
    assert max(meter.spent(name, pruner.state.removed) / goal for name, goal in goals.items()) > 0.9
    assert pruner.history[0].notes[0].startswith("all widths times 0.")
    assert train(model, *pruner.optimizers, shape, range(4)) and not pruner.finish().happened


def test_a_stream_keeps_one_width():
    pruner = narrow(Drawn().double(), budget="flops=0.5")
    first, second = (pruner.graph.layer(name) for name in ("stem_act", "act2"))
    assert torch.equal(pruner.state.removed[first.classes], pruner.state.removed[second.classes])


def test_weights_are_those_that_the_constructor_would_draw_at_these_widths():
    model = Drawn().double()
    pruner = narrow(model, budget="flops=0.5")
    twin = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(pruner.seed)
        twin.reset_parameters()
    assert same(model, twin)
    fan_out = model.conv1.weight[0, 0].numel() * model.conv1.weight.shape[0]
    assert model.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)


def test_the_stored_draw_is_a_function_of_the_seed_and_leaves_the_random_state():
    one, two, other = (Drawn() for _ in range(3))
    state = torch.get_rng_state()
    draw_weights(one, 5)
    draw_weights(two, 5)
    draw_weights(other, 6)
    assert same(one, two) and not same(one, other) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16", "mlp", "vit_tiny"])
def test_the_trainers_models_are_drawn_as_they_are_built(name):
    if name == "vit_tiny":
        arguments = {"name": "vit_b_16", "width": 0.1, "image_size": 32, "num_classes": 10, "in_channels": 3}
    else:
        arguments = {"name": name, "width": 0.1, "image_size": 32, "num_classes": 10, "in_channels": 3}
    model = build_model(**arguments, activation=None)
    dirty = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in [*dirty.parameters(), *dirty.buffers()]:
            tensor.fill_(7)
    draw_weights(dirty, 0)
    for (key, mine), theirs in zip(dirty.state_dict().items(), model.state_dict().values(), strict=True):
        assert mine.shape == theirs.shape
        if theirs.numel() > 500:
            assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.2, abs=1e-6), key
        elif theirs.unique().numel() == 1:
            assert torch.equal(mine, theirs), key


def test_a_model_that_cannot_be_drawn_anew_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 6))
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            return self.head(torch.relu(x @ self.weight.t()))

    model = build(Bare)
    before = copy.deepcopy(model)
    with pytest.raises(UsageError, match=r"the model \(Bare\) holds weight and has no reset_parameters"):
        draw_weights(model, 0)
    assert same(model, before)


def shrunk(tmp_path, budget="flops=0.4"):
    """A network that DemP made, saved."""
    model = build(ResidualNet, stream=16, inner=24)
    optimizer = sgd(model)
    pruner = demp.DemP(model, optimizer, example_inputs=(examples(IMAGE),), total_steps=30, budget=budget)
    train(model, optimizer, IMAGE, range(30))
    pruner.finish()
    demp.save(model, tmp_path / "small", example_inputs=(examples(IMAGE),))
    return model, pruner, tmp_path / "small"


def twin_of(path, kind=ResidualNet, **options):
    model = build(kind, **({"stream": 16, "inner": 24} | options)) if kind is ResidualNet else build(kind)
    optimizer = sgd(model)
    pruner = demp.methods.create(
        "twin", model, optimizer, example_inputs=(examples(IMAGE),), total_steps=30, like=str(path), seed=1
    )
    return model, optimizer, pruner


def test_a_twin_has_the_same_shapes_and_other_weights(tmp_path):
    shrunken, pruner, path = shrunk(tmp_path)
    model, optimizer, twin = twin_of(path)
    assert torch.equal(twin.state.removed, pruner.state.removed)
    assert [p.shape for p in model.parameters()] == [p.shape for p in shrunken.parameters()]
    assert not same(model, shrunken)
    x = examples(IMAGE, seed=4)
    model.load_state_dict(shrunken.state_dict())
    assert torch.equal(model.eval()(x), shrunken.eval()(x)), "the sums of the stream pair the same channels"
    train(model.train(), optimizer, IMAGE, range(3))
    assert not twin.finish().happened


def test_a_twin_of_a_network_that_was_never_cut(tmp_path):
    model = build(ResidualNet, stream=16, inner=24)
    demp.save(model, tmp_path / "whole", example_inputs=(examples(IMAGE),))
    _, _, twin = twin_of(tmp_path / "whole")
    assert not twin.state.removed.any()


def test_refused_twins(tmp_path):
    _, _, path = shrunk(tmp_path)
    with pytest.raises(UsageError, match="was made from another dense network"):
        twin_of(path, stream=12)
    with pytest.raises(UsageError, match="whose twin"):
        twin_of("")
    with pytest.raises(demp.ArtifactError, match="is missing"):
        twin_of(tmp_path / "nothing")
    with pytest.raises(UsageError, match="takes no budget"):
        demp.methods.create(
            "twin", build(PlainNet), None, example_inputs=(examples(IMAGE),), total_steps=3, budget="flops=0.5",
            like=str(path),
        )  # fmt: skip
