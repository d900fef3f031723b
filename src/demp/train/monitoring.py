"""The dead neurons of a run over time: looks at it between two steps, and changes nothing in it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from demp.activity import Deaths, Detection, agreed, probe
from demp.graph import GraphState, trace
from demp.parallel import ALONE, Context, user_module
from demp.train.config import TrainConfig
from demp.train.data import Data
from demp.train.seeds import generator

SHARE, WHOLE = "dead/share", "dead/share_whole"
SATURATED = "saturated/share"


class Monitor:
    """Looks for dead neurons on un-augmented training images of its own, as `demp.train.MonitorConfig` says.

    ``trained`` is the model, or what wraps it, and ``context`` who trains it; ``pruner`` is None in dense training;
    ``placed`` brings images into the memory layout that the model has by then.
    """

    def __init__(
        self,
        config: TrainConfig,
        trained: nn.Module,
        pruner: Any,
        data: Data,
        *,
        example: tuple[Tensor, ...],
        placed: Callable[[Tensor], Tensor],
        context: Context = ALONE,
    ) -> None:
        self.config, self._seed = config.monitor, config.seed
        self._model, self._context = user_module(trained), context
        self._pruner, self._data, self._placed = pruner, data, placed
        self._total_steps = config.total_steps(data.facts.train_size)
        if not self.config.every_steps:
            return
        self._graph = trace(self._model, example) if pruner is None else pruner.graph
        self._deaths = Deaths(self._graph)

    def is_due(self, step: int) -> bool:
        """Is a look due now, between two steps, after ``step`` of them?"""
        every = self.config.every_steps
        return bool(every) and (step % every == 0 or step == self._total_steps)

    def look(self, step: int) -> dict[str, float]:
        """The metrics of docs/files.md after so many steps; among several ranks all must ask, and all hear the same."""
        self._context.share_buffers()
        found = self._deaths.add(self._detect(self.config.examples, step), self._state())
        values = {
            SHARE: found.dead_share,
            "dead/neurons": sum(layer.dead for layer in found.layers.values()),
            "dead/overlap": found.overlap,
            "dead/still": found.still,
            "dead/revived": found.revived,
        }
        by_moments = any(
            map(self.config.death_criterion().of_moments, (layer.activation for layer in self._graph.layers))
        )
        if by_moments:
            values |= {SATURATED: found.saturated_share}
            values["saturated/neurons"] = sum(layer.saturated for layer in found.layers.values())
        whole = self.config.whole_every_steps
        if whole and (step % whole == 0 or step == self._total_steps):
            values[WHOLE] = self._share(self._detect(0, step))
        if self.config.layers:
            values |= {f"{SHARE}/{name}": layer.dead_share for name, layer in found.layers.items()}
            if by_moments:
                layers = found.layers.items()
                values |= {f"{SATURATED}/{name}": layer.saturated / max(1, layer.width) for name, layer in layers}
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _state(self) -> GraphState:
        return self._graph.dense if self._pruner is None else self._pruner.state

    def _detect(self, examples: int, step: int) -> Detection:
        """Which neurons are dead now, on so many images; 0: on all."""
        with self._context.together():
            mine = probe(self._model, self._state(), self._images(examples, step), self.config.death_criterion())
        return agreed(mine, self._context)

    def _images(self, examples: int, step: int) -> Iterator[tuple[Tensor]]:
        at = (step,) if self.config.resample else ()
        draw = generator("cpu", self._seed, "monitor", *at)
        for x, _ in self._data.drawn(examples or self._data.facts.train_size, draw):
            yield (self._placed(x),)

    def _share(self, detection: Detection) -> float:
        """Dead and removed neurons over those of the dense network."""
        removed, dead = self._state().removed, 0
        for layer in self._graph.layers:
            zero = detection.dead[layer.name] & ~detection.saturated(layer.name)
            dead += int((zero | removed[layer.classes]).sum())
        return dead / max(1, self._graph.dense.neurons)

    def state_dict(self) -> dict[str, Any] | None:
        """Which neurons have ever been dead; None while off."""
        return self._deaths.state_dict() if self.config.every_steps else None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on where a saved run was."""
        if state is not None:
            self._deaths.load_state_dict(state)
