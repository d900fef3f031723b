"""Code that depends on how many neurons there are, or treats each of them alone: offered, and cut exactly."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from demp.graph.calls import model_calls
from nets import Forward

WIDTH = 8
DRAW = torch.Generator().manual_seed(0)
IMAGE, TOKENS, ROWS = (torch.randn(*shape, generator=DRAW) for shape in ((2, 3, 6, 6), (2, 5, 6), (4, 6)))


class Given(Forward):
    """A forward of one input, as `torch.fx` needs it."""

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def conv(inputs: int = 3, outputs: int = WIDTH, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def on_map(function, reads: int = WIDTH, **parts) -> tuple[nn.Module, tuple]:
    """relu(bn(conv(x))) goes through ``function``, into a convolution with a norm and a linear layer."""

    def forward(s, x):
        h = function(s, F.relu(s.bn(s.conv(x))))
        return s.head(F.relu(s.next_bn(s.next(h))).mean((2, 3)))

    more = {"next": conv(reads, 6), "next_bn": nn.BatchNorm2d(6), "head": nn.Linear(6, 2)}
    return Given(forward, conv=conv(), bn=nn.BatchNorm2d(WIDTH), **more, **parts), (IMAGE,)


def on_rows(function, reads: int = WIDTH, **parts) -> tuple[nn.Module, tuple]:
    """relu(fc(x)) goes through ``function`` into a linear layer."""
    head = nn.Linear(reads, 2)
    return Given(lambda s, x: s.head(function(s, F.relu(s.fc(x)))), fc=nn.Linear(6, WIDTH), head=head, **parts), (ROWS,)


def halves(s, h):
    a, b = h.chunk(2, 1)
    return torch.cat([F.relu(s.one(a)), b, F.relu(s.two(b))], 1)


def sized(s, h):
    a, b = h.split((s.c, s.d), 1)
    return torch.cat([F.relu(s.one(a)), b], 1)


def sliced(s, h):
    return torch.cat([h[:, 5:], F.relu(s.one(h[:, :3])), h[:, 3:5]], 1)


def narrowed(s, h):
    return torch.cat([h.narrow(1, 4, 4), F.relu(s.one(h.narrow(1, 0, 4)))], 1)


def bottle2net(s, h):
    """Res2Net: every part but the first also sees what the part before became."""
    parts, done = h.split(s.c, 1), []
    for number, part in enumerate(parts):
        last = done[-1] + part if number > 1 else part
        done.append(F.relu(s.mix[number - 1](last)) if number else part)
    return torch.cat(done, 1)


def messages(s, h):
    """Messages along edges, summed at their targets, as torch_geometric does it."""
    source, target = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])
    sent = h[source]
    index = target.view(-1, 1).expand_as(sent)
    return h + h.new_zeros(h.shape).scatter_add_(0, index, sent)


def added(s, h):
    source, target = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])
    return h + torch.zeros(len(h), h.shape[1], dtype=h.dtype).index_add_(0, target, h[source])


def unpooled(s, h):
    small, where = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(small, where, 2)


def sampled(s, h):
    theta = torch.eye(2, 3, dtype=h.dtype).expand(len(h), 2, 3) * 0.9
    return F.grid_sample(h, F.affine_grid(theta, list(h.shape), align_corners=False), align_corners=False)


def spectrum(s, h):
    return torch.fft.irfft2(torch.fft.rfft2(h) * 0.5, s=h.shape[-2:])


def best(s, h):
    top = h.flatten(2).topk(3, 2)[0]
    return h + h.flatten(2).cummax(2)[0].view_as(h) + top.mean(2)[:, :, None, None]


def chosen(s, h):
    """Positions of a router, the same for all channels."""
    flat = h.flatten(2)
    where = torch.tensor([3, 1, 2]).view(1, 1, 3).expand(len(h), h.shape[1], 3)
    return h + flat.gather(2, where).sum(2)[:, :, None, None]


def attended(s, h):
    """Every channel is mixed over space, by weights that do not come from it."""
    weights = s.where.softmax(-1).expand(len(h), -1, -1)
    return torch.einsum("bcp,bpq->bcq", h.flatten(2), weights).view_as(h)


def cbam(s, h):
    h = h * torch.sigmoid(s.up(F.relu(s.down(h.mean((2, 3), keepdim=True)))))
    seen = torch.cat([h.mean(1, keepdim=True), torch.max(h, 1, keepdim=True)[0]], 1)
    return h * torch.sigmoid(s.where(seen))


def eca(s, h):
    y = s.mix(h.mean((2, 3))[:, None])
    return h * torch.sigmoid(y)[:, 0, :, None, None]


class RMS(nn.Module):
    """RMSNorm as language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def with_numbers(made: tuple[nn.Module, tuple], **numbers: int) -> tuple[nn.Module, tuple]:
    for name, number in numbers.items():
        setattr(made[0], name, number)
    return made


