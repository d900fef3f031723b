"""Heads of attention leave models that are trained as people train them: copies, half precision, checkpoints."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import comparing
import demp
import killing
from attentive import CHANNELS, HEADS, WIDTH, Attention, Block, Gated
from demp.surgery import record_of

NAME = "attention.attention"
TOTAL = 16


def made(spelling: str, kind: type[Attention] = Attention, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(1)
    return Block(kind(spelling)).to(dtype)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 7, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, goal = batch(step)
        F.mse_loss(model(x), goal).backward()
        optimizer.step()
        optimizer.zero_grad()


class Run:
    """A run on a budget that removes heads."""

    def __init__(self) -> None:
        self.model = made("unbound")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.pruner = demp.DemP(
            self.model, self.optimizer, example_inputs=batch(0)[:1], total_steps=TOTAL, budget=demp.Budget(flops=0.6)
        )

    def heads(self) -> int:
        return self.model.attention.out.weight.shape[1] // CHANNELS

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("pruner", "model", "optimizer")}


def test_an_average_of_the_model_loses_the_same_heads():
    run = Run()
    average: Any = AveragedModel(run.model, avg_fn=lambda mean, now, count: mean + (now - mean) / 4)
    run.pruner.add_copy(average)
    for step in range(TOTAL):
        train(run.model, run.optimizer, range(step, step + 1))
        average.update_parameters(run.model)
    run.pruner.finish()
    assert run.heads() < HEADS
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in run.model.parameters()]
    changed = [gap for report in run.pruner.history for gap in report.copies.values()]
    assert changed and all(
        gap is not None and gap < 1e-10 for gap in changed
    )  # in the average they had faded to zero, too


def test_a_resumed_run_that_removes_heads_is_bit_equal():
    step, whole, saved = TOTAL // 2, Run(), io.BytesIO()
    train(whole.model, whole.optimizer, range(step))
    torch.save(whole.state(), saved)
    before = whole.heads()
    train(whole.model, whole.optimizer, range(step, TOTAL))
    whole.pruner.finish()
    saved.seek(0)
    state, resumed = torch.load(saved, weights_only=True), Run()
    for name in ("pruner", "model", "optimizer"):
        getattr(resumed, name).load_state_dict(state[name])
    assert resumed.heads() == before
    train(resumed.model, resumed.optimizer, range(step, TOTAL))
    resumed.pruner.finish()
    assert resumed.heads() == whole.heads() < HEADS
    assert comparing.same_tree(whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"])
    assert comparing.same_state(comparing.state(whole.model), resumed.model)


def test_moments_follow_two_cuts_as_in_a_twin_that_keeps_all_heads():
    model, twin = made("unbound"), made("unbound", Gated)
    steps = [torch.optim.AdamW(net.parameters(), lr=0.01) for net in (model, twin)]
    for at, (go, gone) in enumerate([([1], [1]), ([0, 2], [0, 3])]):  # the second in the numbers of what is left
        for net, optimizer in zip((model, twin), steps, strict=True):
            train(net, optimizer, range(3 * at, 3 * at + 3))
        twin.attention.factors[gone] = 0
        demp.cut(model, {NAME: go}, example_inputs=batch(99)[:1], optimizer=steps[0], exact=False)
    for net, optimizer in zip((model, twin), steps, strict=True):
        train(net, optimizer, range(6, 9))
    record = record_of(model)
    assert record is not None and model.attention.out.weight.shape == (WIDTH, CHANNELS)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        for mine, other in [(ours, theirs)] + [
            (steps[0].state[ours][key], steps[1].state[theirs][key]) for key in ("exp_avg", "exp_avg_sq")
        ]:
            for axis in range(other.dim()):
                other = other.index_select(axis, record.kept.get((name, axis), torch.arange(other.shape[axis])))
            assert float((mine - other).detach().abs().max()) < 1e-10, name


class Checkpointed(Block):
    """Whose attention the backward runs again."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        out: Any = checkpoint(self.attention, self.norm(x), use_reentrant=self.reentrant)
        return self.head(self.last(x + out))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # without gradients checkpointing says so
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_attention_has_the_gradients_of_the_plain_one(reentrant: bool):
    plain: Any = Block(Attention("numbered")).double()
    model: Any = Checkpointed(Attention("numbered")).double()
    model.load_state_dict(plain.state_dict())
    model.reentrant = reentrant
    x, goal = batch(0)
    for net in (model, plain):
        graph = demp.trace(net, (x,))
        killing.kill(net, graph, {NAME: [2]})
        before = net(x).detach()
        assert demp.cut(net, {NAME: [2]}, example_inputs=(x,), graph=graph).removed == 1
        assert float((net(x) - before).detach().abs().max()) < 1e-12
        F.mse_loss(net(x), goal).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_heads_leave_inside_an_autocast_region():
    """Whose casts of the weights from before the cut are dropped."""
    model, x = made("unbound", dtype=torch.float32), batch(0)[0].float()
    killing.kill(model, demp.trace(model, (x,)), {NAME: [0]})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(x)
        before.sum().backward()
        model.zero_grad()
        assert demp.cut(model, {NAME: [0]}, example_inputs=(x,)).removed == 1
        after = model(x)
        after.sum().backward()
    assert model.attention.qkv.weight.grad.shape == (3 * 3 * CHANNELS, WIDTH)
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, before)  # zeros are all that the sums lost
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(copy.deepcopy(model)(x), after)


def test_heads_of_a_model_in_half_precision():
    model, x = made("unbound", dtype=torch.bfloat16), batch(0)[0].bfloat16()
    with pytest.raises(demp.CutError, match=f"neurons of {NAME} are not dead on the example inputs"):
        demp.cut(model, {NAME: [3]}, example_inputs=(x,))
    killing.kill(model, demp.trace(model, (x,)), {NAME: [3]})
    before = comparing.outputs(model, (x,))
    assert demp.cut(model, {NAME: [3]}, example_inputs=(x,)).removed == 1
    assert model.attention.qkv.weight.dtype == torch.bfloat16
    assert comparing.gap(before, comparing.outputs(model, (x,))) == 0


def test_a_compiled_model_loses_heads_between_two_steps():
    torch._dynamo.reset()
    nets = [made("unbound") for _ in range(2)]
    ways: list[Any] = [torch.compile(nets[0], backend="eager"), nets[1]]
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.01) for net in nets]
    for cut in (False, True):
        for net, way, optimizer in zip(nets, ways, optimizers, strict=True):
            if cut:
                demp.cut(net, {NAME: [0]}, example_inputs=batch(9)[:1], optimizer=optimizer, exact=False)
            train(way, optimizer, range(1))
    assert nets[0].attention.qkv.weight.shape == (3 * 3 * CHANNELS, WIDTH)
    for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-10
