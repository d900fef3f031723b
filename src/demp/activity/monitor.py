"""Dead neurons over time, on their own: no pruning, no optimizer, one line to attach (paper, App. C)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from demp import shards, wrappers
from demp.activity.criteria import Criterion
from demp.activity.window import Window
from demp.compiled import refuse_to_watch
from demp.errors import UsageError
from demp.graph import NeuronGraph, trace
from demp.graph.forward import call_inputs


@dataclass(frozen=True)
class LayerActivity:
    """One layer in one snapshot."""

    width: int
    dead: int
    revived: int
    """Neurons that were dead in the snapshot before and are alive now."""

    @property
    def dead_share(self) -> float:
        """Dead neurons over width."""
        return self.dead / self.width if self.width else 0.0


@dataclass(frozen=True)
class Snapshot:
    """Dead neurons in the forwards since the last snapshot."""

    batches: int
    examples: int
    layers: dict[str, LayerActivity]
    dead_share: float
    overlap: float
    """|X & Y| / min(|X|, |Y|), X every neuron that was dead in an earlier snapshot, Y those dead now (Sokar et al.
    2023, as in App. C); nan while either is empty."""
    revived: int


class NeuronMonitor:
    """Watches a model's own forwards and says which neurons are dead.

    ``monitor = demp.NeuronMonitor(model)``, train as usual, ``monitor.snapshot()`` now and then, ``monitor.close()``.
    The model is read at its first forward (or from ``example_inputs``); by default only training forwards count.
    """

    def __init__(self, model: nn.Module, *, criterion: Criterion | str = "auto", example_inputs: Any = None) -> None:
        refuse_to_watch(model)
        self._model = model = wrappers.inside(model)
        self._criterion = Criterion(kind=criterion) if isinstance(criterion, str) else criterion
        self._window: Window | None = None
        self._graph: NeuronGraph | None = None
        self._ever: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        self._starter = None
        self.history: list[Snapshot] = []
        if example_inputs is not None:
            self._start(example_inputs)
        elif shards.parts(model):
            raise UsageError("a model sharded by fully_shard cannot be read during its forward; pass example_inputs")
        else:
            self._starter = model.register_forward_pre_hook(self._first_forward, with_kwargs=True)

    def _first_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._starter is not None and module.training:  # tracing and probing run the model in evaluation mode
            self._starter.remove()
            self._starter = None
            self._start(call_inputs(module, args, kwargs))
            assert self._window is not None
            self._window._begin(module, args, kwargs)

    def _start(self, example_inputs: Any) -> None:
        self._graph = trace(self._model, example_inputs)
        self._window = Window(self._model, self._graph, self._criterion)
        self._window.open(self._graph.nothing_gone())
        for layer in self._graph.layers:
            self._ever[layer.name] = torch.zeros(layer.width, dtype=torch.bool)
            self._last[layer.name] = torch.zeros(layer.width, dtype=torch.bool)

    def snapshot(self) -> Snapshot:
        """Close the window over the forwards since the last snapshot, and open the next.

        Raises:
            UsageError: the model has not run since.
        """
        if self._window is None or self._graph is None or self._window.batches == 0:
            raise UsageError("the model has not run since the last snapshot; nothing is known about its neurons")
        verdict = self._window.verdict()
        layers, meet, revived = {}, 0, 0
        before = sum(int(flags.sum()) for flags in self._ever.values())
        now = sum(int(flags.sum()) for flags in verdict.dead.values())
        for name, dead in verdict.dead.items():
            back = int((self._last[name] & ~dead).sum())
            layers[name] = LayerActivity(len(dead), int(dead.sum()), back)
            meet += int((self._ever[name] & dead).sum())
            revived += back
            self._ever[name] |= dead
            self._last[name] = dead
        width = sum(layer.width for layer in layers.values())
        smaller = min(before, now)
        snapshot = Snapshot(
            verdict.batches,
            verdict.examples,
            layers,
            now / width if width else 0.0,
            meet / smaller if smaller else float("nan"),
            revived,
        )
        self._window.open(self._graph.nothing_gone())
        self.history.append(snapshot)
        return snapshot

    def close(self) -> None:
        """Remove all hooks."""
        if self._starter is not None:
            self._starter.remove()
        if self._window is not None:
            self._window.close()