def mixes() -> nn.ModuleList:
    return nn.ModuleList(conv(2, 2) for _ in range(3))


CASES = {
    "chunk": lambda: on_map(halves, 12, one=conv(4, 4), two=conv(4, 4)),
    "split by attributes": lambda: with_numbers(on_map(sized, 9, one=conv(3, 4)), c=3, d=5),
    "split by a number": lambda: with_numbers(on_map(bottle2net, 8, mix=mixes()), c=2),
    "slices": lambda: on_map(sliced, 9, one=conv(3, 4)),
    "narrow": lambda: on_map(narrowed, 8, one=conv(4, 4)),
    "tensor_split": lambda: on_map(lambda s, h: torch.cat(h.tensor_split([3], 1)[::-1], 1)),
    "channel shuffle": lambda: on_map(lambda s, h: s.mix(h), mix=nn.ChannelShuffle(2)),
    "functional channel shuffle": lambda: on_map(lambda s, h: F.channel_shuffle(h, 4)),
    "maxout": lambda: on_rows(lambda s, h: h.view(-1, 4, 2).amax(2), 4),
    "hard-coded view": lambda: on_rows(lambda s, h: h.view(-1, WIDTH)),
    "a map out of a linear layer": lambda: (
        Forward(
            lambda s, x: s.head(F.relu(s.bn(s.fc(x).view(-1, 5, 2, 2))).mean((2, 3))),
            fc=nn.Linear(6, 20), bn=nn.BatchNorm2d(5), head=nn.Linear(5, 2),
        ),
        (ROWS,),
    ),
    "group norm": lambda: on_map(lambda s, h: F.silu(s.n(s.c(h))), n=nn.GroupNorm(4, WIDTH), c=conv(WIDTH, WIDTH)),
    "one group per channel": lambda: on_map(lambda s, h: s.n(h), n=nn.GroupNorm(WIDTH, WIDTH)),
    "pixel shuffle": lambda: on_map(lambda s, h: F.relu(s.c(F.pixel_shuffle(h, 2))), 4, c=conv(2, 4)),
    "pixel unshuffle": lambda: on_map(lambda s, h: F.pixel_unshuffle(h, 2), 32),
    "unfold and fold": lambda: on_map(lambda s, h: F.fold(F.unfold(h, 3, padding=1), (6, 6), 3, padding=1)),
    "circular padding": lambda: on_map(lambda s, h: F.pad(h, (1, 1, 1, 1), mode="circular")),
    "max unpool": lambda: on_map(unpooled),
    "grid sample": lambda: on_map(sampled),
    "Fourier transform over space": lambda: on_map(spectrum),
    "top k and cummax over space": lambda: on_map(best),
    "gather over space": lambda: on_map(chosen),
    "einsum over space": lambda: on_map(attended, where=nn.Parameter(torch.randn(1, 36, 36))),
    "messages by scatter_add": lambda: on_rows(messages),
    "messages by index_add": lambda: on_rows(added),
    "dense adjacency": lambda: (
        Forward(lambda s, x, a: s.head(a @ F.relu(s.fc(a @ x))), fc=nn.Linear(6, WIDTH), head=nn.Linear(WIDTH, 2)),
        (ROWS, torch.rand(4, 4)),
    ),
    "L2 norm": lambda: on_map(lambda s, h: F.normalize(h, dim=1)),
    "L1 norm": lambda: on_map(lambda s, h: h / (h.norm(1, dim=1, keepdim=True) + 1)),
    "mean over channels": lambda: on_map(lambda s, h: h * h.mean(1, keepdim=True)),
    "max over everything": lambda: on_map(lambda s, h: h / (1 + h.max())),
    "count of active neurons": lambda: on_map(lambda s, h: h * (h > 0).sum(1, keepdim=True)),
    "spatial attention": lambda: on_map(cbam, down=nn.Conv2d(8, 3, 1), up=nn.Conv2d(3, 8, 1), where=conv(2, 1)),
    "ECA": lambda: on_map(eca, mix=nn.Conv1d(1, 1, 3, padding=1)),
    "RMSNorm in steps": lambda: on_rows(lambda s, h: s.n(h), n=RMS(WIDTH)),
    **{
        f"into {kind.__name__}": lambda kind=kind: (
            Forward(
                lambda s, x: s.head(s.mix(F.relu(s.fc(x)))[0].mean(1)),
                fc=nn.Linear(6, 8), mix=kind(8, 4, 2, batch_first=True, bidirectional=True), head=nn.Linear(8, 2),
            ),
            (TOKENS,),
        )
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    },
    "into LSTMCell": lambda: on_rows(lambda s, h: s.mix(h)[0], 4, mix=nn.LSTMCell(WIDTH, 4)),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    return nets.settle(model), tuple(x.double() for x in inputs)


def in_training(model: nn.Module, inputs: tuple) -> list[Tensor]:
    """Outputs in training mode, and the gradients of what they add up to with respect to the inputs."""
    twin = copy.deepcopy(model).train()
    given = tuple(x.clone().requires_grad_() for x in inputs)
    out = twin(*given)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), given, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("name", CASES)
