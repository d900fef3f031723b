"""What demp must not touch is refused with a reason, and a cut that asks for it changes nothing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import comparing
import demp
import killing
import nets
from nets import Forward

IMAGE = (torch.randn(2, 3, 4, 4),)
VECTOR = (torch.randn(3, 6),)
TOKENS = (torch.randn(2, 5, 6),)
WIDTH = 8


def conv(inputs: int = 3, outputs: int = WIDTH, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def on_image(function, **parts) -> tuple[nn.Module, tuple]:
    """relu(conv(x)) goes through ``function``; a linear layer reads its spatial mean."""

    def forward(self, x):
        return self.head(function(self, F.relu(self.conv(x))).mean((2, 3)))

    parts.setdefault("head", nn.Linear(WIDTH, 2))
    return Forward(forward, conv=conv(), **parts), IMAGE


def on_vector(function, **parts) -> tuple[nn.Module, tuple]:
    """relu(fc(x)) goes through ``function`` into a linear layer."""

    def forward(self, x):
        return self.head(function(self, F.relu(self.fc(x))))

    parts.setdefault("head", nn.Linear(WIDTH, 2))
    return Forward(forward, fc=nn.Linear(6, WIDTH), **parts), VECTOR


class Doubled(torch.autograd.Function):
    """A custom function that numpy computes: nothing shows where its neurons went."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy() * 2.0)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2.0


def order(n: int) -> torch.Tensor:
    return torch.arange(n).flip(0)


def slices(self, h):
    buffer = torch.zeros(h.shape[0], 2 * WIDTH, dtype=h.dtype)
    buffer[:, :WIDTH] = h
    buffer[:, WIDTH:] = h
    return buffer


def unbound(self, h):
    return torch.stack(h.unbind(1), 1)


