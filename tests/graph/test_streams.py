"""Channels of a stream between RMS norms go like neurons, and everything else stays as it is."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
from demp.graph.calls import calls_to_plain
from demp.graph.stream_norms import normalized
from demp.surgery import record_of
from exactly import reasons, trained
from streaming import HIDDEN, NORMS, WIDTH, WORDS, Root, network, silence, words
from thinning import covering

STREAM = "stream"
TWICE = ("torch", "llama", "layer", "layer as a function")


@pytest.mark.parametrize("norm", NORMS)
def test_silent_channels_go(norm: str):
    model, x, longer = network(norm, bias=norm in ("torch", "layer")), words(), words(1, 9)
    for silent, left in (([1, 4, 5], 9), ([0, 8], 7))[: 2 if norm in TWICE else 1]:
        graph = demp.trace(model, (x,), streams=True)
        layer = graph.layer(STREAM)
        assert (layer.activation, layer.width, int(layer.removable.sum())) == (STREAM, len(layer.classes), layer.width)
        silence(model, silent)
        before, after = comparing.outputs(model, (longer,)), trained(model, (x,))
        report = demp.cut(model, {STREAM: silent}, example_inputs=(x,), graph=graph)
        assert report.removed == len(silent) and report.held == {}
        assert comparing.gap(before, comparing.outputs(model, (longer,))) < 1e-10
        assert comparing.gap(after, trained(model, (x,))) < 1e-10
        assert model.embed.weight.shape == (WORDS, left) and model.head.weight.shape == (WORDS, left)
        assert model.blocks[0].out.weight.shape == (left, WIDTH) and model.blocks[0].up.weight.shape == (HIDDEN, left)


@pytest.mark.parametrize("norm", ["torch", "llama", "layer"])
def test_a_cut_that_does_not_know_of_streams_keeps_their_norms(norm: str):
    model, x = narrow(norm, words()), words()
    plain = demp.trace(model, (x,))
    assert plain.removable() == 2 + HIDDEN and STREAM not in plain.index
    with torch.no_grad():
        model.blocks[0].up.weight[3] = 0
    before, planned = comparing.outputs(model, (x,)), calls_to_plain(model)
    assert demp.cut(model, {"blocks.0.silu": [3]}, example_inputs=(x,), graph=plain).removed == 1
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
    assert calls_to_plain(model) == planned


class Two(nn.Module):
    """Two streams of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = network("llama"), network("torch")

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def test_two_streams_lose_channels_of_their_own():
    model, x = Two(), words()
    graph = demp.trace(model, (x,), streams=True)
    assert [layer.name for layer in graph.layers if layer.activation == STREAM] == ["a.stream", "b.stream"]
    dead = {"a.stream": [2], "b.stream": [0, 5]}
    silence(model.a, dead["a.stream"])
    silence(model.b, dead["b.stream"])
    before = comparing.outputs(model, (x,))
    assert demp.cut(model, dead, example_inputs=(x,), graph=graph).removed == 3
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
    assert (model.a.embed.weight.shape[1], model.b.embed.weight.shape[1]) == (WIDTH - 1, WIDTH - 2)


@pytest.mark.parametrize("norm", ["torch", "gemma", "layer"])
def test_channels_heads_and_neurons_go_together(norm: str):
    model, x = network(norm, blocks=2, tied=True, bias=True), words()
    for seed in range(2):
        graph = demp.trace(model, (x,), streams=True)
        dead = killing.killed(model, graph, 0.3, seed)
        before, after = comparing.outputs(model, (x,)), trained(model, (x,))
        report = demp.cut(model, dead, example_inputs=(x,), graph=graph)
        assert report.removed == sum(map(len, dead.values())) and STREAM in dead
        assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10
        assert comparing.gap(after, trained(model, (x,))) < 1e-10


def test_a_second_head_that_does_not_run_says_nothing_of_the_stream():
    model, x = network("torch"), words()
    model.second = nn.Linear(WIDTH, 3)
    assert bool(demp.trace(model, (x,), streams=True).layer(STREAM).removable.all())