def test_neurons_go_exactly(name):
    model, inputs = made(name)
    for seed in range(2):
        graph = demp.trace(model, inputs)
        first = next(layer for layer in graph.layers if layer.reads)
        assert bool(first.removable.all()) and first.width > 1, graph.refused
        dead = killing.killed(model, graph, 0.4, seed)
        before, training = comparing.outputs(model, inputs), in_training(model, inputs)
        report = demp.cut(model, dead, example_inputs=inputs, graph=graph)
        assert report.removed == sum(map(len, dead.values())) or (report.removed and report.held)
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        assert comparing.gap(training, in_training(model, inputs)) < 1e-10


# Calls that a cut carries out ------------------------------------------------------------------------------

PLANNED = (
    "chunk",
    "split by attributes",
    "slices",
    "narrow",
    "hard-coded view",
    "mean over channels",
    "spatial attention",
)
ALONG = ("ECA", "channel shuffle")


def cut_once(name: str) -> tuple[nn.Module, tuple]:
    model, inputs = made(name)
    graph = demp.trace(model, inputs)
    first = next(layer.name for layer in graph.layers)
    dead = {first: [1, 2, 6]}
    killing.kill(model, graph, dead)
    assert demp.cut(model, dead, example_inputs=inputs, graph=graph).removed == 3
    assert model_calls(model)
    return model.eval(), inputs


def other_batches(inputs: tuple) -> list[tuple]:
    return [inputs, tuple(torch.randn(3, *x.shape[1:], dtype=x.dtype) for x in inputs)]


@pytest.mark.parametrize("name", [*PLANNED, *ALONG])
def test_torch_fx_reads_planned_calls(name):
    model, inputs = cut_once(name)
    traced = torch.fx.symbolic_trace(model)
    for x in other_batches(inputs):
        assert comparing.gap([model(*x).detach()], [traced(*x).detach()]) < 1e-12


def test_torch_fx_refuses_what_runs_along_the_channels():
    with pytest.raises(demp.UsageError, match="use torch.export"):
        torch.fx.symbolic_trace(cut_once("functional channel shuffle")[0])


@pytest.mark.parametrize("name", [*PLANNED, *ALONG])
def test_export_and_jit_trace_run_planned_calls(name):
    model, inputs = cut_once(name)
    wanted = model(*inputs).detach()
    assert comparing.gap([wanted], [torch.export.export(model, inputs).module()(*inputs).detach()]) < 1e-12
    assert comparing.gap([wanted], [torch.jit.trace(model, inputs)(*inputs).detach()]) < 1e-12