CASES = {
    "layer norm": (on_vector(lambda s, h: s.norm(h), norm=nn.LayerNorm(WIDTH)), "layer_norm over the neuron axis"),
    "rms norm": (on_vector(lambda s, h: s.norm(h), norm=nn.RMSNorm(WIDTH)), "over the neuron axis"),
    "group norm of a written number": (on_image(lambda s, h: F.group_norm(h, 2)), "held by no module"),
    "local response norm": (on_image(lambda s, h: s.norm(h), norm=nn.LocalResponseNorm(3)), "neuron axis"),
    "softmax over channels": (on_image(lambda s, h: h.softmax(1)), "softmax over the neuron axis"),
    "log-softmax over channels": (on_vector(lambda s, h: h.log_softmax(1)), "softmax over the neuron axis"),
    "smallest channel": (on_vector(lambda s, h: h - h.amin(1, keepdim=True)), "amin over the neuron axis"),
    "largest of what may be negative": (on_vector(lambda s, h: h / (1 + (h - 1).amax(1, keepdim=True))), "amax over"),
    "sum before any activation": (
        (
            Forward(
                lambda s, x: s.head(F.relu(h := s.fc(x)) * h.sum(1, keepdim=True)),
                fc=nn.Linear(6, WIDTH),
                head=nn.Linear(WIDTH, 2),
            ),
            VECTOR,
        ),
        "read before any activation (by a sum over neurons",
    ),
    "hard-coded groups": (
        on_image(lambda s, h: F.conv2d(h, s.mix.weight, groups=WIDTH), mix=nn.Conv2d(1, WIDTH, 1)),
        "written into it",
    ),
    "slices into a buffer": (on_vector(slices, head=nn.Linear(2 * WIDTH, 2)), "no neurons on this axis"),
    "every second neuron": (on_vector(lambda s, h: h[:, ::2], head=nn.Linear(4, 2)), "shrink unequally"),
    "a neuron picked": (on_vector(lambda s, h: h[:, 2:3] + h[:, 3].unsqueeze(1), head=nn.Linear(1, 2)), "neuron"),
    "neurons unbound": (on_vector(unbound), "unbind picks single neurons"),
    "flip": (on_vector(lambda s, h: h.flip(1)), "flip over the neuron axis"),
    "roll": (on_vector(lambda s, h: h.roll(1, 1)), "roll over the neuron axis"),
    "roll of everything": (on_image(lambda s, h: h.roll(1)), "roll over the neuron axis"),
    "cumulative sum": (on_vector(lambda s, h: h.cumsum(1)), "cumsum over the neuron axis"),
    "sort": (on_vector(lambda s, h: h.sort(1)[0]), "sort over the neuron axis"),
    "top k": (on_vector(lambda s, h: h.topk(3, 1)[0], head=nn.Linear(3, 2)), "topk over the neuron axis"),
    "index select": (on_vector(lambda s, h: h.index_select(1, order(WIDTH).to(h.device))), "index_select"),
    "fancy index": (on_vector(lambda s, h: h[:, order(WIDTH).to(h.device)]), "index picks neurons"),
    "gather": (on_vector(lambda s, h: h.gather(1, order(WIDTH).to(h.device).expand_as(h))), "gather picks neurons"),
    "singular values": (on_vector(lambda s, h: h * torch.linalg.svdvals(h).sum()), "_linalg_svd"),
    "fourier transform": (on_vector(lambda s, h: torch.fft.fft(h, dim=1).abs()), "_fft"),
    "gram matrix": (on_vector(lambda s, h: h * (h @ h.t()).sum()), "product of two activations"),
    "bilinear": (on_vector(lambda s, h: s.pair(h, h), pair=nn.Bilinear(WIDTH, WIDTH, WIDTH)), "_trilinear"),
    "added to the input": (
        (Forward(lambda s, x: s.head(F.relu(s.fc(x)) + x), fc=nn.Linear(6, 6), head=nn.Linear(6, 2)), VECTOR),
        "no neurons on this axis",
    ),
    "attention between two kinds of neurons": (
        (
            Forward(
                lambda s, x: s.head((lambda h: s.mix(h, x, x)[0])(F.relu(s.fc(x)))),
                fc=nn.Linear(6, WIDTH),
                mix=nn.MultiheadAttention(WIDTH, 2, batch_first=True, kdim=6, vdim=6),
                head=nn.Linear(WIDTH, 2),
            ),
            TOKENS,
        ),
        "written into it",
    ),
    "model output": (
        (Forward(lambda s, x: F.relu(s.fc(x)), fc=nn.Linear(6, WIDTH)), VECTOR),
        "model output",
    ),
    "hidden layer in the output": (
        (
            Forward(
                lambda s, x: {"out": s.head(h := F.relu(s.fc(x))), "hidden": [h]},
                fc=nn.Linear(6, WIDTH),
                head=nn.Linear(WIDTH, 2),
            ),
            VECTOR,
        ),
        "model output",
    ),
    "weight-normed reader": (
        (Forward(lambda s, x: s.head(F.relu(s.fc(x))), fc=nn.Linear(6, 8), head=weight_norm(nn.Linear(8, 2))), VECTOR),
        "computed in the forward",
    ),
    "numpy": (on_vector(lambda s, h: torch.from_numpy(h.detach().numpy() ** 2)), "values leave torch by numpy"),
    "custom function": (on_vector(lambda s, h: Doubled.apply(h)), "values leave torch by numpy"),
    "no reader": (
        (
            Forward(
                lambda s, x: s.head(F.relu(s.fc(x))) + 0 * len(F.relu(s.lost(x))),
                fc=nn.Linear(6, 4),
                lost=nn.Linear(6, 4),
                head=nn.Linear(4, 2),
            ),
            VECTOR,
        ),
        "no contraction reads this layer",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_a_reason(case):
    (model, inputs), reason = CASES[case]
    nets.settle(model)
    inputs = tuple(x.double() for x in inputs)
    graph = demp.trace(model, inputs)
    named = {refusal.name: refusal.reason for refusal in graph.refused}
    refused = [layer for layer in graph.layers if not bool(layer.removable.any())]
    assert refused
    for layer in refused:
        assert named[layer.name]
    assert any(reason in text for text in named.values()), named

    before, out = comparing.state(model), comparing.outputs(model, inputs)
    report = demp.cut(model, {layer.name: range(layer.width) for layer in refused}, example_inputs=inputs)
    assert not report.happened and comparing.same_state(before, model)
    assert comparing.gap(out, comparing.outputs(model, inputs)) == 0.0


@pytest.mark.parametrize(
    "model",
    [
        Forward(lambda s, x: s.head(F.relu(s.fc(x))), fc=weight_norm(nn.Linear(6, 8)), head=nn.Linear(8, 2)),
        Forward(lambda s, x: s.head(F.relu(s.fc(x))), fc=spectral_norm(nn.Linear(6, 8)), head=nn.Linear(8, 2)),
        Forward(lambda s, x: s.head(F.relu(F.linear(x, s.fc.weight.exp()))), fc=nn.Linear(6, 8), head=nn.Linear(8, 2)),
    ],
    ids=["weight norm", "spectral norm", "exponentials"],
)
def test_neurons_of_a_computed_weight_are_none(model):
    nets.settle(model)
    inputs = (VECTOR[0].double(),)
    graph = demp.trace(model, inputs)
    assert not any(bool(layer.removable.any()) for layer in graph.layers)
    assert graph.slots == ()


def test_embedding_rows_stay_and_its_features_are_read_bare():
    model = Forward(
        lambda s, t: s.head(F.relu(s.fc(s.table(t)))),
        table=nn.Embedding(10, 4),
        fc=nn.Linear(4, 6),
        head=nn.Linear(6, 2),
    )
    graph = demp.trace(nets.settle(model), (torch.randint(0, 10, (2, 3)),))
    assert [layer.width for layer in graph.layers] == [6] and graph.layers[0].removable.all()
    assert "table.weight" not in {slot.tensor for slot in graph.slots}


def test_read_before_activation_is_named():
    model = Forward(
        lambda s, x: s.head(F.relu(h := s.fc(x))) + s.skip(h),
        fc=nn.Linear(6, 8),
        head=nn.Linear(8, 2),
        skip=nn.Linear(8, 2),
    )
    graph = demp.trace(model, VECTOR)
    assert graph.refused[0].reason == "read before any activation (by skip.weight)"
    assert not graph.layers[0].removable.any()


def test_only_what_cannot_go_is_refused():
    """A refused branch next to a free one in a join leaves the free one alone."""

    def forward(s, x):
        a, b = F.relu(s.one(x)), F.relu(s.two(x))
        return s.head(F.relu(torch.cat([a, b], 1))) + a.var(1, keepdim=True)

    model = Forward(forward, one=nn.Linear(6, 3), two=nn.Linear(6, 4), head=nn.Linear(7, 2))
    graph = demp.trace(model, VECTOR)
    assert {layer.name: int(layer.removable.sum()) for layer in graph.layers} == {"relu": 0, "relu#2": 4, "relu#3": 4}
    assert {(r.name, r.neurons) for r in graph.refused} == {("relu", 3), ("relu#3", 3)}


def test_some_hard_coded_widths_do_not_refuse_the_rest():
    def forward(s, x):
        h = F.relu(s.one(x))
        h = F.relu(s.two(h)).view(size=(-1, 5))  # numbers by keyword are not planned
        return s.head(F.relu(s.three(h)))

    model = Forward(forward, one=nn.Linear(6, 4), two=nn.Linear(4, 5), three=nn.Linear(5, 7), head=nn.Linear(7, 2))
    graph = demp.trace(model, VECTOR)
    assert [int(layer.removable.sum()) for layer in graph.layers] == [4, 0, 7]


def test_a_head_that_only_trains_keeps_its_input():
    """The evaluation forward does not show what an auxiliary head reads."""

    def forward(s, x):
        h = F.relu(s.one(x))
        out = s.head(F.relu(s.two(h)))
        return (out, s.aux(h)) if s.training else out

    parts = {"one": nn.Linear(6, 5), "two": nn.Linear(5, 4), "head": nn.Linear(4, 2), "aux": nn.Linear(5, 2)}
    model = nets.settle(Forward(forward, **parts))
    inputs = (VECTOR[0].double(),)
    graph = demp.trace(model, inputs)
    assert [int(layer.removable.sum()) for layer in graph.layers] == [0, 4]
    assert "training forward" in graph.refused[0].reason
    dead = killing.killed(model, graph, 0.6)
    assert demp.cut(model, dead, example_inputs=inputs).happened
    model.train()
    assert [tuple(out.shape) for out in model(*inputs)] == [(3, 2), (3, 2)]


def test_a_weight_that_training_uses_before_the_activation_too_keeps_its_input():
    def forward(s, x):
        before = s.one(x)
        out = s.two(F.relu(before))
        return (out, s.two(before)) if s.training else out

    model = nets.settle(Forward(forward, one=nn.Linear(6, 5), two=nn.Linear(5, 4)))
    graph = demp.trace(model, (VECTOR[0].double(),))
    assert graph.removable() == 0 and "without the activation" in graph.refused[0].reason


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_model_that_is_a_recurrent_layer_outputs_its_hidden_units(cell):
    with pytest.raises(demp.UsageError, match=f"^{cell.__name__} has no layer .*: model output"):
        demp.DemP(cell(6, 4), None, example_inputs=TOKENS, total_steps=1)


def test_widths_that_one_takes_from_anothers_shape_follow_a_cut_of_either():
    """Rehearsed with as many gone on both sides the view would fit as it is written; in a run it does not."""

    def forward(s, x):
        h = F.relu(s.fc(x))
        return s.head(F.relu(s.mix(h)).flatten(1).view(h.shape))

    for dead in ({"relu": [0, 1, 2]}, {"relu#2": [5]}, {"relu": [0, 4], "relu#2": [1, 2, 3]}):
        model = Forward(forward, fc=nn.Linear(6, WIDTH), mix=nn.Linear(WIDTH, WIDTH), head=nn.Linear(WIDTH, 2))
        model, inputs = model.double(), (VECTOR[0].double(),)
        graph = demp.trace(model, inputs)
        assert graph.removable() == 2 * WIDTH
        killing.kill(model, graph, dead)
        before = comparing.outputs(model, inputs)
        assert demp.cut(model, dead, example_inputs=inputs).removed == sum(map(len, dead.values()))
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
