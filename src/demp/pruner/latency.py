"""How long a forward takes at the widths that a choice of removed neurons would leave: measured on a copy."""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity.observe import quiet
from demp.errors import UsageError
from demp.graph.forward import as_inputs
from demp.graph.inputs import copied, tensors_in
from demp.pruner.model import ShrinkingModel
from demp.surgery import LiveModel, Plan, VerifyOptions, execute

WARM_UP = 2
TURNS = 9
"""Forwards of each of two networks, at least."""
LONG_ENOUGH, MOST_TURNS = 0.1, 200
"""More turns are taken until they have lasted so many seconds: short forwards vary more."""


class LatencyClock:
    """Times the networks that a model could become, in evaluation mode on the example inputs and their device.

    It keeps a copy of the dense network, which runs in turns with whatever is timed: what else the machine does then
    slows both.

    Raises:
        UsageError: the parameters are pieces of tensors, or no forward can run on their devices.
    """

    def __init__(
        self, shrinking: ShrinkingModel, example_inputs: Any, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._shrinking, self._inputs, self._clock = shrinking, example_inputs, clock
        model = shrinking.model
        if shrinking.context.sharded:
            raise UsageError("a latency budget times the whole network, and fully_shard keeps pieces of it; use flops=")
        validate_devices(model, example_inputs)
        self._dense = copy.deepcopy(model)
        shrinking.measured.append(self._dense)

    def seconds(self, removed: Tensor) -> tuple[float, float]:
        """Median seconds of one forward without ``removed``, which must include what is removed by now, and dense.

        Among several ranks the slowest of them counts, so all must ask.

        Raises:
            UsageError: ``removed`` gives back what is removed already.
        """
        model, now = self._shrinking.model, self._shrinking.state
        if bool((now.removed & ~removed).any()):
            raise UsageError("the latency of a network with neurons that are removed already cannot be measured")
        other = copy.deepcopy(model)
        plan = Plan(now, now.graph.at(removed), {})
        execute(LiveModel(other), plan, VerifyOptions(self._inputs, verify=False))
        mine = in_turns((other, self._dense), self._inputs, self._clock)
        slowest = self._shrinking.context.highest(mine)
        return slowest[0] or mine[0], slowest[1] or mine[1]


def validate_devices(model: nn.Module, example_inputs: Any) -> None:
    """Raise if a forward cannot be timed where parameters and inputs are.

    Raises:
        UsageError: something is on the meta device, or parameters and inputs are on several devices.
    """
    inputs = {t.device for t in tensors_in(as_inputs(example_inputs))}
    devices = {p.device for p in model.parameters()}
    if any(device.type == "meta" for device in devices | inputs):
        raise UsageError("a latency budget times forwards, and nothing runs on the meta device; use flops=")
    if len(devices) == 1 and inputs - devices:
        where = ", ".join(sorted(map(str, inputs)))
        raise UsageError(
            f"a latency budget times forwards of the example inputs, which are on {where} while the model is on "
            f"{devices.pop()}; move them there"
        )


def in_turns(models: tuple[nn.Module, nn.Module], inputs: Any, clock: Callable[[], float]) -> tuple[float, float]:
    """Median seconds of one forward of each of two networks that run one after the other, again and again."""
    args, kwargs = copied(as_inputs(inputs))
    device = next((p.device for p in models[0].parameters()), torch.device("cpu"))
    found: list[tuple[float, float]] = []
    with quiet(models[0]), quiet(models[1]):
        began = clock()
        while len(found) < WARM_UP + TURNS or (clock() - began < LONG_ENOUGH and len(found) < MOST_TURNS):
            first, second = (seconds(model, args, kwargs, device, clock) for model in models)
            found.append((first, second))
    mine, other = zip(*found[WARM_UP:], strict=True)
    return statistics.median(mine), statistics.median(other)


def seconds(model: nn.Module, args: Any, kwargs: Any, device: torch.device, clock: Callable[[], float]) -> float:
    """How many seconds one forward takes."""
    began = clock()
    model(*args, **kwargs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began
