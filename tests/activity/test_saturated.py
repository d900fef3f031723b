"""Who is saturated: the criterion against its words, over batches, positions and read points."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
import nets
from demp.activity import Criterion, Window, probe, ranked
from demp.activity.tally import Tally
from demp.errors import UsageError

SATURATED = Criterion(kind="saturated")


def judged(model: nn.Module, batches, criterion: Criterion = SATURATED, **options):
    graph = demp.trace(model, batches[0])
    return probe(model, graph.dense, batches, criterion, **options)


class Given(nn.Module):
    """A linear reader of the inputs themselves, as the neurons of an identity-like layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.make, self.act, self.read = nn.Linear(width, width, bias=False), nn.SiLU(), nn.Linear(width, 2)
        with torch.no_grad():
            self.make.weight.copy_(torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.act(self.make(x)))


@pytest.mark.parametrize("eps", [None, 0.0, 0.5, 1.0])
def test_the_criterion_is_its_words(eps):
    x = torch.randn(40, 6, dtype=torch.float64) * torch.tensor([1.0, 0.02, 0.5, 0.0, 0.0, 3.0]) + 0.3
    x[:, 4] = 0.0
    model = Given(6).double()
    values = F.silu(x)
    deviation = values.std(0, correction=0)
    detection = judged(model, [(x[:10],), (x[10:],)], Criterion(kind="saturated", eps=eps))
    limit = (0.1 if eps is None else eps) * deviation.mean()
    assert detection.dead["act"].tolist() == [bool(s <= limit or s == 0) for s in deviation]
    torch.testing.assert_close(detection.means["act"], values.mean(0))
    torch.testing.assert_close(detection.deviations["act"], deviation / deviation.mean())
    assert detection.saturated("act").tolist() == [bool(detection.dead["act"][j]) and j != 4 for j in range(6)]


def test_positions_count_like_examples():
    model, inputs = nets.plain(widths=(4,), pool="none", end="mean", norm=False)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, 2.0
    values = model[1](model[0](inputs[0])).movedim(1, 0).flatten(1).double()
    detection = judged(model, [inputs])
    # the mean over positions is what the linear layer reads, so that only spread over examples is left there
    pooled = values.view(4, 3, -1).mean(2)
    torch.testing.assert_close(detection.means["1"], pooled.mean(1), rtol=1e-5, atol=1e-6)
    assert detection.dead["1"].tolist()[1] and detection.deviations["1"][1] < 1e-6


def test_flat_in_each_batch_at_another_constant_is_not_saturated():
    x = torch.zeros(2, 8, 3, dtype=torch.float64)
    x[0, :, 0], x[1, :, 0] = 1.0, 2.0
    x[:, :, 1] = torch.randn(2, 8, dtype=torch.float64)
    model = Given(3).double()
    both = judged(model, [(x[0],), (x[1],)], until_settled=True)
    assert both.batches == 2, "moments need every batch, although only the third neuron is left after the second"
    assert both.dead["act"].tolist() == [False, False, True]
    assert judged(model, [(x[0],)]).dead["act"].tolist() == [True, False, True]


def test_a_neuron_must_be_flat_at_every_read():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.act, self.a, self.b = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.make(x))
            return self.a(y) + self.b(y * x.sum(1, keepdim=True))

    model = Two().double()
    with torch.no_grad():
        model.make.weight[2], model.make.bias[2] = 0.0, 1.0
        model.make.weight[3], model.make.bias[3] = 0.0, -1.0
    detection = judged(model, [(torch.randn(30, 3, dtype=torch.float64),)])
    assert detection.dead["act"].tolist() == [False, False, False, True]
    assert detection.deviations["act"][2] > 0.5


def test_a_nan_keeps_its_neuron_and_no_other():
    x = torch.randn(10, 4)
    x[:, 1] = x[:, 2] = 0.7
    x[3, 1] = math.nan
    graph = demp.trace(Given(4), (x,))
    tally = Tally(graph.dense, SATURATED)
    tally.add(graph.reads[0], x, 1)
    assert tally.detect()["act"].tolist() == [False, False, True, False]


