"""What the ranks of the tests do where a cut cannot be made on one of them, or on none."""

from typing import Any

import torch
from loops import PERIOD, WIDTH, batch, net, pruner_of, ready, refused, step_of, world
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import demp
from demp.errors import CutError
from runs import kill_linear


def outcome(model: nn.Module, wrapped: nn.Module, optimizer: torch.optim.Optimizer, work: Any) -> dict[str, Any]:
    """What an attempt to cut leaves behind, and that the run goes on."""
    before = [p.detach().clone() for p in model.parameters()]
    error = refused(work)
    after = [p.detach().clone() for p in model.parameters()]
    for step in range(1, 4):
        step_of(wrapped, optimizer, step)
    return {
        "error": error,
        "unchanged": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
        "then": [p.detach().clone() for p in model.parameters()],
    }


def cut_with_other_plans() -> dict[str, Any]:
    """Rank 1 wants another neuron."""
    model, wrapped, optimizer = ready()
    kill_linear(model.fc1, [0, 1])
    dead = {"act1": [world()[0]]}
    return outcome(
        model, wrapped, optimizer,
        lambda: demp.cut(wrapped, dead, example_inputs=batch(0)[:1], optimizer=optimizer),
    )  # fmt: skip


def cut_that_one_rank_disproves() -> dict[str, Any]:
    """A neuron that is dead on rank 0's examples only."""
    model, wrapped, optimizer = ready()
    with torch.no_grad():
        model.fc1.weight[2] = 0.0
        model.fc1.weight[2, 0] = 1.0
        model.fc1.bias[2] = 0.0
    x = torch.ones(4, 6, dtype=torch.float64) * (-1.0 if world()[0] == 0 else 1.0)
    return outcome(
        model, wrapped, optimizer,
        lambda: demp.cut(wrapped, {"act1": [2]}, example_inputs=(x,), optimizer=optimizer),
    )  # fmt: skip


def cut_that_one_rank_cannot_prove() -> dict[str, Any]:
    """After the cut the forward raises on rank 1."""
    model, wrapped, optimizer = ready()
    kill_linear(model.fc1, [0])

    def look(module: nn.Module, args: Any) -> None:
        if world()[0] == 1 and not model.training and model.fc1.out_features < WIDTH:
            raise RuntimeError("no such width here")

    graph = demp.trace(model, batch(0)[:1])
    handle = model.register_forward_pre_hook(look)
    found = outcome(
        model, wrapped, optimizer,
        lambda: demp.cut(wrapped, {"act1": [0]}, example_inputs=batch(0)[:1], optimizer=optimizer, graph=graph),
    )  # fmt: skip
    handle.remove()
    return found


def other_pruners() -> list[tuple[str, str]]:
    """Rank 1 gets other arguments."""
    found = []
    rank = world()[0]
    for options in ({"seed": rank}, {"total_steps": 30 + rank}, {"peak_strength": 0.1 + rank}):
        _, wrapped, optimizer = ready()
        found.append(refused(lambda w=wrapped, o=optimizer, more=options: pruner_of(w, o, **more)))
    return found


def unfit_wrappers() -> list[tuple[str, str]]:
    """A hook with a memory."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power

    _, wrapped, optimizer = ready()
    wrapped.register_comm_hook(power.PowerSGDState(None, start_powerSGD_iter=10), power.powerSGD_hook)
    return [refused(lambda: pruner_of(wrapped, optimizer))]


def one_rank_waits() -> list[Any]:
    """Rank 1 holds a forward whose backward may still come when a check is due: it has saved no weight that steps."""
    model, wrapped, optimizer = ready()
    kill_linear(model.fc1, [0])
    pruner = pruner_of(wrapped, optimizer, period=2)
    waiting = model.fc1(batch(9)[0]) if world()[0] == 1 else None
    kept = [len(pruner.history)]
    for step in range(1, 3):
        step_of(wrapped, optimizer, step)
        if step == 1:
            waiting = model.fc1(batch(9)[0]) if world()[0] == 1 else None
    kept.append(len(pruner.history))
    del waiting
    step_of(wrapped, optimizer, 3)
    return [*kept, [(report.step, report.removed) for report in pruner.history]]


def one_rank_cannot() -> dict[str, Any]:
    """At the first check rank 1 cannot cut; both have told the same, have the same network, and cut at the next."""
    from demp.surgery import transaction

    model = net()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3)
    pruner = pruner_of(wrapped, optimizer, batches=[batch(100)[0]])
    kill_linear(model.fc1, [0, 5])
    guard = transaction.raise_if_unshrinkable

    def refuse(*_: Any) -> None:
        raise CutError("no room on this rank")

    if world()[0] == 1:
        transaction.raise_if_unshrinkable = refuse
    try:
        for step in range(PERIOD):
            step_of(wrapped, optimizer, step)
    finally:
        transaction.raise_if_unshrinkable = guard
    skipped = [tuple(p.shape) for p in model.parameters()]
    step_of(wrapped, optimizer, PERIOD)
    return {
        "notes": [report.notes for report in pruner.history], "skipped": skipped,
        "removed": [report.removed for report in pruner.history], "steps": [r.step for r in pruner.history],
        "parameters": [p.detach().clone() for p in model.parameters()],
    }  # fmt: skip
