"""The dead neurons of a run over time: looks at it between two steps, and changes nothing in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import demp
from demp.activity import Deaths, Detection, agreed, probe
from demp.graph import GraphState
from demp.train.seeds import generator

if TYPE_CHECKING:
    from demp.train.run import Run

SHARE, WHOLE = "dead/share", "dead/share_whole"
SATURATED = "saturated/share"


class Monitor:
    """Judges death on un-augmented training pictures of its own, as `demp.train.MonitorConfig` says."""

    def __init__(self, run: Run) -> None:
        self._run, self.config = run, run.config.monitor
        if not self.config.every_steps:
            return
        self._graph = demp.trace(run.model, run.example) if run.pruner is None else run.pruner.graph
        self._deaths = Deaths(self._graph)

    def is_due(self) -> bool:
        """Is a look due now, between two steps?"""
        every, step = self.config.every_steps, self._run.step
        return bool(every) and (step % every == 0 or step == self._run.total_steps)

    def look(self) -> dict[str, float]:
        """The metrics of docs/files.md; among several ranks all must ask, and all hear the same."""
        self._run.context.share_buffers()
        found = self._deaths.add(self._detect(self.config.examples), self._state())
        news = {
            SHARE: found.dead_share,
            "dead/neurons": sum(layer.dead for layer in found.layers.values()),
            "dead/overlap": found.overlap,
            "dead/still": found.still,
            "dead/revived": found.revived,
        }
        by_moments = any(map(self.config.judged_by().of_moments, (layer.activation for layer in self._graph.layers)))
        if by_moments:
            news |= {SATURATED: found.saturated_share}
            news["saturated/neurons"] = sum(layer.saturated for layer in found.layers.values())
        whole = self.config.whole_every_steps
        if whole and (self._run.step % whole == 0 or self._run.step == self._run.total_steps):
            news[WHOLE] = self._share(self._detect(0))
        if self.config.layers:
            news |= {f"{SHARE}/{name}": layer.dead_share for name, layer in found.layers.items()}
            if by_moments:
                layers = found.layers.items()
                news |= {f"{SATURATED}/{name}": layer.saturated / max(1, layer.width) for name, layer in layers}
        return {name: value for name, value in news.items() if not math.isnan(value)}

    def _state(self) -> GraphState:
        return self._graph.dense if self._run.pruner is None else self._run.pruner.state

    def _detect(self, examples: int) -> Detection:
        """Who is dead now on so many pictures; 0 are all."""
        run = self._run
        with run.context.together():
            mine = probe(run.model, self._state(), self._pictures(examples), self.config.judged_by())
        return agreed(mine, run.context)

    def _pictures(self, examples: int) -> Iterator[Any]:
        run = self._run
        at = (run.step,) if self.config.resample else ()
        draw = generator("cpu", run.config.seed, "monitor", *at)
        for x, _ in run.data.drawn(examples or run.data.facts.train_size, draw):
            yield (run.placed(x),)

    def _share(self, detection: Detection) -> float:
        """Dead and removed neurons over those of the dense network."""
        removed, dead = self._state().removed, 0
        for layer in self._graph.layers:
            zero = detection.dead[layer.name] & ~detection.saturated(layer.name)
            dead += int((zero | removed[layer.classes]).sum())
        return dead / max(1, self._graph.dense.neurons)

    def state_dict(self) -> dict[str, Any] | None:
        """Who has ever been dead; None while off."""
        return self._deaths.state_dict() if self.config.every_steps else None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on where a saved run was."""
        if state is not None:
            self._deaths.load_state_dict(state)