def test_a_slice_that_takes_all_that_is_left_is_still_planned():
    model, inputs = on_rows(lambda s, h: torch.cat([F.relu(s.one(h[:, 3:])), h[:, :3]], 1), 7, one=nn.Linear(5, 4))
    model, inputs = nets.settle(model), (inputs[0].double(),)
    for neurons, left in (([0, 1, 2], 5), ([1, 3], 3)):
        graph = demp.trace(model, inputs)
        killing.kill(model, graph, {"relu": neurons})
        before = comparing.outputs(model, inputs)
        report = demp.cut(model, {"relu": neurons}, example_inputs=inputs, graph=graph)
        assert report.removed == len(neurons) and model.one.in_features == left
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-12


@pytest.mark.parametrize("name", ["chunk", "ECA"])
def test_what_reads_source_is_refused(name):
    model, inputs = cut_once(name)
    with pytest.raises(demp.UsageError, match="other widths"):
        torch.jit.script(model)
    with pytest.raises(demp.ExportError, match="only a cut can carry out as planned"):
        demp.plain(model, inputs)


@pytest.mark.parametrize("name", [*PLANNED, *ALONG])
def test_copies_and_files_carry_planned_calls(name, tmp_path):
    model, inputs = cut_once(name)
    wanted = model(*inputs).detach()
    assert comparing.gap([wanted], [copy.deepcopy(model)(*inputs).detach()]) == 0.0
    demp.save(model, tmp_path / "model", example_inputs=inputs)
    loaded = demp.load(lambda: CASES[name]()[0].double(), tmp_path / "model").eval()
    assert comparing.gap([wanted], [loaded(*inputs).detach()]) == 0.0


@pytest.mark.parametrize("name", ["chunk", "mean over channels"])
def test_a_planned_call_that_does_not_run_raises(name):
    model, inputs = cut_once(name)
    model._function = lambda s, x: s.head(F.relu(s.conv(x)).mean((2, 3)))
    with pytest.raises(RuntimeError, match=r"did not run|shapes cannot"):
        model(*inputs)


@pytest.mark.parametrize("name", [*PLANNED, *ALONG])
def test_without_joins_nothing_is_planned(name):
    model, inputs = made(name)
    graph = demp.trace(model, inputs, joins=False)
    assert graph.calls == () and not bool(graph.layers[0].removable.any()) and graph.refused


def test_a_module_that_runs_twice_keeps_what_it_splits():
    def forward(s, x):
        return s.head(F.relu(s.part(s.part(F.relu(s.fc(x))))))

    def part(s, h):
        a, b = h.chunk(2, 1)
        return torch.cat([F.relu(s.one(a)), b], 1)

    inner = Forward(part, one=nn.Linear(4, 4))
    model = nets.settle(Forward(forward, fc=nn.Linear(6, 8), part=inner, head=nn.Linear(8, 2)))
    graph = demp.trace(model, (ROWS.double(),))
    assert graph.calls == () and graph.removable() == 0
    assert any("shrink unequally" in refusal.reason for refusal in graph.refused)


def test_training_that_splits_otherwise_keeps_the_neurons():
    def forward(s, x):
        h = F.relu(s.fc(x))
        a, b = h.split((3, 5) if s.training else (5, 3), 1)
        return s.head(torch.cat([h, F.relu(s.one(b if s.training else a))], 1))

    model = nets.settle(Forward(forward, fc=nn.Linear(6, 8), one=nn.Linear(5, 4), head=nn.Linear(12, 2)))
    graph = demp.trace(model, (ROWS.double(),))
    assert not bool(graph.layer("relu").removable.any())


def test_the_largest_of_channels_that_may_be_negative_keeps_them():
    def forward(s, h):
        return h * torch.sigmoid(s.where(F.silu(s.c(h)).amax(1, keepdim=True)))

    model, inputs = on_map(forward, c=conv(8, 5), where=conv(1, 1))
    graph = demp.trace(model, inputs)
    assert not bool(graph.layer("silu").removable.any()) and bool(graph.layer("relu").removable.all())


