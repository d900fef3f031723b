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
from demp.graph.inputs import copied
from demp.pruner.model import ShrinkingModel
from demp.surgery import LiveModel, Plan, VerifyOptions, execute

WARM_UP, REPEATS = 2, 7


class LatencyClock:
    """Times the networks that a model could become, in evaluation mode on the example inputs and their device."""

    def __init__(
        self, shrinking: ShrinkingModel, example_inputs: Any, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._shrinking, self._inputs, self._clock = shrinking, example_inputs, clock

    def seconds(self, removed: Tensor) -> float:
        """Median seconds of one forward of the network without ``removed``, which must include what is removed by now.

        Among several ranks the slowest of them counts, so all must ask.

        Raises:
            UsageError: the model is sharded, or ``removed`` gives back what is removed already.
        """
        model, now = self._shrinking.model, self._shrinking.state
        if self._shrinking.context.sharded:
            raise UsageError("a latency budget times the whole network, and fully_shard keeps pieces of it; use flops=")
        if bool((now.removed & ~removed).any()):
            raise UsageError("the latency of a network with neurons that are removed already cannot be measured")
        other = copy.deepcopy(model)
        plan = Plan(now, now.graph.at(removed), {})
        execute(LiveModel(other), plan, VerifyOptions(self._inputs, verify=False))
        mine = timed(other, self._inputs, self._clock)
        slowest = self._shrinking.context.highest((mine,))[0]
        return mine if slowest is None else slowest


def timed(model: nn.Module, example_inputs: Any, clock: Callable[[], float]) -> float:
    """Median seconds of one forward."""
    args, kwargs = copied(as_inputs(example_inputs))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found = []
    with quiet(model):
        for _ in range(WARM_UP + REPEATS):
            began = clock()
            model(*args, **kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found.append(clock() - began)
    return statistics.median(found[WARM_UP:])
