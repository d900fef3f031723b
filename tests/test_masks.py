"""Masks: what they hold at zero, what the optimizer forgets, and what a cut does with them."""

import pytest
import torch
from torch import Tensor, nn

import comparing
import demp
import nets
from demp.errors import UsageError
from demp.masking.masks import Masks, emptied, maskable
from demp.methods import MaskMethod, Method, MethodConfig, Selection, View
from runs import IMAGE, Mlp, PlainNet, ResidualNet, batch_at, build, examples, loss_of, train
from thinning import mostly_slow

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
}


def halves(view: View, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(w.shape, generator=generator) < 0.5 for name, w in view.maskable().items()}


class Random(MaskMethod):
    """New random masks every fourth step; a neuron goes at step 6."""

    Config = MethodConfig
    name = "random-masks"

    def initial_masks(self, view: View) -> dict[str, Tensor]:
        return halves(view, 0)

    def masks_due(self, step: int) -> bool:
        return step > 0 and step % 4 == 0

    def update_masks(self, step: int, view: View) -> dict[str, Tensor]:
        return halves(view, step)

    def is_due(self, step: int) -> bool:
        return step == 6

    def select(self, step: int, view: View) -> Selection:
        flags = torch.zeros(6, dtype=torch.bool)
        flags[2] = True
        return Selection({"act1": flags}, exact=False) if step == 6 else Selection()


def pruner_for(model: nn.Module, optimizer: torch.optim.Optimizer, method: type[Method] = Random, **options):
    given = {"example_inputs": (examples(IMAGE),), "total_steps": 12, "batches": [examples(IMAGE)]}
    return demp.Pruner(model, optimizer, method, method.Config(), **(given | options))


def shaped_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> list[Tensor]:
    state = optimizer.state[parameter].values()
    return [t for t in state if isinstance(t, Tensor) and t.shape == parameter.shape]


def test_weights_of_contractions_are_maskable_and_nothing_else():
    model = build(ResidualNet)
    graph = demp.trace(model, (examples(IMAGE),))
    assert list(maskable(model, graph)) == ["stem.weight", "conv1.weight", "conv2.weight", "head.weight"]
    model.conv1.weight.requires_grad_(False)
    assert "conv1.weight" not in maskable(model, graph)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_weights_stay_zero_and_no_moment_knows_of_them(name: str):
    model = build(PlainNet)
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = pruner_for(model, optimizer)
    assert pruner.masks.masked() > 0
    for step in range(12):
        before = {key: mask.clone() for key, mask in pruner.masks.kept.items()}
        train(model, optimizer, IMAGE, range(step, step + 1))
        for key, mask in pruner.masks.kept.items():
            parameter = model.get_parameter(key)
            assert mask.shape == parameter.shape
            assert not bool(parameter[~mask].any())
            assert bool(parameter[mask].any())
            for state in shaped_state(optimizer, parameter):
                assert not bool(state[~mask].any())
                fresh = mask & ~before[key] if before[key].shape == mask.shape else torch.zeros_like(mask)
                if step % 4 == 0 and step and name == "sgd" and bool(fresh.any()):
                    torch.testing.assert_close(state[fresh], parameter.grad[fresh])  # the memory of one step
    assert model.conv1.out_channels == 5


def test_dense_masks_change_nothing_to_the_bit():
    class Dense(Random):
        def initial_masks(self, view: View) -> dict[str, Tensor]:
            return {name: torch.ones(w.shape, dtype=torch.bool) for name, w in view.maskable().items()}

        update_masks = MaskMethod.update_masks
        is_due = Method.is_due

    models = [build(PlainNet) for _ in range(2)]
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in models]
    pruner_for(models[0], optimizers[0], Dense)
    losses = [train(m, o, IMAGE, range(8)) for m, o in zip(models, optimizers, strict=True)]
    assert losses[0] == losses[1]


def test_a_masked_run_is_a_run_on_the_products_of_masks_and_weights():
    class Still(Random):
        masks_due = MaskMethod.masks_due
        is_due = Method.is_due

    model, twin = build(PlainNet), build(PlainNet)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, twin)]
    pruner = pruner_for(model, optimizers[0], Still)
    masks = pruner.masks.state_dict()
    mine = train(model, optimizers[0], IMAGE, range(8))
    theirs = []
    for step in range(8):
        products = {n: p * masks[n] if n in masks else p for n, p in twin.named_parameters()}
        optimizers[1].zero_grad()
        x, y = batch_at(step, IMAGE)
        buffers = dict(twin.named_buffers())
        loss = nn.functional.cross_entropy(torch.func.functional_call(twin, {**products, **buffers}, (x,)), y)
        loss.backward()
        optimizers[1].step()
        theirs.append(loss.item())
    assert mine == pytest.approx(theirs, abs=1e-12)


