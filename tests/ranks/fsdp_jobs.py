"""The runs of ``jobs`` with sharded parameters."""

from pathlib import Path
from typing import Any

import jobs
import torch
from loops import CUTS, PERIOD, TOTAL, WIDTH, Net, batch, net, pruner_of, refused, step_of, world
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import demp
from demp.parallel import local_piece, nonzero_along, sharded_like, whole_tensor


@torch.no_grad()
def kill(layer: nn.Linear, neuron: int) -> None:
    """As ``runs.kill_linear``, whether the layer is sharded or not."""
    for tensor, values in ((layer.weight, 0.01), (layer.bias, -5.0)):
        full = whole_tensor(tensor).clone()
        full[neuron] = full[neuron] * values if full.dim() > 1 else values
        local_piece(tensor).copy_(local_piece(sharded_like(full, tensor)))


def full(tensors: Any) -> list[Tensor]:
    return [whole_tensor(tensor.detach()).clone() for tensor in tensors]


def sharded(model: Net, how: str) -> Net:
    """Several ways to shard a model over all ranks."""
    options: dict[str, Any] = {}
    if how == "gathered until backward":
        options["reshard_after_forward"] = False
    elif how == "replicated":
        options["mesh"] = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    elif how == "hybrid":
        options["mesh"] = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))
    elif how == "mixed precision":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float64)
    if how != "root only":
        for layer in (model.fc1, model.fc2):
            fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


def six_cuts(how: str, optimizer_kind: str = "Adam") -> dict[str, Any]:
    """As ``jobs.six_cuts``."""
    model = sharded(net(), how)
    optimizer = getattr(torch.optim, optimizer_kind)(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, CUTS * PERIOD)
    objects = {name: id(p) for name, p in model.named_parameters()}
    model.fc1.weight.mark = "mine"  # type: ignore[attr-defined]
    pruner = pruner_of(model, optimizer)
    fingerprints = []
    for step in range(CUTS * PERIOD):
        if step % PERIOD == 0:
            kill(model.fc1, 0)
            kill(model.fc2, 1)
        step_of(model, optimizer, step)
        schedule.step()
        fingerprints.append(full(model.parameters()))
    model.set_reshard_after_forward(True)  # type: ignore[operator]
    with torch.no_grad():
        model(batch(0)[0])
    model.reshard()  # type: ignore[operator]
    key = "exp_avg" if optimizer_kind == "Adam" else "momentum_buffer"
    return {
        "history": [report.to_dict() for report in pruner.history],
        "parameters": fingerprints,
        "moments": full(optimizer.state[p][key] for p in model.parameters()),
        "same objects": {name: id(p) for name, p in model.named_parameters()} == objects,
        "mark": model.fc1.weight.mark,  # type: ignore[attr-defined]
        "local": tuple(local_piece(model.fc1.weight).shape),
    }


def ready(how: str = "blocks") -> tuple[Net, torch.optim.Optimizer]:
    """A sharded model after a step."""
    model = sharded(net(), how)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    step_of(model, optimizer, 0)
    optimizer.zero_grad()
    return model, optimizer


def outcome(model: Net, optimizer: torch.optim.Optimizer, work: Any) -> dict[str, Any]:
    """What an attempt to cut leaves behind, and that the run goes on as if there had been none."""
    before = full(model.parameters())
    error = refused(work)
    after = full(model.parameters())
    for step in range(1, 4):
        step_of(model, optimizer, step)
    return {
        "error": error,
        "unchanged": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
        "then": full(model.parameters()),
    }


def rolled_back() -> list[dict[str, Any]]:
    """A cut that rank 1's examples disprove, and a run without it."""
    found = []
    for attempt in (True, False):
        model, optimizer = ready()
        with torch.no_grad():
            for tensor, row in ((model.fc1.weight, [1.0, 0, 0, 0, 0, 0]), (model.fc1.bias, 0.0)):
                whole = whole_tensor(tensor).clone()
                whole[2] = torch.tensor(row, dtype=whole.dtype)
                local_piece(tensor).copy_(local_piece(sharded_like(whole, tensor)))
        x = torch.ones(4, 6, dtype=torch.float64) * (-1.0 if world()[0] == 0 else 1.0)

        def work(model: Net = model, optimizer: Any = optimizer, x: Tensor = x) -> None:
            demp.cut(model, {"act1": [2]}, example_inputs=(x,), optimizer=optimizer)

        found.append(outcome(model, optimizer, work if attempt else lambda: None))
    return found


def read_and_saved(folder: str) -> dict[str, Any]:
    """What demp says about a sharded model, and what it saves."""
    plain = net()
    model, _ = ready()
    graphs = [[(layer.name, layer.width) for layer in demp.trace(m, batch(0)[:1]).layers] for m in (plain, model)]
    costs = [demp.cost(m, batch(0)[:1]).to_dict() for m in (plain, model)]
    kill(model.fc1, 0)
    demp.cut(model, {"act1": [0]}, example_inputs=batch(0)[:1])
    demp.save(model, Path(folder) / "small", example_inputs=batch(0)[:1])
    torch.distributed.barrier()
    loaded = demp.load(Net, Path(folder) / "small")
    return {"graphs": graphs, "costs": costs, "saved": full(model.parameters()), "loaded": full(loaded.parameters())}