def test_tied_embeddings_shrink_once():
    model, x = network("llama", tied=True), words()
    silence(model, [2, 3])
    before = comparing.outputs(model, (x,))
    assert demp.cut(model, {STREAM: [2, 3]}, example_inputs=(x,), streams=True).removed == 2
    assert model.head.weight is model.embed.weight and model.embed.weight.shape == (WORDS, WIDTH - 2)
    assert comparing.gap(before, comparing.outputs(model, (x,))) < 1e-10


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
@pytest.mark.parametrize("norm", ["torch", "llama", "layer"])
def test_half_precision_loses_the_channels_of_single_precision(norm: str, how: str):
    """The weights are those that bfloat16 can hold, so that only rounding on the way differs."""
    model, x = network(norm, tied=False).bfloat16().float(), words()
    silence(model, [2, 3])
    wide = copy.deepcopy(model)
    half = model.bfloat16() if how == "bfloat16" else model
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        before = comparing.outputs(half, (x,))
        assert demp.cut(half, {STREAM: [2, 3]}, example_inputs=(x,), streams=True).removed == 2
        after = comparing.outputs(half, (x,))
    demp.cut(wide, {STREAM: [2, 3]}, example_inputs=(x,), streams=True)
    exact, rounding = comparing.outputs(wide, (x,)), 8 * torch.finfo(torch.bfloat16).eps
    for found in (before, after):
        for one, other in zip(found, exact, strict=True):
            assert float((one.float() - other).abs().max()) <= rounding * float(other.abs().max())
    assert all(torch.equal(a.float(), b) for a, b in zip(half.parameters(), wide.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_without_eps_keeps_that_of_the_type_it_computes_in(dtype: torch.dtype):
    """So small inputs that the eps decides."""
    torch.manual_seed(0)
    x = (1e-4 * torch.randn(3, 8)).to(dtype)
    x[:, [1, 6]] = 0
    norm = nn.RMSNorm(8, dtype=dtype)
    kept = torch.tensor([0, 2, 3, 4, 5, 7])
    found = normalized(x[:, kept], (x, (8,), norm.weight[kept], None), {}, 6, 6 / 8)
    expected = norm(x)[:, kept].detach()
    assert float((found - expected).detach().abs().max()) <= torch.finfo(dtype).eps * float(
        expected.detach().abs().max()
    )


class Gated(nn.Module):
    """A norm between factors of what it reads and makes: 0 is a channel that is not there."""

    def __init__(self, norm: nn.Module, factors: Tensor) -> None:
        super().__init__()
        self.norm, self.factors = norm, factors

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * self.factors) * self.factors


def gated(model: Any) -> tuple[Any, Tensor]:
    """A twin that keeps all channels, and the factors in front of its norms."""
    twin, factors = copy.deepcopy(model), torch.ones(WIDTH, dtype=torch.float64)
    for block in twin.blocks:
        block.norm1, block.norm2 = Gated(block.norm1, factors), Gated(block.norm2, factors)
    twin.norm = Gated(twin.norm, factors)
    return twin, factors


@pytest.mark.parametrize("norm", ["torch", "llama", "layer"])
def test_what_is_left_takes_the_steps_of_a_twin_that_keeps_all_channels(norm: str):
    model: Any = network(norm, bias=True)
    twin, factors = gated(model)
    steps = [torch.optim.AdamW(net.parameters(), lr=0.01) for net in (model, twin)]

    def step(seed: int) -> None:
        x = words(seed)
        for net, optimizer in zip((model, twin), steps, strict=True):
            F.cross_entropy(net(x).flatten(0, 1), x.roll(1, 1).flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()

    for at, (go, gone) in enumerate([([1, 4], [1, 4]), ([0, 3], [0, 5])]):  # the second in numbers of what is left
        step(2 * at)
        step(2 * at + 1)
        factors[gone] = 0
        options: Any = {"example_inputs": (words(9),), "optimizer": steps[0], "streams": True}
        assert demp.cut(model, {STREAM: go}, exact=False, **options).removed == 2
        step(9)
    record, names = record_of(model), [name for name, _ in model.named_parameters()]
    assert record is not None and model.embed.weight.shape == (WORDS, WIDTH - 4)
    for name, ours, theirs in zip(names, model.parameters(), twin.parameters(), strict=True):
        both = [(ours, theirs)]
        both += [(steps[0].state[ours][key], steps[1].state[theirs][key]) for key in ("exp_avg", "exp_avg_sq")]
        for mine, other in both:
            for axis in range(other.dim()):
                other = other.index_select(axis, record.kept.get((name, axis), torch.arange(other.shape[axis])))
            assert float((mine - other).detach().abs().max()) < 1e-10, name


@pytest.mark.parametrize("what", ["a bias", "the norms alone", "a layer norm's scale", "a layer norm's shift"])
def test_a_channel_that_is_not_zero_stays(what: str):
    """Also one that nothing reads, but that counts among the squares, and one of which a norm makes something else."""
    model, x = network("layer" if "layer" in what else "torch", bias=True), words()
    silence(model, [4])
    with torch.no_grad():
        if "layer" in what:
            norm = model.blocks[0].norm2
            (norm.weight if "scale" in what else norm.bias)[4] = 0.5
        elif what == "a bias":
            model.blocks[0].down.bias[4] = 0.5
        else:
            model.embed.weight[:, 4] = 1
            for module in model.modules():
                if isinstance(module, nn.RMSNorm):
                    module.weight[4] = 0
    before = comparing.state(model)
    with pytest.raises(demp.CutError, match="neurons of stream are not dead on the example inputs"):
        demp.cut(model, {STREAM: [4]}, example_inputs=(x,), streams=True)
    assert comparing.same_state(before, model) and calls_to_plain(model) == {}


def narrow(norm: str, x: Tensor) -> Any:
    model = network(norm).eval()
    silence(model, [1, 7, 8])
    assert demp.cut(model, {STREAM: [1, 7, 8]}, example_inputs=(x,), streams=True).removed == 3
    return model


TOOLS: dict[str, Callable[[Any, tuple[Any, ...]], Any]] = {
    "compile": lambda model, x: torch.compile(model, backend="eager", fullgraph=True),
    "export": lambda model, x: torch.export.export(model, x).module(),
    "trace": lambda model, x: torch.jit.trace(model, x),
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "copy": lambda model, x: copy.deepcopy(model),
    "pickle": lambda model, x: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("norm", "tool"), covering(("torch", "llama", "layer"), TOOLS))
@torch.no_grad()
def test_other_tools_run_the_norms_that_are_left(norm: str, tool: str):
    torch._dynamo.reset()
    x = words()
    model = narrow(norm, x)
    expected = model(x)
    assert float((TOOLS[tool](model, (x,))(x) - expected).abs().max()) < 1e-12


@pytest.mark.parametrize("norm", ["torch", "llama", "layer"])
@torch.no_grad()
def test_saved_and_loaded(norm: str, tmp_path: Path):
    x = words()
    model = narrow(norm, x)
    demp.save(model, tmp_path / "model", example_inputs=(x,))
    loaded = demp.load(lambda: network(norm), tmp_path / "model").eval()
    assert float((loaded(x) - model(x)).abs().max()) < 1e-12
    other = network(norm).eval()
    demp.load_state_dict(other, model.state_dict())
    assert float((other(x) - model(x)).abs().max()) < 1e-12


@pytest.mark.parametrize("norm", ["torch", "layer"])
def test_a_copy_goes_with_it(norm: str):
    model, x = network(norm), words()
    silence(model, [1])
    average = copy.deepcopy(model)
    with torch.no_grad():
        for p in average.parameters():
            p.mul_(0.9)
    before = comparing.outputs(average, (x,))
    report = demp.cut(model, {STREAM: [1]}, example_inputs=(x,), streams=True, copies=[average])
    assert report.copies["Streaming"] is not None and report.copies["Streaming"] < 1e-12
    assert comparing.gap(before, comparing.outputs(average, (x,))) < 1e-10
    assert average.embed.weight.shape == (WORDS, WIDTH - 1)


@pytest.mark.parametrize("norm", ["torch", "layer"])
def test_a_budget_takes_channels_of_a_stream(norm: str):
    model: Any = network(norm, tied=True, bias=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(words(),), total_steps=12, budget=demp.Budget(flops=0.75), streams=True,
        exclude=("blocks.*",), rounds=2,
    )  # fmt: skip
    for step in range(12):
        x = words(step)
        F.cross_entropy(model(x).flatten(0, 1), x.roll(1, 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    pruner.finish()
    assert model.embed.weight.shape[1] <= 9 and pruner.flops <= 0.75 * pruner.graph.dense.flops()
    drifts = [report.drift for report in pruner.history if report.removed]
    assert drifts and all(drift is not None and drift < 1e-10 for drift in drifts)


def test_a_pruner_removes_dead_channels_and_keeps_constant_ones():
    model: Any = network("llama", bias=True)
    silence(model, [4, 6, 9])
    with torch.no_grad():
        model.embed.weight[:, 9] = 0.7
    report = demp.cut(model, {STREAM: [9]}, example_inputs=(words(),), streams=True, constants=True)
    assert report.removed == 0 and "has no bias or norm that could take their constant" in report.held[STREAM]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = demp.DemP(
        model, optimizer, example_inputs=(words(),), total_steps=1, streams=True, batches=[words(1)], noise_on="off"
    )
    model(words()).sum().backward()
    optimizer.step()
    pruner.finish()
    assert model.embed.weight.shape == (WORDS, WIDTH - 2) and model.embed.weight[0, 7].item() == pytest.approx(0.7)


class Centred(Root):
    """A layer norm by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


class Noisy(Root):
    """Training adds noise to what the norm reads."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x) if self.training else x)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a layer norm without a scale": (
        lambda model: nn.LayerNorm(WIDTH, elementwise_affine=False),
        "layer_norm without a scale makes other numbers of zeros (at blocks.0.norm1)",
    ),
    "a layer norm over two axes": (
        lambda model: nn.LayerNorm([6, WIDTH]),
        "layer_norm over the neuron axis mixes neurons",
    ),
    "layer norm by hand": (
        lambda model: Centred(),
        "sub makes other numbers of zeros, as a layer norm's mean does (at blocks.0.norm1)",
    ),
    "noise in training": (lambda model: Noisy(), "(in the training forward)"),
    "one norm for two places": (lambda model: model.blocks[0].norm2, "mean over the neuron axis mixes neurons"),
    "two axes": (lambda model: nn.Sequential(nn.RMSNorm([6, WIDTH])), "mixes neurons"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_the_stream_stays(name: str):
    model, x = network("llama"), words()
    make, why = REFUSED[name]
    model.blocks[0].norm1 = make(model)
    graph = demp.trace(model.double(), (x,), streams=True)
    assert not bool(graph.layer(STREAM).removable.any()) and graph.removable() == 2 + HIDDEN
    assert any(refusal.name == STREAM and why in refusal.reason for refusal in graph.refused), reasons(graph)


def test_a_stream_that_leaves_the_model_stays():
    model, x = network("llama"), words()
    model.head = nn.Identity()
    graph = demp.trace(model, (x,), streams=True)
    assert "stream: model output" in reasons(graph) and not bool(graph.layer(STREAM).removable.any())


def test_streams_are_planned_and_so_need_joins():
    model, x = network("llama"), words()
    graph = demp.trace(model, (x,), streams=True, joins=False)
    assert "stream: mean over the neuron axis mixes neurons (at blocks.0.norm1)" in reasons(graph)
    assert not bool(graph.layer(STREAM).removable.any())


def test_inspection_shows_the_stream():
    row = next(r for r in demp.inspect(network("torch"), (words(),), streams=True).rows if r.layer == STREAM)
    assert (row.activation, row.width, row.removable, row.reason) == (STREAM, WIDTH, WIDTH, "")
    assert row.parameters == WIDTH * (2 * WORDS + 3 * WIDTH + WIDTH + 3 * HIDDEN + 3)