def test_an_interrupted_run_continues_to_the_bit():
    def parts(resume: bool = False):
        model = build(PlainNet)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return model, optimizer, pruner_for(model, optimizer, resume=resume)

    model, optimizer, _ = parts()
    train(model, optimizer, IMAGE, range(12))
    half, half_optimizer, pruner = parts()
    train(half, half_optimizer, IMAGE, range(7))
    saved = pruner.state_dict(), half.state_dict(), half_optimizer.state_dict()
    again, again_optimizer, pruner = parts(resume=True)
    assert not pruner.masks
    pruner.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    again_optimizer.load_state_dict(saved[2])
    train(again, again_optimizer, IMAGE, range(7, 12))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_an_overflow_puts_the_update_off():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = pruner_for(model, optimizer, attach=False)
    seen = []
    for step in range(7):
        optimizer.zero_grad()
        loss_of(model, step, IMAGE).backward()
        if step == 4:
            model.conv2.weight.grad[0, 0] = float("inf")
        old = pruner.masks.state_dict()["conv2.weight"]
        pruner.before_step()
        seen.append(not torch.equal(old, pruner.masks.kept["conv2.weight"]))
        if step == 4:
            pruner.skip_step()
        else:
            pruner.after_step()
    assert seen[:3] == [False, False, False]
    assert seen.count(True) == 1


def test_the_optimizer_may_be_kept_still_while_masks_change():
    class Still(Random):
        is_due = Method.is_due

        def skips_updates(self) -> bool:
            return True

        def update_masks(self, step: int, view: View) -> dict[str, Tensor]:
            return dict(view.masks)

    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner_for(model, optimizer, Still)
    for step in range(6):
        before = model.head.weight.detach().clone()
        train(model, optimizer, IMAGE, range(step, step + 1))
        assert torch.equal(before, model.head.weight) == (step == 4)


def test_a_neuron_that_nobody_reads_any_more_is_found():
    model = build(ResidualNet)
    graph = demp.trace(model, (examples(IMAGE),))
    masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in maskable(model, graph).items()}
    masks["conv2.weight"][:, [1, 5]] = False
    masks["head.weight"][:, 3] = False
    masks["conv1.weight"][:, 2] = False  # the residual sum still reads channel 2 of the stem
    found = emptied(graph.dense, masks)
    assert found[graph.layer("act1").classes].nonzero().flatten().tolist() == [1, 5]
    assert found[graph.layer("act2").classes].nonzero().flatten().tolist() == [3]
    assert not bool(found[graph.layer("stem_act").classes].any())
    del masks["head.weight"]
    assert not bool(emptied(graph.dense, masks)[graph.layer("act2").classes].any())


def test_who_is_read_only_by_those_that_go_is_not_read():
    model = build(Mlp)
    graph = demp.trace(model, (examples((6,)),))
    masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in maskable(model, graph).items()}
    masks["head.weight"][:, [2, 3]] = False
    masks["fc2.weight"][:, 7] = False
    masks["fc2.weight"][[2, 3], 7] = True
    found = emptied(graph.dense, masks)
    assert found[graph.layer("act2").classes].nonzero().flatten().tolist() == [2, 3]
    assert found[graph.layer("act1").classes].nonzero().flatten().tolist() == [7]


def test_in_a_chain_the_unread_are_those_without_a_path_to_the_output():
    for seed in range(20):
        model = build(Mlp)
        graph = demp.trace(model, (examples((6,)),))
        generator = torch.Generator().manual_seed(seed)
        masks = {n: torch.rand(p.shape, generator=generator) < 0.15 for n, p in maskable(model, graph).items()}
        second = masks["head.weight"].double().sum(0)
        first = second @ masks["fc2.weight"].double()
        found = emptied(graph.dense, masks)
        assert torch.equal(found[graph.layer("act2").classes], second == 0)
        assert torch.equal(found[graph.layer("act1").classes], first == 0)


