"""Channels that no activation touches leave models that are trained as people train them: streams and bottlenecks."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import comparing
import demp
import killing
from bottlenecks import Mobile, images, made
from streaming import network, words

TOTAL = 16


@dataclass(frozen=True)
class Kind:
    """A network, the option that offers its channels, some of them, and the tensor that shows how many are left."""

    make: Callable[[], Any]
    inputs: Callable[[int], Tensor]
    option: str
    dead: dict[str, list[int]]
    shown: Callable[[Any], int]

    def loss(self, out: Tensor, step: int) -> Tensor:
        goals = self.inputs(step).roll(1, 1).flatten() if self.option == "streams" else torch.arange(8) % 4
        return F.cross_entropy(out.flatten(0, -2), goals)

    @property
    def offer(self) -> Any:
        return {self.option: True}


KINDS = {
    "stream": Kind(
        lambda: network("torch", tied=True), words, "streams", {"stream": [1, 4]},
        lambda model: model.embed.weight.shape[1],
    ),
    "bottleneck": Kind(
        lambda: made(Mobile), lambda seed: images(seed, 8), "linear", {"blocks.0.project.linear": [1, 6]},
        lambda model: model.blocks[0].project.weight.shape[0] + model.blocks[1].project.weight.shape[0],
    ),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def train(kind: Kind, model: Any, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        kind.loss(model(kind.inputs(step)), step).backward()
        optimizer.step()
        optimizer.zero_grad()


class Run:
    """A run on a budget that removes such channels."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.model = kind, kind.make()
        self.dense = kind.shown(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        self.pruner = demp.DemP(
            self.model, self.optimizer, example_inputs=(kind.inputs(0),), total_steps=TOTAL, rounds=2,
            budget=demp.Budget(flops=0.5), **kind.offer,
        )  # fmt: skip

    def train(self, steps: range) -> None:
        train(self.kind, self.model, self.optimizer, steps)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("pruner", "model", "optimizer")}


@every_kind
def test_an_average_of_the_model_loses_the_same_channels(kind: Kind):
    run = Run(kind)
    average: Any = AveragedModel(run.model, avg_fn=lambda mean, now, count: mean + (now - mean) / 4)
    run.pruner.add_copy(average)
    for step in range(TOTAL):
        run.train(range(step, step + 1))
        average.update_parameters(run.model)
    run.pruner.finish()
    assert kind.shown(run.model) < run.dense
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in run.model.parameters()]
    changed = [gap for report in run.pruner.history for gap in report.copies.values()]
    assert changed and all(gap is not None and gap < 1e-10 for gap in changed)  # they had faded in the average, too


@every_kind
def test_a_resumed_run_is_bit_equal(kind: Kind):
    step, whole, saved = TOTAL // 2, Run(kind), io.BytesIO()
    whole.train(range(step))
    torch.save(whole.state(), saved)
    before = kind.shown(whole.model)
    whole.train(range(step, TOTAL))
    whole.pruner.finish()
    saved.seek(0)
    state, resumed = torch.load(saved, weights_only=True), Run(kind)
    for name in ("pruner", "model", "optimizer"):
        getattr(resumed, name).load_state_dict(state[name])
    assert kind.shown(resumed.model) == before
    resumed.train(range(step, TOTAL))
    resumed.pruner.finish()
    assert kind.shown(resumed.model) == kind.shown(whole.model) < whole.dense
    assert comparing.same_tree(whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"])
    assert comparing.same_state(comparing.state(whole.model), resumed.model)


def silent(kind: Kind, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    """A network whose channels ``kind.dead`` are zero, and its inputs."""
    model, x = kind.make().to(dtype), kind.inputs(0)
    x = x.to(dtype) if x.is_floating_point() else x
    killing.kill(model, demp.trace(model, (x,), **kind.offer), kind.dead)
    return model, x


def cut(kind: Kind, model: Any, x: Tensor, **options: Any) -> demp.CutReport:
    return demp.cut(model, kind.dead, example_inputs=(x,), **kind.offer, **options)


@every_kind
def test_channels_leave_inside_an_autocast_region(kind: Kind):
    """Whose casts of the weights from before the cut are dropped."""
    model, x = silent(kind, torch.float32)
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(x)
        before.float().sum().backward()
        model.zero_grad()
        dense = kind.shown(model)
        assert cut(kind, model, x).removed == 2
        after = model(x)
        after.float().sum().backward()
    assert kind.shown(model) == dense - 2 and all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    scale = float(before.detach().abs().max())
    assert float((after - before).detach().float().abs().max()) <= 2**-6 * scale  # the norm rounds otherwise
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(copy.deepcopy(model)(x), after)


@every_kind
def test_channels_of_a_model_in_half_precision(kind: Kind):
    live = kind.make().bfloat16()
    x = kind.inputs(0)
    x = x.bfloat16() if x.is_floating_point() else x
    with pytest.raises(demp.CutError, match=f"neurons of {next(iter(kind.dead))} are not dead on the example inputs"):
        cut(kind, live, x)
    model, x = silent(kind, torch.bfloat16)
    before = comparing.outputs(model, (x,))
    assert cut(kind, model, x).removed == 2
    scale = max(float(t.abs().max()) for t in before)
    assert comparing.gap(before, comparing.outputs(model, (x,))) <= 2**-6 * scale
    assert next(model.parameters()).dtype == torch.bfloat16


@every_kind
def test_a_compiled_model_loses_channels_between_two_steps(kind: Kind):
    torch._dynamo.reset()
    nets = [silent(kind)[0] for _ in range(2)]
    ways: list[Any] = [torch.compile(nets[0], backend="eager"), nets[1]]
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.01) for net in nets]
    dense = kind.shown(nets[0])
    for cuts in (False, True):
        for net, way, optimizer in zip(nets, ways, optimizers, strict=True):
            if cuts:
                cut(kind, net, kind.inputs(9), optimizer=optimizer, exact=False)
            train(kind, way, optimizer, range(1))
    assert kind.shown(nets[0]) == dense - 2
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-10


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # without gradients checkpointing says so
@pytest.mark.parametrize("reentrant", [True, False])
@every_kind
def test_checkpointed_blocks_have_the_gradients_of_plain_ones(kind: Kind, reentrant: bool):
    plain, x = silent(kind)
    model = copy.deepcopy(plain)
    for block in model.blocks:
        block.forward = Again(type(block).forward.__get__(block), reentrant)
    for net in (model, plain):
        net.eval()  # a batch norm that runs twice would move its statistics twice
        before = net(x).detach()
        assert cut(kind, net, x).removed == 2
        assert float((net(x) - before).detach().abs().max()) < 1e-10
        kind.loss(net(x), 0).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert float((ours.grad - theirs.grad).abs().max()) < 1e-12


class Again:
    """A forward that the backward runs again."""

    def __init__(self, forward: Callable[[Tensor], Tensor], reentrant: bool) -> None:
        self.forward, self.reentrant = forward, reentrant

    def __call__(self, x: Tensor) -> Any:
        return checkpoint(self.forward, x, use_reentrant=self.reentrant)
