"""A trace reads; nothing of the model, its inputs or the random state changes."""

from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from nets import Forward

X = (torch.randn(3, 2, 6, 6),)


def network() -> nn.Sequential:
    model, _ = nets.plain(2, (5, 4))
    model.append(nn.Dropout(0.5))
    return model


def test_nothing_of_the_model_changes():
    model = network().train()
    model[1].eval()
    model(*X).sum().backward()
    before, modes = comparing.state(model), [module.training for module in model.modules()]
    objects = [id(t) for t in (*model.parameters(), *model.buffers())]
    grads = [p.grad.clone() for p in model.parameters()]
    attributes = [dict(vars(module)) for module in model.modules()]
    random_state, inputs = torch.get_rng_state(), X[0].clone()
    demp.trace(model, X)
    assert comparing.same_state(before, model)
    assert modes == [module.training for module in model.modules()]
    assert objects == [id(t) for t in (*model.parameters(), *model.buffers())]
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert attributes == [dict(vars(module)) for module in model.modules()]
    assert torch.equal(random_state, torch.get_rng_state()) and torch.equal(inputs, X[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_module_with_two_names_keeps_its_parameters():
    model = Forward(lambda s, x: s.head(F.relu(s.fc(x))), fc=nn.Linear(4, 6), head=nn.Linear(6, 2))
    model.again = model.fc
    parameter, inputs = model.fc.weight, (torch.randn(2, 4),)
    for _ in range(2):
        graph = demp.trace(model, inputs)
        assert model.fc.weight is parameter and not parameter.is_meta and not graph.refused
    assert demp.cut(model, {"relu": [1]}, example_inputs=inputs, exact=False).removed == 1
    assert model.again.weight is parameter and parameter.shape == (5, 4)


def writes(how: str, eager: bool) -> nn.Module:
    """A forward that remembers something, as caches of masks and rotary embeddings do."""

    def forward(s, x):
        made = torch.linspace(0, 1, x.shape[1], device=x.device)
        if eager:
            float(x.sum())
        if how == "attribute":
            s.cache = made if getattr(s, "cache", None) is None else s.cache
            x = x + s.cache
        elif how == "dict":
            x = x + s.table.setdefault(x.shape[1], made)
        elif how == "list":
            s.seen.append(made)
            x = x + s.seen[0]
        else:
            s.register_buffer("late", made)
            x = x + s.late
        return s.head(F.relu(s.fc(x)))

    return Forward(forward, fc=nn.Linear(4, 6), head=nn.Linear(6, 2), table={}, seen=[])


@pytest.mark.parametrize("eager", [False, True], ids=["meta", "eager"])
@pytest.mark.parametrize("how", ["attribute", "dict", "list", "buffer"])
def test_what_a_forward_leaves_on_modules_is_taken_away(how, eager):
    model, inputs = writes(how, eager), (torch.randn(3, 4),)
    before = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    graph = demp.trace(model, inputs)
    assert graph.vehicle == ("eager" if eager else "meta") and graph.layers[0].removable.all()
    assert {name: value for name, value in vars(model).items() if not name.startswith("_")} == before
    assert model.table == {} and model.seen == [] and dict(model.named_buffers()) == {}
    model(*inputs)
    assert demp.cut(model, {"relu": [1]}, example_inputs=inputs, exact=False).removed == 1


@pytest.mark.parametrize("where", ["attribute", "list", "dict"])
def test_neurons_that_stay_on_a_module_are_refused(where):
    def forward(s, x):
        h = F.relu(s.fc(x))
        if where == "attribute":
            s.features = h
        elif where == "list":
            s.kept.append(h)
        else:
            s.table["features"] = h
        return s.head(F.relu(s.mix(h)))

    model = Forward(forward, fc=nn.Linear(4, 6), mix=nn.Linear(6, 5), head=nn.Linear(5, 2), kept=[], table={})
    graph = demp.trace(model, (torch.randn(3, 4),))
    assert [int(layer.removable.sum()) for layer in graph.layers] == [0, 5]
    assert graph.refused[0].reason == "kept on a module by the forward"


class Answer:
    """An output that is no container known to torch."""

    def __init__(self, logits, hidden):
        self.logits, self.inner = logits, {"hidden": hidden}


@pytest.mark.parametrize("wrap", [Answer, lambda a, b: [Answer(a, b)], lambda a, b: {"x": (a, Answer(b, b))}])
def test_neurons_inside_an_object_that_the_model_returns_are_output(wrap):
    model = Forward(lambda s, x: wrap(s.head(h := F.relu(s.fc(x))), h), fc=nn.Linear(4, 6), head=nn.Linear(6, 2))
    graph = demp.trace(model, (torch.randn(3, 4),))
    assert graph.refused[0].reason == "model output" and graph.refused[0].neurons == 6


def test_inputs_that_the_forward_writes_into():
    def forward(s, x):
        float(x.sum())
        x += 1.0
        return s.head(F.relu(s.fc(x)))

    model, inputs = Forward(forward, fc=nn.Linear(4, 6), head=nn.Linear(6, 2)), (torch.randn(3, 4),)
    before = inputs[0].clone()
    demp.trace(model, inputs)
    demp.cut(model, {"relu": [1]}, example_inputs=inputs, exact=False)
    assert torch.equal(before, inputs[0])


def test_a_forward_that_draws_random_numbers():
    model = Forward(
        lambda s, x: s.head(F.relu(s.fc(x + torch.rand(x.shape[1], device="cpu").to(x.device)))),
        fc=nn.Linear(4, 6),
        head=nn.Linear(6, 2),
    )
    random_state = torch.get_rng_state()
    assert demp.trace(model, (torch.randn(3, 4, generator=torch.Generator()),)).layers[0].removable.all()
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_the_surroundings_do_not_matter(surrounding):
    model = network()
    plain = demp.trace(model, X)
    with surrounding():
        graph = demp.trace(model, (X[0] + 1,))
    assert [(layer.name, layer.removable.tolist()) for layer in graph.layers] == [
        (layer.name, layer.removable.tolist()) for layer in plain.layers
    ]


def test_frozen_parameters_do_not_matter():
    model = nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 2)).requires_grad_(False)
    graph = demp.trace(model.eval(), (torch.randn(2, 3, 6),))
    assert [(layer.width, int(layer.removable.sum())) for layer in graph.layers] == [(8, 8)]
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_fused_attention_block_hides_no_neurons_from_a_probe():
    model, inputs = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0), (torch.randn(2, 3, 6),)
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, {"relu": [1, 4]})
    dead = (~demp.alive(model, [inputs])["relu"]).nonzero().flatten().tolist()
    assert {1, 4} <= set(dead)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.head(F.relu(s.fc(x + torch.ones(4, device="cpu")))),
        lambda s, x: s.head(F.relu(s.fc(x)) * s.plain[0]),
        lambda s, x: s.head(F.relu(s.fc(x * max(x.abs().max().item(), 1.0)))),
    ],
    ids=["a tensor on the cpu", "a tensor that is no buffer", "a value"],
)
def test_a_forward_that_needs_values_is_read_eagerly(function):
    model = Forward(function, fc=nn.Linear(4, 6), head=nn.Linear(6, 2), plain=[torch.ones(1)])
    graph = demp.trace(model, (torch.randn(3, 4),))
    assert graph.vehicle == "eager" and graph.layers[0].removable.all()


