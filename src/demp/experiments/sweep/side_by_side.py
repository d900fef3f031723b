"""A training step of the network that came out beside one of the dense network, in turns."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demp.errors import UsageError
from demp.train import TrainConfig, artifact
from demp.train.layout import layout_of
from demp.train.models import build
from demp.train.optim import build_optimizer
from demp.train.run import AUTOCAST, model_arguments, resolve_device
from demp.train.seeds import generator

PAIRS, WARM_UP = 11, 2


def step_over_dense(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Return the median over pairs of step times, pruned over dense, and the ratio of every pair.

    Neither has a pruner any more; zeros that masks left are multiplied, as they are in any use of the network.

    Raises:
        UsageError: the folder holds another network than the config asks for.
    """
    device = torch.device(resolve_device(config.device))
    builder = artifact.builder_of(folder, trust=True)
    facts = builder["data"]
    if builder["model"] != model_arguments(config.model, artifact.facts_of(builder, folder)):
        raise UsageError(f"{folder} holds the model of another run; move it away, and this one is made again")
    batch = max(1, config.batch_size // config.accumulate)
    draw = generator("cpu", 0, "side by side")
    x = torch.randn(batch, facts["channels"], facts["image_size"], facts["image_size"], generator=draw).to(device)
    y = torch.randint(facts["num_classes"], (batch,), generator=draw).to(device)
    small, dense = (
        step_of(model.to(device), config, x, y)
        for model in (artifact.load(folder, trust=True)[0], build(**builder["model"]))
    )
    ratios = pairs(small, dense)
    return {"step_over_dense": statistics.median(ratios), "step_pairs": ratios}


def step_of(model: nn.Module, config: TrainConfig, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return a function that makes one plain training step of a model, and is done when it returns."""
    layout = layout_of(model, config.channels_last)
    model = model.to(memory_format=layout).train()  # pyright: ignore[reportCallIssue]
    x = x.contiguous(memory_format=layout)
    optimizer = build_optimizer(model, config.optimizer)
    dtype = AUTOCAST.get(config.precision)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    return step


def pairs(ours: Callable[[], None], plain: Callable[[], None]) -> list[float]:
    """Return ratios of times of two functions that run in turns; which of the two goes first alternates."""
    for _ in range(WARM_UP):
        ours()
        plain()
    ratios = []
    for index in range(PAIRS):
        order = (ours, plain) if index % 2 == 0 else (plain, ours)
        taken = {call: seconds(call) for call in order}
        ratios.append(taken[ours] / taken[plain])
    return ratios


def seconds(call: Callable[[], None]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
