"""Random neurons: when, how many, which, and that the seed alone decides."""

import io
from typing import Any

import pytest
import torch
from torch import nn

import demp
from demp.errors import UsageError
from demp.methods.random_neurons import RandomConfig, RandomNeurons
from runs import IMAGE, PlainNet, ResidualNet, build, examples, sgd, train
from thinning import covering


def attached(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options) -> demp.Pruner:
    options = {"example_inputs": (examples(IMAGE),), "total_steps": 10, **options}
    return demp.methods.create("random", model, optimizer or sgd(model), **options)


def kept(pruner: demp.Pruner) -> dict[str, list[int]]:
    return {layer.name: sorted(pruner.state.kept(layer.classes).tolist()) for layer in pruner.graph.layers}


@pytest.mark.parametrize(("kind", "target"), covering((PlainNet, ResidualNet), (0.2, 0.5, 0.8)))
def test_as_many_as_the_target_says_go_before_training(kind: type[nn.Module], target: float):
    pruner = attached(build(kind), target_neuron_sparsity=target)
    total = pruner.graph.dense.neurons
    assert [report.removed for report in pruner.history] == [round(target * total)]
    assert pruner.history[0].step == 0


def test_a_share_of_each_layer():
    pruner = attached(build(PlainNet), target_neuron_sparsity=0.5, ranking="layer")
    assert [len(k) for k in kept(pruner).values()] == [3, 3, 3]  # of 6, 5 and 7; halves go to the even number


def test_the_seed_and_the_step_decide():
    one, two, other = (kept(attached(build(PlainNet, seed=s), seed=seed)) for s, seed in ((0, 1), (7, 1), (0, 2)))
    assert one == two != other
    later = build(PlainNet)
    pruner = attached(later, seed=1, prune_at=0.5)
    train(later, pruner.optimizers[0], IMAGE, range(10))
    assert kept(pruner) != one


def test_every_neuron_of_the_network_has_the_same_chance():
    counts = torch.zeros(18)
    pruner = attached(build(PlainNet), target_neuron_sparsity=0.5, prune_at=0.5)
    for seed in range(20):
        pruner._run.seed = seed
        drawn = RandomNeurons(pruner.config, 10).select(0, pruner._view).neurons
        counts += torch.cat([drawn[layer.name] for layer in pruner.graph.layers])
    assert counts.sum() == 20 * 9
    assert counts.min() >= 2 and counts.max() <= 18  # 10 expected, standard deviation 2.2


def test_once_at_its_share_of_the_run():
    model = build(PlainNet)
    pruner = attached(model, prune_at=0.4)
    train(model, pruner.optimizers[0], IMAGE, range(10))
    assert [(report.step, report.removed) for report in pruner.history] == [(4, 9)]
    assert not pruner.finish().happened


def test_a_run_that_ends_before_its_moment_is_pruned_at_its_end():
    model = build(PlainNet)
    pruner = attached(model, prune_at=0.4)
    train(model, pruner.optimizers[0], IMAGE, range(2))
    assert pruner.finish().removed == 9


def test_a_target_that_the_floor_forbids_says_so():
    pruner = attached(build(PlainNet), target_neuron_sparsity=0.9, floor=4)
    assert [len(k) for k in kept(pruner).values()] == [4, 4, 4]
    assert "stopped at neuron sparsity 0.333 of 0.9" in pruner.history[0].notes[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("target_neuron_sparsity", 0.0), ("target_neuron_sparsity", 1.0), ("prune_at", -0.1), ("prune_at", 1.0),
     ("ranking", "uniform")],
)  # fmt: skip
def test_nonsense_is_refused_by_name(name: str, value: Any):
    with pytest.raises(UsageError, match=name):
        RandomConfig(**{name: value})


@pytest.mark.parametrize("saved_at", [2, 4, 7])
def test_an_interrupted_run_continues_to_the_bit(saved_at: int):
    def parts(resume: bool = False):
        model = build(ResidualNet)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, attached(model, optimizer, prune_at=0.4, seed=3, resume=resume)

    model, optimizer, pruner = parts()
    train(model, optimizer, IMAGE, range(saved_at))
    buffer = io.BytesIO()
    torch.save([pruner.state_dict(), model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    train(model, optimizer, IMAGE, range(saved_at, 10))
    again, again_optimizer, resumed = parts(resume=True)
    for part, state in zip((resumed, again, again_optimizer), saved, strict=True):
        part.load_state_dict(state)
    train(again, again_optimizer, IMAGE, range(saved_at, 10))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert kept(resumed) == kept(pruner)
    assert not resumed.finish().happened


def test_when_it_is_due():
    assert [step for step in range(101) if RandomNeurons(RandomConfig(), 100).is_due(step)] == [0]
    assert [step for step in range(101) if RandomNeurons(RandomConfig(prune_at=0.25), 100).is_due(step)] == [25]