def test_ranks_of_neurons_are_those_of_the_layer_where_they_deviate_most():
    model, inputs = nets.residual((4, 4))
    graph = demp.trace(model, inputs, joins=False)
    deviations = {layer.name: torch.rand(layer.width, dtype=torch.float64) for layer in graph.layers[:-1]}
    rank = ranked(graph, deviations)
    for c in range(1, graph.classes):
        mine = [deviations[layer.name][i] for layer in graph.layers if layer.name in deviations
                for i, other in enumerate(layer.classes.tolist()) if other == c]  # fmt: skip
        assert rank[c].isnan() if not mine else rank[c] == max(mine)


def test_dead_is_the_special_case():
    model, inputs = nets.mlp(4, 6, 3), (torch.randn(9, 4),)
    with torch.no_grad():
        model[0].weight[[1, 3]], model[0].bias[1], model[0].bias[3] = 0.0, -1.0, 2.0
    detection = judged(model, [inputs])
    assert detection.dead["1"].tolist() == [False, True, False, True, False, False]
    assert detection.saturated("1").tolist() == [False, False, False, True, False, False]
    exact = judged(model, [inputs], Criterion(kind="exact"))
    assert exact.dead["1"].tolist() == [False, True, *[False] * 4] and exact.means == {}
    assert not bool(exact.saturated("1").any())


def window_over(model: nn.Module, batches, window: Window | None = None) -> Window:
    if window is None:
        graph = demp.trace(model, batches[0])
        window = Window(model, graph, SATURATED)
        window.open(graph.dense)
    model.train()
    for batch in batches:
        model(*batch)
    return window


def test_a_window_sees_what_a_probe_sees_and_resumes_to_the_bit():
    torch.manual_seed(0)
    model, _ = nets.plain(norm=False)
    with torch.no_grad():
        model[0].weight[3] *= 1e-3
        model[0].bias[3] = 1.0
    batches = [(torch.randn(3, 2, 6, 6),) for _ in range(4)]
    whole = window_over(model, batches).detect()
    probed = judged(model, batches)
    assert probed.dead["1"].tolist() == [False, False, False, True, False]
    first = window_over(model, batches[:2])
    state = first.state_dict()
    first.close()
    resumed = Window(model, demp.trace(model, batches[0]), SATURATED)
    resumed.open(demp.trace(model, batches[0]).dense)
    resumed.load_state_dict(state)
    again = window_over(model, batches[2:], resumed).detect()
    for name, flags in probed.dead.items():
        assert torch.equal(whole.dead[name], flags) and torch.equal(again.dead[name], flags)
        for values in ("means", "deviations"):
            assert torch.equal(getattr(whole, values)[name], getattr(again, values)[name])
            torch.testing.assert_close(getattr(whole, values)[name], getattr(probed, values)[name])


def test_ranks_together_are_one_process_on_all_examples():
    model = Given(5).double()
    x = torch.randn(60, 5, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 1.0, 0.0, 2.0]) + 0.5
    graph = demp.trace(model, (x,))
    parts = []
    for piece in x.split([10, 30, 20]):
        parts.append(probe(model, graph.dense, [(piece,)], SATURATED).tallies[0])
    together = [part.joined([other.state_dict() for other in parts]).flatness()["act"] for part in parts]
    alone = probe(model, graph.dense, [(x,)], SATURATED)
    for found in together:
        assert torch.equal(found.mean, together[0].mean) and torch.equal(found.deviation, together[0].deviation)
        torch.testing.assert_close(found.deviation, alone.deviations["act"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eps", [-0.1, math.nan])
def test_nonsense_is_refused(eps):
    with pytest.raises(UsageError, match="criterion eps is"):
        Criterion(kind="saturated", eps=eps)
