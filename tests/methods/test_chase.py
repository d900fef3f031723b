"""Chase against its literal twin, and the promises that it makes on a whole run."""

import math

import pytest
import torch
from torch import Tensor, nn

import demp
from demp.errors import UsageError
from demp.methods import create
from demp.methods.chase import Chase, ChaseConfig, inner, mean_size, removals
from methods.chase_reference import channel_share, removed, rewired
from nets import gated, residual
from runs import IMAGE, PlainNet, ResidualNet, build, examples, loss_of, same, train
from thinning import mostly_slow

MADE_BY = {"act1": "conv1", "act2": "conv2", "act3": "fc"}


def pruner_for(model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> demp.Pruner:
    given = {"example_inputs": (examples(IMAGE),), "total_steps": 20, "mask_every": 2, "channel_every": 4}
    return create("chase", model, optimizer, **(given | {"weight_sparsity": 0.6} | options))


def dense_weights() -> int:
    return sum(p.numel() for n, p in build(PlainNet).named_parameters() if n in WEIGHTS)


WEIGHTS = ("conv1.weight", "conv2.weight", "fc.weight", "head.weight")


def places(tensors: dict[str, Tensor]) -> dict[tuple[str, int], float]:
    return {(name, i): v for name, t in tensors.items() for i, v in enumerate(t.abs().flatten().tolist())}


def expected_masks(pruner: demp.Pruner, model: nn.Module, step: int) -> dict[str, Tensor]:
    total, dense = pruner.total_steps, dense_weights()
    weights = {name: model.get_parameter(name) for name in WEIGHTS}
    old = pruner.masks.kept
    there = {(name, i) for name in WEIGHTS for i in old[name].flatten().nonzero().flatten().tolist()}
    extra = 0.005 + 0.045 / 2 * (1 + math.cos(math.pi * step / total))
    drop = 0.005 + 0.495 / 2 * (1 + math.cos(math.pi * step / total)) if step >= 0.8 * total else None
    size, slope = places(weights), places({name: w.grad for name, w in weights.items()})
    new = rewired(size, slope, there, round(0.4 * dense), round((0.4 + extra) * dense), drop)
    masks = {name: torch.zeros_like(mask) for name, mask in old.items()}
    for name, i in new:
        masks[name].view(-1)[i] = True
    return masks


def expected_gone(pruner: demp.Pruner, model: nn.Module, step: int, beta: float, score: str) -> dict[str, set[int]]:
    dense, graph = build(PlainNet), pruner.graph
    scores: dict[str, dict[int, float]] = {}
    for layer, module in MADE_BY.items():
        names = (~pruner.state.removed[graph.layer(layer).classes]).nonzero().flatten().tolist()
        rows = model.get_parameter(f"{module}.weight").detach().abs().flatten(1)
        kept = pruner.masks.kept[f"{module}.weight"].flatten(1)
        fan_in = dense.get_parameter(f"{module}.weight")[0].numel()
        scores[layer] = {
            name: float(rows[i].sum()) / (fan_in if score == "filter" else max(1, int(kept[i].sum())))
            for i, name in enumerate(names)
        }
    minimum = {layer: max(1, int(graph.layer(layer).width * 0.6 * beta)) for layer in MADE_BY}
    already = graph.dense.neurons - graph.at(pruner.state.removed).neurons
    return removed(scores, minimum, round(channel_share(step, 15, 0.4) * graph.dense.neurons) - already)


@pytest.mark.parametrize(("beta", "score"), [(0.2, "filter"), (1.0, "filter"), (0.2, "active")])
def test_a_run_agrees_with_the_twin_at_every_step(beta: float, score: str):
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = pruner_for(model, optimizer, attach=False, channel_floor=beta, channel_score=score)
    gone = 0
    for step in range(20):
        optimizer.zero_grad()
        loss_of(model, step, IMAGE).backward()
        due = step > 0 and step % 2 == 0
        wanted = expected_masks(pruner, model, step) if due else pruner.masks.state_dict()
        pruner.before_step()
        assert all(torch.equal(pruner.masks.kept[name], mask) for name, mask in wanted.items()), step
        optimizer.step()
        pruner.masks.hold_weights()
        before = pruner.state.removed.clone()
        going = expected_gone(pruner, model, step + 1, beta, score) if step + 1 in (3, 7, 11, 15) else {}
        report = pruner.after_step()
        for layer in MADE_BY:
            classes = pruner.graph.layer(layer).classes
            new = (pruner.state.removed & ~before)[classes].nonzero().flatten().tolist()
            assert set(new) == going.get(layer, set()), (step, layer)
            gone += len(new)
        if any(going.values()):
            assert report.difference < 1e-9  # the channels are cut out as if they said nothing
    assert gone == round(0.4 * 18)
    assert [r.step for r in pruner.history if r.happened] == [3, 7, 11]


def test_floors_are_kept_and_what_they_withhold_is_said():
    model = build(PlainNet)
    with torch.no_grad():
        model.conv1.weight *= 1e-3  # all of its channels are the smallest
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    pruner = pruner_for(model, optimizer, channel_sparsity=0.5, channel_floor=0.7)
    train(model, optimizer, IMAGE, range(20))
    assert model.conv1.out_channels == int(6 * 0.5 * 0.7) == 2
    assert pruner.state.neurons == 9
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    pruner = pruner_for(model, optimizer, channel_sparsity=0.9, floor=4)
    train(model, optimizer, IMAGE, range(20))
    assert (model.conv1.out_channels, model.conv2.out_channels, model.fc.out_features) == (4, 4, 4)
    assert pruner.history[-1].notes[-1].startswith("10 channels stay that channel_sparsity asks for")


def test_weights_follow_the_ceiling_and_end_at_the_target():
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = pruner_for(model, optimizer, total_steps=50, channel_sparsity=0.2)
    method, dense = pruner.method, dense_weights()
    counts = []
    for step in range(50):
        train(model, optimizer, IMAGE, range(step, step + 1))
        counts.append(sum(int(mask.sum()) for mask in pruner.masks.kept.values()))
        if step and step % 2 == 0:
            after_cut = step + 1 in method.channel_steps
            wanted = round(method.ceiling(step) * dense)
            assert counts[-1] <= wanted if after_cut else counts[-1] == wanted
    assert max(counts) > round(0.4 * dense)
    assert counts[-1] == round(0.4 * dense)
    assert method.ceiling(0) == pytest.approx(0.45)
    assert method.ceiling(25) == pytest.approx(0.4 + 0.0275)
    assert method.ceiling(40) == 0.4
    assert (method.drop_share(0), method.drop_share(50)) == (pytest.approx(0.5), pytest.approx(0.005))
    assert method.channel_share(method.channel_steps[-1]) == 0.2


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_layers_may_be_ranked_on_their_own(distribution: str):
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    pruner = pruner_for(model, optimizer, ranking="layer", distribution=distribution, channel_sparsity=0.0)
    dense = dense_weights()
    for step in range(20):
        train(model, optimizer, IMAGE, range(step, step + 1))
        if step and step % 2 == 0:
            density = round(pruner.method.ceiling(step) * dense) / dense
            shapes = {name: tuple(mask.shape) for name, mask in pruner.masks.kept.items()}
            shares = getattr(demp.masking.distributions, distribution)(shapes, 1 - density)
            for name, mask in pruner.masks.kept.items():
                assert int(mask.sum()) == demp.masking.distributions.kept(mask.numel(), shares[name]), (step, name)


def test_only_channels_inside_blocks_go_unless_all_may():
    model = build(ResidualNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = pruner_for(model, optimizer, channel_sparsity=0.5)
    train(model, optimizer, IMAGE, range(20))
    assert (model.stem.out_channels, model.conv1.out_channels, model.conv2.out_channels) == (6, 4, 6)
    model = build(ResidualNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = pruner_for(model, optimizer, channel_sparsity=0.5, channels="all")
    train(model, optimizer, IMAGE, range(20))
    assert pruner.state.neurons == 10
    assert model.stem.out_channels + model.conv2.out_channels < 12
    for joins in (True, False):
        graph = demp.trace(build(ResidualNet), (examples(IMAGE),), joins=joins)
        classes = {layer.name: bool(inner(graph)[layer.classes].any()) for layer in graph.layers}
        assert classes == {"stem_act": False, "act1": True, "act2": False}
    graph = demp.trace(*residual(pre=True))
    assert [layer.name for layer in graph.layers if bool(inner(graph)[layer.classes].all())] == ["1.act2", "2.act2"]


def test_the_mean_is_over_all_weights_that_make_a_channel():
    model, inputs = gated(hidden=4)
    graph = demp.trace(model, inputs)
    weights = {"gate.weight": model.gate.weight.detach(), "value.weight": model.value.weight.detach()}
    masks = {"gate.weight": torch.rand(4, 4) < 0.5, "value.weight": torch.rand(4, 4) < 0.5}
    weights = {name: w * masks[name] for name, w in weights.items()}
    classes = graph.layers[0].classes
    rows = torch.cat([weights["gate.weight"], weights["value.weight"]], 1).abs().double()
    there = torch.cat([masks["gate.weight"], masks["value.weight"]], 1).sum(1)
    found = mean_size(graph.dense, weights, masks, active=False)
    torch.testing.assert_close(found[classes], rows.mean(1))
    found = mean_size(graph.dense, weights, masks, active=True)
    torch.testing.assert_close(found[classes], rows.sum(1) / there.clamp(min=1))


def test_removals_lie_half_an_update_before_the_masks_and_there_is_one_at_least():
    config = ChaseConfig(channel_every=500)
    assert list(removals(config, 5000, 100))[:2] == [450, 950]
    assert removals(config, 5000, 100)[-1] == 3950
    assert list(removals(ChaseConfig(channel_every=500), 100, 10)) == [80]
    assert list(removals(ChaseConfig(channel_until=1.0, channel_every=1), 4, 1)) == [1, 2, 3]
    method = Chase(ChaseConfig(), 250_000)
    assert (method.window.every, method.channel_steps.step, method.channel_steps[-1]) == (1000, 5000, 199_500)


@pytest.mark.parametrize("at", mostly_slow((1, 7, 12), quick=(7,)))
def test_an_interrupted_run_continues_to_the_bit(at: int):
    def parts(resume: bool = False):
        model = build(PlainNet)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return model, optimizer, pruner_for(model, optimizer, resume=resume)

    model, optimizer, whole = parts()
    train(model, optimizer, IMAGE, range(20))
    half, half_optimizer, pruner = parts()
    train(half, half_optimizer, IMAGE, range(at))
    saved = pruner.state_dict(), half.state_dict(), half_optimizer.state_dict()
    again, again_optimizer, pruner = parts(resume=True)
    pruner.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    again_optimizer.load_state_dict(saved[2])
    train(again, again_optimizer, IMAGE, range(at, 20))
    assert same(model, again)
    assert all(torch.equal(mask, pruner.masks.kept[name]) for name, mask in whole.masks.kept.items())
    assert whole.finish().hash == pruner.finish().hash


def test_without_channels_to_remove_it_only_rewires():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = pruner_for(model, optimizer, channel_sparsity=0.0, include=("nothing",))
    train(model, optimizer, IMAGE, range(20))
    assert pruner.history == []
    assert pruner.masks.masked() == dense_weights() - round(0.4 * dense_weights())


def test_a_frozen_convolution_keeps_its_channels():
    model = build(PlainNet)
    model.conv2.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    pruner = pruner_for(model, optimizer, channel_sparsity=0.5)
    train(model, optimizer, IMAGE, range(20))
    assert model.conv2.out_channels == 5
    assert pruner.graph.dense.neurons - pruner.state.neurons == round(0.5 * 13)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": "some"}, "channels is 'some'"),
        ({"channel_score": "l2"}, "channel_score is 'l2'"),
        ({"ranking": "none"}, "ranking is 'none'"),
        ({"channel_sparsity": 1.0}, "channel_sparsity is 1.0"),
        ({"channel_floor": 1.2}, "channel_floor is 1.2"),
        ({"drop_last": -0.1}, "drop_last is -0.1"),
        ({"channel_every": 0}, "channel_every is 0"),
        ({"exclude": ("*",)}, "leave no channel to remove"),
    ],
)
def test_bad_input_is_refused(options: dict, match: str):
    model = build(PlainNet)
    with pytest.raises(UsageError, match=match):
        pruner_for(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)
