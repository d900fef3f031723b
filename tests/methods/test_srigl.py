"""SRigL against its literal twin, and the promises that it makes on a whole run."""

import math

import pytest
import torch
from torch import Tensor, nn

import demp
from demp.errors import UsageError
from demp.masking.distributions import kept
from demp.masking.masks import constant
from demp.methods import create
from demp.methods.srigl import SRigL, SRigLConfig, neuron_axis, updated
from methods.srigl_reference import fraction, update
from nets import experts, grouped, paths, skips
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, build, examples, loss_of, same, train
from thinning import mostly_slow


def pruner_for(model: nn.Module, optimizer: torch.optim.Optimizer, shape=IMAGE, **options) -> demp.Pruner:
    given = {"example_inputs": (examples(shape),), "total_steps": 20, "mask_every": 2, "weight_sparsity": 0.6}
    return create("srigl", model, optimizer, **(given | options))


def fan_ins(pruner: demp.Pruner, name: str) -> Tensor:
    return pruner.masks.kept[name].movedim(neuron_axis(pruner.graph, name), 0).flatten(1).sum(1)


def random_layer(seed: int, neurons: int = 7, dense: int = 9) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(seed)
    budget = int(torch.randint(neurons, neurons * dense, (1,), generator=generator))
    k = budget // neurons
    mask = torch.zeros(neurons, dense, dtype=torch.bool)
    for j in range(neurons):
        mask[j, torch.randperm(dense, generator=generator)[:k]] = True
    weight = torch.randn(neurons, dense, generator=generator, dtype=torch.float64) * mask
    gradient = torch.randn(neurons, dense, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:  # ties, and weights that were grown and have not moved
        weight, gradient = weight.round(), gradient.round()
    if seed % 2:
        weight[seed % neurons] *= 1e-3
        gradient[seed % neurons] *= 1e-3
    return weight, gradient, mask, budget


@pytest.mark.parametrize("of", ["constant", "dense"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.95])
def test_an_update_is_that_of_the_formulas(gamma: float, of: str):
    ablated = 0
    for seed in range(40):
        weight, gradient, mask, budget = random_layer(seed)
        f = fraction(seed, 60)
        method = SRigL(SRigLConfig(min_salient=gamma, min_salient_of=of), 60)
        assert method.fraction(seed) == pytest.approx(f if seed < 45 else 0.0, abs=1e-12)
        least = method.least(budget // 7, 9)
        new = updated(weight.abs(), gradient.abs(), mask, budget=budget, fraction=f, least=least)
        lists = [t.tolist() for t in (weight, gradient, mask)]
        assert new.tolist() == update(*lists, budget, f, gamma, of, ablates=True), seed
        active = new.any(1)
        ablated += int((~active).sum())
        assert new.sum(1)[active].unique().tolist() == [budget // int(active.sum())]
        assert budget - int(active.sum()) < int(new.sum()) <= budget
    assert (ablated > 0) == (gamma > 0)


@pytest.mark.parametrize("kind", [PlainNet, ResidualNet])
def test_a_run_agrees_with_the_twin_at_every_update(kind: type[nn.Module]):
    model = build(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = pruner_for(model, optimizer, attach=False, min_salient=0.9)
    weights = demp.masking.masks.maskable(model, pruner.graph)
    densities = demp.masking.distributions.erk({name: tuple(weight.shape) for name, weight in weights.items()}, 0.6)
    last, changed = list(weights)[-1], 0
    for step in range(20):
        optimizer.zero_grad()
        loss_of(model, step, IMAGE).backward()
        wanted = dict(pruner.masks.state_dict())
        if step in (2, 4, 6, 8, 10, 12, 14):
            for name, mask in wanted.items():
                weight = model.get_parameter(name)
                budget = kept(weight.numel(), densities[name])
                lists = [t.flatten(1).tolist() for t in (weight.detach(), weight.grad, mask)]
                new = update(*lists, budget, fraction(step, 20), 0.9, "constant", ablates=name != last)
                wanted[name] = torch.tensor(new).view(mask.shape)
                changed += int((wanted[name] != mask).sum())
        pruner.before_step()
        optimizer.step()
        pruner.after_step()
        for name, mask in wanted.items():
            assert torch.equal(pruner.masks.kept[name], mask), (step, name)
    assert changed > 20


def test_every_active_neuron_has_the_same_fan_in_and_neurons_come_back():
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    pruner = pruner_for(
        model, optimizer, total_steps=60, min_salient=0.8, weight_sparsity=0.75, mask_exclude=("head*",)
    )
    before = {name: fan_ins(pruner, name) > 0 for name in pruner.masks.kept}
    assert all(bool(active.all()) for active in before.values())
    left = returned = 0
    for step in range(60):
        train(model, optimizer, IMAGE, range(step, step + 1))
        for name in pruner.masks.kept:
            found = fan_ins(pruner, name)
            active = found > 0
            size = model.get_parameter(name).numel()
            budget = kept(size, pruner.method.densities(pruner._view)[name])
            assert found[active].unique().tolist() == [budget // int(active.sum())]
            left += int((before[name] & ~active).sum())
            returned += int((active & ~before[name]).sum())
            before[name] = active
    assert left > 0
    assert returned > 0


def test_layers_keep_the_neurons_that_their_budget_needs():
    weight = torch.zeros(4, 5)
    weight[0, :3] = 1.0
    mask = torch.ones(4, 5, dtype=torch.bool)
    slope = torch.zeros(4, 5)
    slope[:, 0] = torch.tensor([9.0, 8.0, 7.0, 6.0])
    new = updated(weight, slope, mask, budget=12, fraction=0.0, least=5)  # 12 weights need 3 neurons of 5
    assert new.sum(1).tolist() == [4, 4, 4, 0]


def test_the_last_layer_and_spared_ones_are_never_ablated():
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    options = {"min_salient": 1.0, "spare": ("conv2.*",), "weight_sparsity": 0.7, "distribution": "uniform"}
    pruner = pruner_for(model, optimizer, total_steps=40, **options)
    gone = dict.fromkeys(pruner.masks.kept, 0)
    assert {"conv2.weight", "fc.weight", "head.weight"} <= gone.keys()
    for step in range(40):
        train(model, optimizer, IMAGE, range(step, step + 1))
        for name in gone:
            gone[name] += int((fan_ins(pruner, name) == 0).sum())
    assert gone["head.weight"] == gone["conv2.weight"] == 0
    assert gone["fc.weight"] > 0


def test_ablated_neurons_go_for_real_at_the_end():
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    pruner = pruner_for(model, optimizer, total_steps=40, min_salient=1.0, weight_sparsity=0.75)
    train(model, optimizer, IMAGE, range(40))
    quiet = constant(pruner.state, pruner.masks.kept)
    ablated = {name: int(quiet[pruner.graph.layer(name).classes].sum()) for name in ("act1", "act2", "act3")}
    assert sum(ablated.values()) > 0
    for name, weight in (("act1", "conv1.weight"), ("act2", "conv2.weight"), ("act3", "fc.weight")):
        assert ablated[name] == int((fan_ins(pruner, weight) == 0).sum())
    assert not pruner.history  # nothing went before the end
    report = pruner.finish()
    assert report.removed >= sum(ablated.values())
    assert report.difference < 1e-9
    assert bool((fan_ins(pruner, "conv2.weight") > 0).all())
    assert model.fc.out_features == 7 - report.layers["act3"].before + report.layers["act3"].kept


def test_what_an_ablated_neuron_says_is_folded_exactly_where_nothing_is_padded():
    model = build(Mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = pruner_for(model, optimizer, VECTOR, total_steps=40, min_salient=1.0, weight_sparsity=0.5)
    train(model, optimizer, VECTOR, range(40))
    quiet = constant(pruner.state, pruner.masks.kept)
    biases = model.fc1.bias.detach()[quiet[pruner.graph.layer("act1").classes]]
    assert bool((biases > 0).any())  # it speaks
    before = model(examples(VECTOR)).detach()
    report = pruner.finish()
    assert report.removed > 0
    assert report.drift < 1e-6  # constants are folded in single precision
    torch.testing.assert_close(model(examples(VECTOR)), before, rtol=0, atol=1e-6)


def test_ablated_neurons_may_stay():
    model = build(Mlp)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = pruner_for(
        model, optimizer, VECTOR, total_steps=40, min_salient=1.0, weight_sparsity=0.5, remove_ablated=False
    )
    train(model, optimizer, VECTOR, range(40))
    pruner.masks.kept["head.weight"][:, 3] = False  # nobody reads it
    pruner.masks.hold_weights()
    before = model(examples(VECTOR)).detach()
    report = pruner.finish()
    assert report.removed == 1
    torch.testing.assert_close(model(examples(VECTOR)), before, rtol=0, atol=1e-12)


def test_channels_of_a_residual_sum_are_not_called_constant():
    model = build(ResidualNet)
    graph = demp.trace(model, (examples(IMAGE),))
    masks = {
        n: torch.ones_like(model.get_parameter(n), dtype=torch.bool) for n in demp.masking.masks.maskable(model, graph)
    }
    masks["conv1.weight"][[2, 5]] = False
    masks["conv2.weight"][1] = False
    masks["stem.weight"][0] = False
    found = constant(graph.dense, masks)
    assert found[graph.layer("act1").classes].nonzero().flatten().tolist() == [2, 5]
    assert int(found.sum()) == 2
    del masks["conv1.weight"]
    assert not bool(constant(graph.dense, masks).any())


def test_initial_weights_fit_the_inputs_that_are_left():
    dense, model = build(PlainNet), build(PlainNet)
    pruner = pruner_for(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for name, mask in pruner.masks.kept.items():
        k = int(fan_ins(pruner, name)[0])
        factor = math.sqrt(mask[0].numel() / k)
        torch.testing.assert_close(model.get_parameter(name), dense.get_parameter(name) * factor * mask)
    plain = build(PlainNet)
    pruner = pruner_for(plain, torch.optim.SGD(plain.parameters(), lr=0.1), sparse_init=False)
    for name, mask in pruner.masks.kept.items():
        assert torch.equal(plain.get_parameter(name), dense.get_parameter(name) * mask)


def test_initial_masks_are_a_function_of_the_seed():
    def masks(seed: int) -> dict[str, Tensor]:
        model = build(PlainNet)
        return pruner_for(model, torch.optim.SGD(model.parameters(), lr=0.1), seed=seed).masks.state_dict()

    one, two, other = masks(1), masks(1), masks(2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("at", mostly_slow((1, 7, 15), quick=(7,)))
def test_an_interrupted_run_continues_to_the_bit(at: int):
    def parts(resume: bool = False):
        model = build(PlainNet)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return model, optimizer, pruner_for(model, optimizer, resume=resume, min_salient=0.9)

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
    assert whole.finish().hash == pruner.finish().hash
    assert same(model, again)


def test_neurons_lie_where_the_graph_says():
    model, inputs = skips()
    assert neuron_axis(demp.trace(model, inputs), "up.weight") == 1  # a transposed convolution
    model, inputs = experts(packed=True)
    assert neuron_axis(demp.trace(model, inputs), "up") == 1
    model = build(PlainNet)
    graph = demp.trace(model, (examples(IMAGE),))
    assert [neuron_axis(graph, name) for name in demp.masking.masks.maskable(model, graph)] == [0, 0, 0, 0]


def test_a_transposed_convolution_has_the_same_fan_in_everywhere():
    model, inputs = skips(width=4, deep=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = create("srigl", model, optimizer, example_inputs=inputs, total_steps=9, mask_every=1, weight_sparsity=0.5)
    for _ in range(9):
        optimizer.zero_grad()
        model(*inputs).square().mean().backward()
        optimizer.step()
        found = fan_ins(pruner, "up.weight")
        assert len(found[found > 0].unique()) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"drop_fraction": 1.5}, "drop_fraction is 1.5"),
        ({"min_salient": -0.1}, "min_salient is -0.1"),
        ({"min_salient_of": "other"}, "min_salient_of is 'other'"),
        ({"spare": "head"}, "spare is the string 'head'"),
        ({"weight_sparsity": 1.0}, "weight_sparsity is 1.0"),
        ({"weight_sparsity": 0.99, "distribution": "uniform"}, "less than one for each"),
    ],
)
def test_bad_input_is_refused(options: dict, match: str):
    model = build(PlainNet)
    with pytest.raises(UsageError, match=match):
        pruner_for(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


@pytest.mark.parametrize(("net", "name"), [(grouped, "mix.weight"), (paths, "a.weight")])
def test_a_weight_without_a_row_per_neuron_is_refused_unless_it_stays_dense(net, name: str):
    model, inputs = net(transposed=True) if net is grouped else net(tied=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"example_inputs": inputs, "total_steps": 10, "weight_sparsity": 0.3}
    with pytest.raises(UsageError, match=f"{name} does not have one row for each neuron"):
        create("srigl", model, optimizer, **options)
    assert create("srigl", model, optimizer, mask_exclude=(name,), **options).masks


def test_it_goes_on_where_another_method_removes_neurons():
    model = build(PlainNet)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    options = {"example_inputs": (examples(IMAGE),), "batches": [examples(IMAGE)], "peak_noise_std": 0.0}
    pruner = create(
        "demp+srigl", model, optimizer, total_steps=40, period=5, peak_strength=0.3, mask_every=2, **options,
        weight_sparsity=0.5, criterion="epsilon", eps=0.2,
    )  # fmt: skip
    removed = 0
    for step in range(30):
        train(model, optimizer, IMAGE, range(step, step + 1))
        removed += bool(pruner.history) and pruner.history[-1].step == step + 1 and pruner.history[-1].happened
        if step and step % 2 == 0 and (step + 1) % 5:
            for name in pruner.masks.kept:
                found = fan_ins(pruner, name)
                assert len(found[found > 0].unique()) == 1
    assert removed
