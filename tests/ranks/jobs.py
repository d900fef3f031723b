"""What the ranks of the tests do: plain training loops, some neurons killed on the way."""

from typing import Any

import torch
from loops import CUTS, PERIOD, WIDTH, batch, kill_norm, kill_rows, net, pruner_of, ready, step_of, world
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import demp
from demp.graph.calls import model_calls
from demp.graph.joins import model_joins
from demp.parallel import whole_tensor
from planned import Rows
from runs import IMAGE, ResidualNet, batch_at, build, examples, kill_linear, quiet_demp


def six_cuts(settings: dict[str, Any] | None, *, accumulate: bool = False, hook: bool = False) -> dict[str, Any]:
    """A run with six cuts; ``settings``: those of the wrapper, None without one."""
    model = net()
    wrapped = model if settings is None else DistributedDataParallel(model, **settings)
    if hook:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        wrapped.register_comm_hook(None, allreduce_hook)
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, CUTS * PERIOD)
    pruner = pruner_of(wrapped, optimizer)
    fingerprints = []
    for step in range(CUTS * PERIOD):
        if step % PERIOD == 0:
            kill_linear(model.fc1, [0])
            kill_linear(model.fc2, [1])
        if accumulate and (step or not settings or not settings.get("static_graph")):  # torch records the first one
            halves = [t.chunk(2) for t in batch(step)]
            optimizer.zero_grad()
            with wrapped.no_sync():
                (F.cross_entropy(wrapped(halves[0][0]), halves[1][0]) / 2).backward()
            (F.cross_entropy(wrapped(halves[0][1]), halves[1][1]) / 2).backward()
            optimizer.step()
        else:
            step_of(wrapped, optimizer, step)
        schedule.step()
        fingerprints.append([p.detach().clone() for p in model.parameters()])
    return {
        "history": [report.to_dict() for report in pruner.history],
        "parameters": fingerprints,
        "moments": [optimizer.state[p]["exp_avg"].clone() for p in wrapped.parameters()],
        "hooks": len(getattr(wrapped, "_comm_hooks", ())),
    }


def judged_on_different_examples() -> dict[str, Any]:
    """Neuron 2 is dead on rank 0's examples, 4 on rank 1's, 6 on both."""
    model, wrapped, optimizer = ready()
    with torch.no_grad():
        for neuron, sign in ((2, 1.0), (4, -1.0)):
            model.fc1.weight[neuron] = 0.0
            model.fc1.weight[neuron, 0] = sign
            model.fc1.bias[neuron] = 0.0
    kill_linear(model.fc1, [6])
    x = torch.ones(4, 6, dtype=torch.float64) * (-1.0 if world()[0] == 0 else 1.0)
    pruner = pruner_of(wrapped, optimizer, batches=[x], peak_strength=0.0, peak_noise_std=0.0)
    dead = pruner.detect().dead["act1"].nonzero().flatten().tolist()
    alone = demp.alive(model, [x])["act1"].logical_not().nonzero().flatten().tolist()
    return {"together": dead, "alone": alone, "examples": pruner.detect().examples}


def inside_a_larger_module() -> dict[str, Any]:
    """The wrapper holds a parent of the model; the pruner is given the bare model, before the wrapper exists."""
    model = net()
    parent = nn.ModuleDict({"net": model})
    parent.forward = lambda x: model(x)  # type: ignore[method-assign]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    pruner = pruner_of(model, optimizer)
    wrapped = DistributedDataParallel(parent)
    for step in range(2 * PERIOD):
        if step % PERIOD == 0:
            kill_linear(model.fc1, [0])
        step_of(wrapped, optimizer, step)
    return {"removed": [r.removed for r in pruner.history], "parameters": [p.detach() for p in model.parameters()]}


def read_through_the_wrapper() -> list[bool]:
    """What demp says about a wrapped model is what it says about the model."""
    model, wrapped, _ = ready()
    kill_linear(model.fc1, [3])
    x = batch(0)[0]
    said = [
        (
            [(layer.name, layer.reads) for layer in demp.trace(m, (x,)).layers],
            {name: flags.tolist() for name, flags in demp.alive(m, [x]).items()},
            demp.cost(m, (x,)),
            demp.inspect(m, (x,)).rows,
        )
        for m in (model, wrapped)
    ]
    return [a == b for a, b in zip(*said, strict=True)]


