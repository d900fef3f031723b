"""APoZ against the book: zeros counted behind every activation, rounds, both rules."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from demp.methods.apoz import Apoz, ApozConfig
from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet, all_alive, build, examples, loss_of, sgd, train
from thinning import covering, mostly_slow

STEPS = 20
EYES: dict[type[nn.Module], dict[str, Callable[[Tensor], Tensor]]] = {
    PlainNet: {"act2": lambda values: F.adaptive_avg_pool2d(values, 2)},
    ResidualNet: {"act2": lambda values: values.mean((2, 3))},
    Mlp: {},
}
"""What lies between an activation and those who read it."""
LAYERS = {
    PlainNet: ["act1", "act2", "act3"],
    ResidualNet: ["stem_act", "act1", "act2"],
    Mlp: ["act1", "act2"],
}


def judged_on(shape: tuple[int, ...]) -> Any:
    return lambda seed: [examples(shape, n=6, seed=900 + 7 * seed + i) for i in range(3)]


def attached(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options) -> demp.Pruner:
    shape = VECTOR if isinstance(model, Mlp) else IMAGE
    defaults = {"example_inputs": (examples(shape),), "batches": judged_on(shape), "total_steps": STEPS}
    return demp.methods.create("apoz", model, optimizer or sgd(model), **{**defaults, **options})


def kept(pruner: demp.Pruner) -> dict[str, list[int]]:
    return {layer.name: sorted(pruner.state.kept(layer.classes).tolist()) for layer in pruner.graph.layers}


class Silenced(nn.Module):
    """An activation whose removed neurons are silent."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.keep, self.seen = inner, torch.ones(0), torch.ones(0)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        if len(self.keep) == 0:
            self.keep = torch.ones(found.shape[1], dtype=found.dtype)
        self.seen = found.detach()
        return found * self.keep.view([1, -1] + [1] * (x.dim() - 2))


