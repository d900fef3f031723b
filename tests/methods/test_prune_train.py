"""PruneTrain agrees with a literal loop; its strength, and what it removes of residual streams."""

import copy
import math

import pytest
import torch
from penalty_reference import MAKES, OWNS, WEIGHTS, Twin, plain, run_both
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from demp.methods import create
from demp.methods.prune_train import PruneTrain, PruneTrainConfig, small, unread
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, batch_at, build, examples, loss_of, train

STEPS = 24
PAIRS = [batch_at(500, IMAGE), batch_at(501, IMAGE)]


def prune_train(model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> demp.Pruner:
    given = {"example_inputs": (examples(IMAGE),), "total_steps": STEPS, "period": 4} | options
    return create("prune-train", model, optimizer, **given)


def groups(twin: Twin) -> list[Tensor]:
    """Every output and input channel of every weight that is there and may go, as one tensor each."""
    found = []
    for name, owned in OWNS.items():
        for i in twin.left(name):
            found += [twin.slices(name, tensor, i) for tensor, _, _ in owned if tensor in WEIGHTS]
    return found


def below(twin: Twin, name: str, i: int, threshold: float) -> bool:
    """All weights that make or read this neuron are small."""
    return all(
        bool((twin.slices(name, tensor, i).abs() < threshold).all()) for tensor, _, _ in OWNS[name] if tensor in WEIGHTS
    )


@pytest.mark.parametrize("penalty_in", ["gradient", "loss"])
def test_it_is_the_literal_loop(penalty_in: str):
    model, optimizer = plain(0.05)
    model.conv1.weight.data[[0, 3]] *= 0.02
    model.conv2.weight.data[:, [0, 3]] *= 0.02
    model.fc.weight.data[[1, 2, 6]] *= 0.01
    model.head.weight.data[:, [1, 2, 6]] *= 0.05
    twin = Twin(model, 0.05)
    fresh = copy.deepcopy(model).train()
    with torch.no_grad():
        loss = F.cross_entropy(fresh(PAIRS[0][0]), PAIRS[0][1])
        norms = sum(g.square().sum().sqrt() for g in groups(twin))
    strength = float(0.4 * loss / (0.6 * norms))
    assert strength * float(norms) / (strength * float(norms) + float(loss)) == pytest.approx(0.4)
    pruner = prune_train(
        model, optimizer, penalty_share=0.4, threshold=0.02, batches=PAIRS, loss_fn=F.cross_entropy,
        penalty_in=penalty_in, total_steps=2 * STEPS,
    )  # fmt: skip
    assert pruner.metrics()["demp/strength"] == pytest.approx(strength, rel=1e-12)
    if penalty_in == "loss":  # the user's part
        twin_loss = (loss_of(model, 0, IMAGE) + pruner.penalty_loss()).item()
        assert twin_loss == pytest.approx(loss_of(model, 0, IMAGE).item() + strength * float(norms), rel=1e-12)
        return

    def penalty(step: int, twin: Twin) -> Tensor:
        return strength * torch.stack([g.square().sum().sqrt() for g in groups(twin)]).sum()

    def cut(step: int, twin: Twin) -> None:
        if step % 4 == 0:
            twin.remove({n: [i for i in twin.left(n) if below(twin, n, i, 0.02)] for n in MAKES})

    run_both(pruner, twin, range(32), penalty, cut)
    assert sum(r.happened for r in pruner.history) >= 2
    assert sum(r.removed for r in pruner.history) >= 4
    assert all(r.difference < 1e-12 for r in pruner.history if r.difference is not None)


def test_the_loss_is_that_of_training_and_looking_leaves_no_trace():
    model, optimizer = plain(0.05)
    model.norm1.running_mean += 3.0
    pruner = prune_train(model, optimizer, strength=0.1, batches=PAIRS, loss_fn=F.cross_entropy)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = pruner._view.loss(2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())
    twin = copy.deepcopy(model).train()
    assert found == pytest.approx(sum(F.cross_entropy(twin(x), y).item() for x, y in PAIRS) / 2, rel=1e-12)


def test_with_a_strength_of_ones_own_no_loss_is_needed():
    model, optimizer = plain(0.05)
    pruner = prune_train(model, optimizer, strength=0.125)
    assert not pruner.history
    assert pruner.metrics()["demp/strength"] == 0.125
    other, its_optimizer = plain(0.05)
    with pytest.raises(UsageError, match="prune-train measures the loss on training examples; pass loss_fn"):
        prune_train(other, its_optimizer)


def test_a_loss_that_is_not_positive_sets_no_strength():
    model, optimizer = plain(0.05)
    with pytest.raises(UsageError, match="penalty_share needs a positive loss.*give strength instead"):
        prune_train(model, optimizer, batches=PAIRS, loss_fn=lambda out, y: 0.0 * out.sum())


def test_the_report_says_which_strength_was_set():
    model, optimizer = plain(0.05)
    pruner = prune_train(model, optimizer, batches=PAIRS, loss_fn=F.cross_entropy)
    (report,) = pruner.history
    assert report.step == 0 and not report.happened
    assert report.notes[0].endswith("the penalty is 0.2 of loss + penalty")


# Residual streams ---------------------------------------------------------------------------------------


class Blocks(nn.Module):
    """A stem and two residual blocks: the stream passes three activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_act = nn.Conv2d(2, 5, 1), nn.ReLU()
        self.ins = nn.ModuleList(nn.Conv2d(5, 4, 1) for _ in range(2))
        self.outs = nn.ModuleList(nn.Conv2d(4, 5, 1) for _ in range(2))
        self.inner = nn.ModuleList(nn.ReLU() for _ in range(2))
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(2))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_act(self.stem(x))
        for i in range(2):
            x = self.acts[i](self.outs[i](self.inner[i](self.ins[i](x))) + x)
        return self.head(x.mean((2, 3)))


SLIM = {0: [3, 4], 1: [2, 3, 4], 2: [1, 2, 4]}
"""At which of stem, block 1 and block 2 are which channels small on both sides."""


def slim() -> tuple[Blocks, torch.optim.Optimizer]:
    model: Blocks = build(Blocks)  # type: ignore[assignment]
    makers, readers = [model.stem, *model.outs], [*model.ins, model.head]
    for at, channels in SLIM.items():
        makers[at].weight.data[channels] *= 1e-9
        readers[at].weight.data[:, channels] *= 1e-9
    return model, torch.optim.SGD(model.parameters(), lr=1e-9)


@pytest.mark.parametrize("joins", [True, False])
def test_a_channel_of_a_stream_goes_where_nobody_later_needs_it(joins: bool):
    model, optimizer = slim()
    x = examples(IMAGE)
    before = model(x).detach()
    pruner = prune_train(model, optimizer, strength=1e-6, joins=joins)
    train(model, optimizer, IMAGE, range(4))
    gone = {n: pruner.state.removed[pruner.graph.layer(n).classes] for n in ("stem_act", "acts.0", "acts.1")}
    found = [flags.nonzero().flatten().tolist() for flags in gone.values()]
    assert found == ([[4], [2, 4], [1, 2, 4]] if joins else [[4], [4], [4]])
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-6)
    notes = next(r for r in pruner.history if r.happened).notes
    stay = "2 small channels stay: excluded, for the minimum width, or carried on by a sum"
    assert notes == ((stay,) if joins else ())


def test_what_a_floor_keeps_the_sums_before_it_keep_too():
    model, optimizer = slim()
    pruner = prune_train(model, optimizer, strength=1e-6, floor=3)
    train(model, optimizer, IMAGE, range(4))
    stem, first, last = (pruner.state.removed[pruner.graph.layer(n).classes] for n in ("stem_act", "acts.0", "acts.1"))
    assert int(last.sum()) == 2
    assert not bool((first & ~last & torch.tensor([False, True, True, False, True])).any())
    assert not bool((stem & ~first).any())


def test_excluded_layers_keep_their_channels_and_those_that_feed_them():
    model, optimizer = slim()
    pruner = prune_train(model, optimizer, strength=1e-6, exclude=("acts.1",))
    train(model, optimizer, IMAGE, range(4))
    assert not bool(pruner.state.removed.any())


def test_the_closure_is_that_of_brute_force():
    model, optimizer = slim()
    pruner = prune_train(model, optimizer, strength=1e-6)
    graph = pruner.graph
    names = ("stem_act", "acts.0", "acts.1")
    for seed in range(20):
        want = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) < 0.6
        going = graph.none_removed()
        for name, flags in zip(names, want, strict=True):
            going[graph.layer(name).classes[flags]] = True
        found = unread(graph.dense, going)
        expected = [[bool(want[at:, c].all()) for c in range(5)] for at in range(3)]
        assert [found[graph.layer(name).classes].tolist() for name in names] == expected


def test_small_looks_at_both_sides_and_at_every_entry():
    model, optimizer = plain(0.05)
    model.conv1.weight.data[[0, 1]] = 1e-5
    model.conv2.weight.data[:, [0, 2]] = 1e-5
    model.conv2.weight.data[4, 0, 1, 1] = 1e-3
    model.conv1.weight.data[5], model.conv2.weight.data[:, 5] = 0.0, -1e-5
    pruner = prune_train(model, optimizer, strength=0.1)
    found = small(pruner._view, 1e-4)[pruner.graph.layer("act1").classes]
    assert found.tolist() == [False, False, False, False, False, True]


def test_a_layer_whose_channels_are_all_small_keeps_its_floor():
    model = build(Mlp)
    model.fc1.weight.data *= 1e-9
    model.fc2.weight.data *= 1e-9
    model.head.weight.data *= 1e-9
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    pruner = create(
        "prune-train",
        model,
        optimizer,
        example_inputs=(examples(VECTOR),),
        total_steps=4,
        period=2,
        strength=0.1,
        floor=2,
    )
    train(model, optimizer, VECTOR, range(2))
    assert (model.fc1.out_features, model.fc2.out_features) == (2, 2)
    assert any("small channels stay" in note for note in pruner.history[-1].notes)


def test_residual_nets_with_norms_are_cut_and_proven():
    model = build(ResidualNet)
    for weight in (model.stem.weight, model.conv1.weight, model.conv2.weight, model.head.weight):
        weight.data *= 0.3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    pruner = prune_train(model, optimizer, strength=0.02, threshold=0.05, total_steps=40)
    train(model, optimizer, IMAGE, range(40))
    assert pruner.state.removed.any()
    assert all(r.difference < 1e-12 for r in pruner.history if r.difference is not None)


def test_when_it_looks():
    method = PruneTrain(PruneTrainConfig(strength=0.1), 100)
    assert [s for s in range(101) if method.is_due(s)] == list(range(5, 101, 5))
    assert PruneTrain(PruneTrainConfig(), 100).is_due(0)
    assert PruneTrain(PruneTrainConfig(period=30), 100).period == 30
    assert PruneTrain(PruneTrainConfig(), 1).period == 1


@pytest.mark.parametrize(
    "options",
    [
        {"penalty_share": 0.0}, {"penalty_share": 1.0}, {"strength": -1.0}, {"strength": math.nan},
        {"threshold": -1e-4}, {"threshold": math.inf}, {"period": 0}, {"penalty_in": "weights"},
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(options: dict):
    (name,) = options
    with pytest.raises(UsageError, match=name):
        PruneTrainConfig(**options)


def test_a_run_that_removes_nothing_says_what_to_change():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    pruner = demp.methods.create(
        "prune-train", model, optimizer, example_inputs=(examples(IMAGE),), total_steps=4, strength=1e-9, period=2
    )
    train(model, optimizer, IMAGE, range(4))
    said = str(pruner.finish())
    assert (
        "nothing was removed: no channel had all of its weights below the threshold of 0.0001; raise threshold" in said
    )