def test_hooks_of_the_user_run_and_count():
    """A hook that changes what flows is part of the model."""
    model = nets.mlp(4, 6, 3)
    model[1].register_forward_hook(lambda module, args, out: out.flip(1))
    graph = demp.trace(model, (torch.randn(3, 4),))
    assert "flip over the neuron axis" in graph.refused[0].reason
    assert len(model[1]._forward_hooks) == 1


def test_example_inputs_in_any_form():
    model = Forward(lambda s, x, scale=None: s.net(x if scale is None else x * scale), net=nets.mlp(4, 6, 3))
    x = torch.randn(3, 4)
    for inputs in ((x,), [x], x, {"x": x}, UserDict({"x": x}), (x, 2.0), {"x": x, "scale": torch.ones(4)}):
        assert demp.trace(model, inputs).layers[0].removable.all()


def test_inputs_that_do_not_fit():
    with pytest.raises(demp.TraceError, match=r"Sequential does not run on the example inputs \(shapes \[\(3, 5\)\]\)"):
        demp.trace(nets.mlp(4, 6, 3), (torch.randn(3, 5),))
    with pytest.raises(demp.TraceError, match="Pass example_inputs as a tuple"):
        demp.trace(nets.mlp(4, 6, 3), (torch.randn(3, 4), torch.randn(3, 4)))
    model = nets.mlp(4, 6, 3).train()
    with pytest.raises(demp.TraceError):
        demp.trace(model, ())
    assert model.training and all(p.device.type == "cpu" for p in model.parameters())


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = network()
    graph = demp.trace(model, (torch.empty(3, 2, 6, 6, device="meta"),))
    assert [layer.width for layer in graph.layers] == [5, 4, 6]


def test_a_model_without_activations():
    graph = demp.trace(nn.Linear(4, 2), (torch.randn(3, 4),))
    assert graph.layers == () and graph.slots == () and graph.dense.neurons == 0
    report = demp.cut(nn.Linear(4, 2), {}, example_inputs=(torch.randn(3, 4),))
    assert not report.happened
