"""One training run, written as a plain loop, that every integration must repeat to the bit."""

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, TensorDataset

import demp
from runs import IMAGE, PlainNet, batch_at, build, examples, same

EPOCHS, BATCHES, ACCUMULATE, CLIP = 3, 16, 2, 0.5
STEPS = EPOCHS * BATCHES // ACCUMULATE
MIDDLE = STEPS // EPOCHS
"""Optimizer steps after which the integrations write the checkpoint that they resume from: an epoch is over."""
STRONG = {"peak_strength": 0.3, "peak_noise_std": 0.1, "period": 3, "seed": 5}
JUDGES: dict[str, dict[str, Any]] = {
    "window": {"window_steps": 4},
    "batches": {"batches": [examples(IMAGE, n=4, seed=31), examples(IMAGE, n=4, seed=32)]},
}
"""Ways to judge death. The window of four steps is always half open when a checkpoint is written."""
EXAMPLE = examples(IMAGE)


def options(judge: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """What each pruner is given."""
    return tree_map_only(torch.Tensor, lambda x: x.to(dtype), {"example_inputs": (EXAMPLE,), **STRONG, **JUDGES[judge]})


def net(dtype: torch.dtype = torch.float64) -> PlainNet:
    """The network before training."""
    return build(PlainNet, seed=1, dtype=dtype)


def dataset(dtype: torch.dtype = torch.float64) -> TensorDataset:
    """The examples of an epoch."""
    batches = [batch_at(step, IMAGE, dtype=dtype) for step in range(BATCHES)]
    return TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))


def loader(dtype: torch.dtype = torch.float64) -> DataLoader[Any]:
    """The batches of an epoch, always in the same order."""
    return DataLoader(dataset(dtype), batch_size=16)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Adam."""
    return torch.optim.Adam(model.parameters(), lr=0.03)


def scheduler_of(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Down to half over the run."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, falling)


def falling(step: int) -> float:
    """Factor of the learning rate."""
    return 1 - 0.5 * step / STEPS


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    """What is learnt."""
    return F.cross_entropy(logits, y)


def scaler_that_overflows() -> torch.amp.GradScaler:
    """Doubles its scale after every second step that was finite, so that some are not."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=2)


@cache
def plain(judge: str, dtype: torch.dtype = torch.float64, autocast: torch.dtype | None = None) -> demp.Pruner:
    """The run as a plain loop; in float16 with a scaler, of whose steps some overflow and are skipped."""
    model = net(dtype)
    half = autocast == torch.float16
    scaler = scaler_that_overflows() if half else torch.amp.GradScaler("cpu", enabled=False)
    optimizer = optimizer_of(model)
    scheduler = scheduler_of(optimizer)
    pruner = demp.DemP(model, optimizer, total_steps=STEPS, **options(judge, dtype))
    for _ in range(EPOCHS):
        for index, (x, y) in enumerate(loader(dtype)):
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = loss_of(model(x), y) / ACCUMULATE
            scaler.scale(loss).backward()
            if (index + 1) % ACCUMULATE == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                optimizer.zero_grad()
    pruner.finish()
    assert sum(report.happened for report in pruner.history) >= 2
    assert (pruner.step < STEPS) == half
    return pruner


def check_same_run(mine: demp.Pruner, reference: demp.Pruner, network: Any, *, resumed_at: int = 0) -> None:
    """The same weights, moments, cuts and numbers, to the bit."""
    assert same(network, reference.model)
    ours, theirs = mine.optimizers[0].state_dict()["state"], reference.optimizers[0].state_dict()["state"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k][name], theirs[k][name]) for k in ours for name in ("exp_avg", "exp_avg_sq", "step"))
    assert mine.metrics() == reference.metrics()
    since = [r for r in reference.history if r.step is not None and r.step > resumed_at]
    assert [(r.step, r.hash, r.removed) for r in mine.history] == [(r.step, r.hash, r.removed) for r in since]
    assert sum(report.happened for report in mine.history) >= (1 if resumed_at else 2)
    assert mine.step == reference.step


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """Here a training is stopped by `Stop`."""
    with contextlib.suppress(Stop):
        yield
        raise AssertionError("the training was not stopped")


class Stop(Exception):
    """The process dies."""