def test_positions_of_the_largest_channel_keep_them():
    model, inputs = on_map(lambda s, h: h * torch.max(h, 1, keepdim=True)[1])
    graph = demp.trace(model, inputs)
    assert not bool(graph.layer("relu").removable.any())


def test_numbers_written_into_memory_may_be_negative():
    def forward(s, h):
        h = h * 1.0
        h[:, :, 0] = -5.0
        return h * h.amax(1, keepdim=True)

    model, inputs = on_map(forward)
    assert not bool(demp.trace(model, inputs).layer("relu").removable.any())


def test_a_buffer_that_is_written_into_binds():
    def forward(s, h):
        buffer = torch.zeros(len(h), h.shape[1])
        buffer[:, :4] = torch.arange(4.0)
        return h + buffer

    model, inputs = on_rows(forward)
    assert not bool(demp.trace(model, inputs).layer("relu").removable.any())


def test_groups_that_no_module_holds_stay():
    model, inputs = on_map(lambda s, h: F.group_norm(h, 2))
    graph = demp.trace(model, inputs)
    assert not bool(graph.layer("relu").removable.any()) and "held by no module" in graph.refused[0].reason


def test_a_mean_counts_a_removed_neuron_as_the_zero_it_was():
    """By hand: three of eight neurons gone, the mean still divides by eight."""
    model, _ = cut_once("mean over channels")
    (plan,) = model_calls(model)[""].values()
    assert plan.width == 5 and plan.scale == 5 / 8


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_a_recurrent_layer_reads_is_judged_in_single_precision(kind):
    """There an LSTM is one operation, with its weights inside."""
    parts = {"fc": nn.Linear(6, 8), "mix": kind(8, 4, 2, batch_first=True), "head": nn.Linear(4, 2)}
    model = Forward(lambda s, x: s.head(s.mix(F.relu(s.fc(x)))[0]), **parts).eval()
    graph = demp.trace(model, (TOKENS,))
    killing.kill(model, graph, {"relu": [1, 4]})
    alive = demp.alive(model, [(TOKENS,)], graph=graph)["relu"]
    with torch.no_grad():
        seen = F.relu(model.fc(TOKENS)).flatten(0, 1).abs().amax(0) > 0
    assert alive.tolist() == seen.tolist() and not alive[1] and not alive[4]
    before = comparing.outputs(model, (TOKENS,))
    speaking = int(seen.nonzero()[0])
    spoken = demp.cut(copy.deepcopy(model), {"relu": [speaking, 1]}, example_inputs=(TOKENS,), exact=False)
    assert spoken.drift > 0 and spoken.difference < 1e-5
    constant = demp.cut(model, {"relu": [1, 4]}, example_inputs=(TOKENS,), constants=True)
    assert constant.removed == 2 and model.mix.input_size == 6
    assert comparing.gap(before, comparing.outputs(model, (TOKENS,))) < 1e-5


@pytest.mark.parametrize("name", ["mean over channels", "ECA", "max over everything"])
def test_what_a_call_reads_is_judged(name):
    """A neuron whose readers with weights see nothing of it may still speak in a sum over neurons."""
    model, inputs = made(name)
    graph = demp.trace(model, inputs)
    killing.kill(model, graph, {"relu": [2]})
    assert not demp.alive(model, [inputs], graph=graph)["relu"][2]
    with torch.no_grad():
        model.next.weight[:, 5] = 0.0  # nothing that has a weight notices
        assert demp.alive(model, [inputs], graph=graph)["relu"][5]
    report = demp.cut(model, {"relu": [5]}, example_inputs=inputs, exact=False)
    assert report.difference < 1e-10


def test_constants_stay_where_a_sum_reads_them():
    model, inputs = made("mean over channels")
    with torch.no_grad():
        model.bn.weight[3], model.bn.bias[3] = 0.0, 0.7
    report = demp.cut(model, {"relu": [3]}, example_inputs=inputs, constants=True)
    assert report.removed == 0 and "take their constant" in report.held["relu"]