class Literal:
    """Hu et al. on a network whose removed neurons are silent."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model)
        self.eyes = EYES[type(model)]
        self.acts = {name: Silenced(getattr(self.model, name)) for name in LAYERS[type(model)]}
        for name, act in self.acts.items():
            setattr(self.model, name, act)
        self.model(examples(VECTOR if isinstance(model, Mlp) else IMAGE))
        self.total = sum(len(act.keep) for act in self.acts.values())

    def apoz(self, batches: list[Tensor]) -> dict[str, Tensor]:
        zeros = {name: torch.zeros(len(act.keep)) for name, act in self.acts.items()}
        counted = dict.fromkeys(zeros, 0)
        training = self.model.training
        self.model.eval()
        for batch in batches:
            self.model(batch)
            for name, act in self.acts.items():
                values = self.eyes.get(name, lambda values: values)(act.seen).movedim(1, 0).flatten(1)
                zeros[name] += (values == 0).sum(1)
                counted[name] += values.shape[1]
        self.model.train(training)
        return {name: z.double() / counted[name] for name, z in zeros.items()}

    def round(self, apoz: dict[str, Tensor], target: float, rule: str) -> None:
        names = list(self.acts)
        candidates = []
        for at, name in enumerate(names):
            keep = self.acts[name].keep.bool()
            live = apoz[name][keep]
            for i in keep.nonzero().flatten().tolist():
                if rule == "target" or apoz[name][i] > live.mean() + live.std(correction=0):
                    candidates.append((-float(apoz[name][i]), at, i))
        for _, at, i in sorted(candidates):
            keep = self.acts[names[at]].keep
            silent = sum(int((act.keep == 0).sum()) for act in self.acts.values())
            if silent < round(target * self.total) and keep.sum() > 1:
                keep[i] = 0.0

    def kept(self) -> dict[str, list[int]]:
        return {name: act.keep.nonzero().flatten().tolist() for name, act in self.acts.items()}


@pytest.mark.parametrize(("network", "rule"), covering((PlainNet, ResidualNet, Mlp), ("target", "deviation")))
def test_a_run_is_the_one_of_the_book_step_by_step(network: type[nn.Module], rule: str):
    model = build(network, seed=5)
    shape = VECTOR if network is Mlp else IMAGE
    twin = Literal(model)
    twin.model.load_state_dict(  # building it ran a forward, which batch norms remember
        {n.replace(".inner", ""): v for n, v in twin.model.state_dict().items()} | model.state_dict(), strict=True
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    twin_optimizer = torch.optim.Adam(twin.model.parameters(), lr=0.02)
    pruner = attached(model, optimizer, rule=rule, rounds=3, target_neuron_sparsity=0.6)
    done = 0
    for step in range(STEPS):
        (loss,) = train(model, optimizer, shape, range(step, step + 1))
        twin_optimizer.zero_grad()
        wanted = loss_of(twin.model, step, shape)
        wanted.backward()
        twin_optimizer.step()
        assert loss == pytest.approx(wanted.item(), abs=1e-8)
        if step + 1 in (6, 11, 16):
            done += 1
            target = 0.6 * done / 3 if rule == "target" else 0.6
            twin.round(twin.apoz(judged_on(shape)(step + 1)), target, rule)
        assert kept(pruner) == twin.kept()
    assert [report.step for report in pruner.history] == [6, 11, 16]
    removed = sum(report.removed for report in pruner.history)
    assert removed == round(0.6 * twin.total) if rule == "target" else 0 < removed < round(0.6 * twin.total)
    assert not pruner.finish().happened


def test_the_layers_may_share_the_target_alike():
    model = build(PlainNet)
    pruner = attached(model, ranking="layer", rounds=1, prune_from=0.0, prune_to=0.0)
    assert [len(k) for k in kept(pruner).values()] == [3, 3, 3]


def test_an_activation_without_zeros_gives_no_ranking():
    model = build(PlainNet, act=nn.GELU)
    pruner = attached(model, rounds=1, prune_from=0.0, prune_to=0.0)
    assert not pruner.history[0].happened
    assert "no output is exactly zero" in pruner.history[0].notes[0]


def test_with_everybody_speaking_the_deviation_rule_removes_nobody():
    model = all_alive(PlainNet)
    pruner = attached(model, rule="deviation", rounds=1, prune_from=0.0, prune_to=0.0)
    assert not pruner.history[0].happened


def test_a_target_that_the_floor_forbids_says_so():
    pruner = attached(build(PlainNet), rounds=1, prune_from=0.0, prune_to=0.0, target_neuron_sparsity=0.9, floor=4)
    assert [len(k) for k in kept(pruner).values()] == [4, 4, 4]
    assert "stopped at neuron sparsity 0.333 of 0.9" in pruner.history[0].notes[0]


def test_when_it_is_due():
    def due(**options) -> list[int]:
        method = Apoz(ApozConfig(**options), 100)
        return [step for step in range(101) if method.is_due(step)]

    assert due() == [30, 42, 55, 68, 80]
    assert due(rounds=1) == [30]
    assert due(rounds=3, prune_from=0.0, prune_to=1.0) == [0, 50, 100]


def test_rounds_that_fall_together_are_one_cut():
    model = build(PlainNet)
    pruner = attached(model, total_steps=4, rounds=9)  # at steps 1, 1, 2, 2, 2, 2, 3, 3, 3
    train(model, pruner.optimizers[0], IMAGE, range(4))
    assert [18 - report.neurons_after for report in pruner.history] == [round(9 * k / 9) for k in (2, 6, 9)]


def test_a_run_that_ends_early_makes_up_for_its_rounds():
    model = build(PlainNet)
    pruner = attached(model, total_steps=8, rounds=4)  # at steps 2, 4, 5, 6
    train(model, pruner.optimizers[0], IMAGE, range(3))
    assert [report.neurons_after for report in pruner.history] == [16]
    assert pruner.finish().neurons_after == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [("target_neuron_sparsity", 0.0), ("target_neuron_sparsity", 1.0), ("prune_from", -0.1), ("prune_from", 0.9),
     ("prune_to", 1.1), ("rule", "mean"), ("ranking", "uniform"), ("rounds", 0), ("scoring_batches", 0)],
)  # fmt: skip
def test_nonsense_is_refused_by_name(name: str, value: Any):
    with pytest.raises(UsageError, match=name):
        ApozConfig(**{name: value})


def test_without_batches_there_is_nothing_to_look_at():
    with pytest.raises(UsageError, match="apoz looks at activations on training examples; pass batches"):
        attached(build(PlainNet), batches=None)
    with pytest.raises(UsageError, match="no batch to look at"):
        attached(build(PlainNet), batches=lambda: [], rounds=1, prune_from=0.0, prune_to=0.0)


@pytest.mark.parametrize("saved_at", mostly_slow((3, 6, 8, 17), quick=(6, 8)))
def test_an_interrupted_run_continues_to_the_bit(saved_at: int):
    def parts(resume: bool = False):
        model = build(ResidualNet)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, attached(model, optimizer, rounds=3, resume=resume)

    model, optimizer, pruner = parts()
    train(model, optimizer, IMAGE, range(saved_at))
    buffer = io.BytesIO()
    torch.save([pruner.state_dict(), model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    train(model, optimizer, IMAGE, range(saved_at, STEPS))
    again, again_optimizer, resumed = parts(resume=True)
    for part, state in zip((resumed, again, again_optimizer), saved, strict=True):
        part.load_state_dict(state)
    train(again, again_optimizer, IMAGE, range(saved_at, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert not resumed.finish().happened