def test_who_is_fed_by_nobody_goes_if_it_is_dead():
    model = build(ResidualNet)
    graph = demp.trace(model, (examples(IMAGE),))
    masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in maskable(model, graph).items()}
    masks["conv1.weight"][[2, 4]] = False
    masks["conv2.weight"][3] = False
    dead = graph.none_removed()
    dead[graph.layer("act1").classes[[1, 2]]] = True
    assert not bool(emptied(graph.dense, masks).any())
    found = emptied(graph.dense, masks, dead)
    assert found[graph.layer("act1").classes].nonzero().flatten().tolist() == [2]
    assert int(found.sum()) == 1


def test_masks_of_a_cut_network_are_read_in_their_present_order():
    model = build(Mlp)
    graph = demp.trace(model, (examples((6,)),))
    gone = graph.none_removed()
    gone[graph.layer("act1").classes[[0, 5]]] = True
    gone[graph.layer("act2").classes[3]] = True
    shapes = {"fc1.weight": (10, 6), "fc2.weight": (9, 10), "head.weight": (3, 9)}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    masks["head.weight"][:, 4] = False
    masks["fc2.weight"][:, 4] = False
    found = emptied(graph.at(gone), masks)
    assert found[graph.layer("act2").classes].nonzero().flatten().tolist() == [5]
    assert found[graph.layer("act1").classes].nonzero().flatten().tolist() == [6]


NETWORKS = {
    "plain": lambda: nets.plain(activation="gelu"),
    "flattened": lambda: nets.plain(end="flatten", pool="average"),
    "residual": lambda: nets.residual(),
    "dense": lambda: nets.dense(),
    "branches": lambda: nets.branches(),
    "separable": lambda: nets.separable(hidden=9, activation="silu"),
    "gated": lambda: nets.gated(how="chunk"),
    "tokens": lambda: nets.tokens(),
    "grouped": lambda: nets.grouped(groups=3, inner=4, outer=4),
    "transposed": lambda: nets.grouped(transposed=True, outer=6),
    "skips": lambda: nets.skips(deep=8),
    "paths": lambda: nets.paths(),
}


@pytest.mark.parametrize("seeds", mostly_slow((range(2), range(2, 12)), quick=(range(2),)))
@pytest.mark.parametrize("name", NETWORKS)
def test_removing_the_unread_changes_no_output(name: str, seeds: range):
    removed = 0
    for seed in seeds:
        torch.manual_seed(seed)
        model, inputs = NETWORKS[name]()
        model, inputs = nets.settle(model, seed), tuple(x.double() for x in inputs)
        graph = demp.trace(model, inputs)
        masks = Masks(model)
        weights = maskable(model, graph)
        generator = torch.Generator().manual_seed(seed)
        masks.put({n: torch.rand(p.shape, generator=generator) < 0.25 for n, p in weights.items()})
        found = emptied(graph.dense, masks.kept)
        before = comparing.outputs(model, inputs)
        going = {layer.name: found[layer.classes] for layer in graph.layers}
        report = demp.cut(model, going, example_inputs=inputs, graph=graph, copies=[masks.kept])
        removed += report.removed
        assert comparing.gap(before, comparing.outputs(model, inputs)) < 1e-10
        for key, mask in masks.kept.items():
            assert mask.shape == model.get_parameter(key).shape
            assert not bool(model.get_parameter(key)[~mask].any())
    assert removed > 0


def test_masks_lie_in_memory_like_their_parameters():
    model = build(PlainNet).to(memory_format=torch.channels_last)
    masks = Masks(model)
    given = {"conv2.weight": torch.rand(5, 6, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5}
    masks.put(given)
    again = Masks(model)
    again.load_state_dict(masks.state_dict())
    for one in (masks, again):
        assert one.kept["conv2.weight"].stride() == model.conv2.weight.stride() != given["conv2.weight"].stride()
        assert torch.equal(one.kept["conv2.weight"], given["conv2.weight"])
        assert one.kept["conv2.weight"] is not given["conv2.weight"]


def test_a_mask_that_does_not_fit_is_refused():
    masks = Masks(build(PlainNet))
    for name, mask in (("conv1.weight", torch.ones(3, dtype=torch.bool)), ("nothing", torch.ones(1, dtype=torch.bool))):
        with pytest.raises(UsageError, match=f"the mask for {name} does not fit"):
            masks.put({name: mask})