def resumed() -> dict[str, Any]:
    """A run that is broken off and taken up again by a new sharded model, and the same run in one piece."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_state_dict,
    )

    results = []
    options = StateDictOptions(full_state_dict=True)
    for broken in (False, True):
        model = sharded(net(), "blocks")
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        batches = [batch(100)[0]]
        pruner = pruner_of(model, optimizer, batches=batches)
        for step in range(4 * PERIOD):
            if step % PERIOD == 0:
                kill(model.fc1, 0)
            step_of(model, optimizer, step)
            if broken and step == 2 * PERIOD:
                state = pruner.state_dict()
                weights, moments = get_state_dict(model, optimizer, options=options)
                pruner.detach()
                model = sharded(net(), "blocks")
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
                pruner = pruner_of(model, optimizer, batches=batches)
                pruner.load_state_dict(state)
                set_state_dict(
                    model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options
                )  # fmt: skip
        results.append(full(model.parameters()))
    return {"whole": results[0], "broken": results[1]}


def unfit() -> list[tuple[str, str]]:
    """Ways of sharding that are refused."""
    found = []

    def attempt(shard: Any) -> None:
        model = net()
        shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        found.append(refused(lambda: pruner_of(model, optimizer)))

    def along_axis_1(model: Net) -> None:
        from torch.distributed.tensor import Shard

        fully_shard(model.fc2, shard_placement_fn=lambda p: Shard(p.dim() - 1))
        fully_shard(model)

    def by_tensor(model: Net) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

        parallelize_module(model.fc1, init_device_mesh("cpu", (2,)), ColwiseParallel())

    attempt(lambda model: fully_shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False)))
    attempt(lambda model: fully_shard([model.fc1, model.fc2]))
    attempt(along_axis_1)
    attempt(by_tensor)
    return found


def residual() -> dict[str, Any]:
    """As ``jobs.residual``; the module that owns the sum is itself sharded."""
    from jobs import residual as run

    def shard(model: nn.Module) -> nn.Module:
        fully_shard(model.conv1)
        fully_shard(model)
        return model

    return run(shard)


def in_parts() -> dict[str, Any]:
    """As ``jobs.in_parts``; the module that takes the parts is itself sharded."""

    def shard(model: nn.Module) -> nn.Module:
        fully_shard(model.parts)
        fully_shard(model)
        return model

    return jobs.in_parts(shard)


def saturated() -> dict[str, Any]:
    """As ``jobs.saturated``."""
    return jobs.saturated(lambda model: sharded(model, "blocks"), wrap=False)


def flags() -> list[bool]:
    """Where sharded tensors are set, along either axis."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(1)
    wholes = [(torch.rand(5, 3) > 0.7).double(), (torch.rand(5, 3) > 0.7).double(), (torch.rand(3) > 0.5).double()]
    axes = [0, 1, 0]
    wanted = nonzero_along(list(zip(wholes, axes, strict=True)))
    pieces: list[Any] = [distribute_tensor(t, mesh, [Shard(0)], src_data_rank=None) for t in wholes]
    found = nonzero_along([*zip(pieces, axes, strict=True), (wholes[0], 1)])
    return [torch.equal(a, b) for a, b in zip(found, [*wanted, (wholes[0] != 0).any(0)], strict=True)]


def pushed(name: str, shard: bool) -> dict[str, Any]:
    """A method that pushes slices of weights, whose factors follow the cut."""
    from demp.methods import create

    model = sharded(net(), "blocks") if shard else net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = create(
        name, model, optimizer, example_inputs=batch(0)[:1], total_steps=10, start_at=0.1, grow=0.3, stabilise=0.1,
        target_neuron_sparsity=0.25,
    )  # fmt: skip
    for step in range(10):
        step_of(model, optimizer, step)
    return {
        "gone": pruner.state.removed,
        "parameters": full(model.parameters()),
        "removed": [report.removed for report in pruner.history],
    }


def group_lasso() -> tuple[str, str]:
    """Norms of slices that lie in pieces."""
    from demp.methods import create

    model, optimizer = ready()
    options: dict[str, Any] = {"example_inputs": batch(0)[:1], "total_steps": 4, "strength": 0.1}
    return refused(lambda: create("prune-train", model, optimizer, **options))


def loss_penalty() -> tuple[str, str]:
    model, optimizer = ready()
    return refused(lambda: pruner_of(model, optimizer, penalty_in="loss"))


WIDTH_LEFT = WIDTH - CUTS


def on_a_budget(how: str) -> dict[str, Any]:
    """DemP to 40 % of the FLOPs: in one process (``alone``), under DDP, or with sharded parameters."""
    model = net()
    wrapped = DistributedDataParallel(model) if how == "ddp" else model if how == "alone" else sharded(model, how)
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=1e-3)
    pruner = demp.DemP(wrapped, optimizer, example_inputs=batch(0)[:1], total_steps=TOTAL, budget="flops=0.4", seed=5)
    for step in range(TOTAL):
        step_of(wrapped, optimizer, step)
    pruner.finish()
    return {
        "history": [(report.step, report.removed, report.hash, report.notes) for report in pruner.history],
        "parameters": full(model.parameters()),
        "share": pruner.flops / pruner.graph.dense.flops(),
    }