def residual(shard: Any = None) -> dict[str, Any]:
    """A residual network in which channels of one block output only are dead, so that a sum becomes a join."""
    model = build(ResidualNet)
    trained = DistributedDataParallel(model) if shard is None else shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    mine = slice(world()[0], None, world()[1])
    pruner = quiet_demp(trained, optimizer, batches=[examples(IMAGE, seed=1)[mine]], period=3)
    for step in range(7):
        if step in (0, 3):
            for norm, neuron in ((model.stem_norm, step // 3), (model.norm1, 1), (model.norm2, 4 - step // 3)):
                kill_norm(norm, neuron)
        optimizer.zero_grad()
        x, y = batch_at(step, IMAGE)
        F.cross_entropy(trained(x[mine]), y[mine]).backward()
        optimizer.step()
    return {
        "removed": [report.removed for report in pruner.history],
        "joined": sorted(model_joins(model)),
        "parameters": [whole_tensor(p.detach()).clone() for p in model.parameters()],
    }


def in_parts(wrap: Any = lambda model: model) -> dict[str, Any]:
    """A network that takes a hidden layer in halves, which two cuts leave unequal."""
    torch.manual_seed(3)
    model = Rows().double()
    with torch.no_grad():
        for layer in (model.first, model.parts.one):
            layer.bias.fill_(3.0)
    trained = wrap(model)
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-3)
    pruner = pruner_of(trained, optimizer, batches=[batch(100)[0]], period=3, total_steps=9, peak_noise_std=0.0)
    for step in range(8):
        if step in (0, 3):
            kill_rows(model.first, [0, 1] if step == 0 else [0, 9])
        step_of(trained, optimizer, step)
    (parts,) = (plans for path, plans in model_calls(model).items() if path == "parts")
    return {
        "history": [report.to_dict() for report in pruner.history],
        "parts": parts["split:0"].sizes,
        "parameters": [whole_tensor(p.detach()).clone() for p in model.parameters()],
    }


def folded() -> dict[str, Any]:
    """Means of GELU neurons move into their readers: those of all ranks together."""
    model, wrapped, optimizer = ready(nn.GELU)
    with torch.no_grad():
        model.fc1.bias[:4] = -1.0
    report = demp.cut(
        wrapped, {"act1": [0, 1, 2, 3]}, example_inputs=batch(0)[:1], optimizer=optimizer, exact=False, fold=True
    )
    step_of(wrapped, optimizer, 1)
    return {"report": report.to_dict(), "parameters": [p.detach() for p in model.parameters()]}


def saturated(shard: Any = None, wrap: bool = True) -> dict[str, Any]:
    """Nearly constant neurons leave: some constants go into a bias, others are carried. Each rank has its examples."""
    model = net(nn.GELU)
    torch.manual_seed(11)
    model.head = nn.Linear(WIDTH, 3, bias=False).double()
    with torch.no_grad():
        for layer in (model.fc1, model.fc2):
            layer.weight[:4] *= 1e-3
            layer.bias[:4] = torch.tensor([0.5, -0.4, 1.0, 2.0], dtype=torch.float64)
    if shard is not None:
        model = shard(model)
    wrapped = DistributedDataParallel(model) if wrap else model
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3)
    pruner = pruner_of(
        wrapped, optimizer, batches=[batch(100)[:1], batch(101)[:1]], criterion="saturated", max_drift=None,
        total_steps=3 * PERIOD,
    )  # fmt: skip
    for step in range(3 * PERIOD):
        step_of(wrapped, optimizer, step)
    detection = pruner.detect()
    return {
        "history": [report.to_dict() for report in pruner.history],
        "parameters": [whole_tensor(p.detach()).clone() for p in model.parameters()],
        "deviations": [d.nan_to_num(-1.0) for d in detection.deviations.values()],
    }


def resumed() -> dict[str, Any]:
    """A run that is broken off and taken up again by a new wrapper, and the same run in one piece."""
    results = []
    for broken in (False, True):
        model = net()
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3)
        batches = [batch(100)[0]]
        pruner = pruner_of(wrapped, optimizer, batches=batches)
        for step in range(4 * PERIOD):
            if step % PERIOD == 0:
                kill_linear(model.fc1, [0])
            step_of(wrapped, optimizer, step)
            if broken and step == 2 * PERIOD:
                states = [pruner.state_dict(), wrapped.state_dict(), optimizer.state_dict()]
                pruner.detach()
                model = net()
                wrapped = DistributedDataParallel(model)
                optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3)
                pruner = pruner_of(wrapped, optimizer, batches=batches)
                for holder, state in zip((pruner, wrapped, optimizer), states, strict=True):
                    holder.load_state_dict(state)
        results.append([p.detach().clone() for p in model.parameters()])
    return {"whole": results[0], "broken": results[1]}


def shared_buffers() -> list[Any]:
    """Running statistics at a check are rank 0's, as they will be in the next forward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=1e-3)
    pruner = pruner_of(wrapped, optimizer, period=2)
    step_of(wrapped, optimizer, 0)
    apart = model[1].running_mean.clone()
    step_of(wrapped, optimizer, 1)
    assert len(pruner.history) == 1
    return [apart, model[1].running_mean.clone()]
