"""Dead neurons over time, on their own: no pruning needed, no optimizer, one line to attach (paper, App. C)."""

from typing import Any, Protocol

from torch import nn

from demp.activity.criteria import Criterion, CriterionKind
from demp.activity.deaths import Deaths, Snapshot
from demp.activity.window import Window
from demp.errors import UsageError
from demp.graph import GraphState, NeuronGraph, trace
from demp.graph.forward import call_inputs
from demp.parallel import Hook, is_sharded_model, raise_if_compiled, user_module


class Shrinking(Protocol):
    """What is known of a network that is cut: a `demp.Pruner` is one."""

    @property
    def graph(self) -> NeuronGraph:
        """The neurons of the dense model."""
        ...

    @property
    def state(self) -> GraphState:
        """The network as it is now."""
        ...


class NeuronMonitor:
    """Watches a model's own forwards and says which neurons are dead.

    ``monitor = demp.NeuronMonitor(model)``, train as usual, ``monitor.snapshot()`` now and then, ``monitor.close()``.
    The model is read at its first forward (or from ``example_inputs``); only training forwards count. With the
    ``pruner`` of the run the monitor follows its cuts: neurons keep their dense numbering, and removed ones count as
    dead. Without it a model that is cut must be watched anew.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion | CriterionKind = "auto",
        example_inputs: Any = None,
        pruner: Shrinking | None = None,
    ) -> None:
        raise_if_compiled(model)
        self._model = model = user_module(model)
        self._criterion = Criterion(kind=criterion) if isinstance(criterion, str) else criterion
        self._window: Window | None = None
        self._deaths: Deaths | None = None
        self._pruner = pruner
        self._state: GraphState | None = None
        self._handle = None
        self.history: list[Snapshot] = []
        if pruner is not None:
            _raise_if_foreign(pruner, model)
            self._start(pruner.graph)
            self._handle = model.register_forward_pre_hook(Hook(lambda *_: self._follow()))
        elif example_inputs is not None:
            self._start(trace(model, example_inputs))
        elif is_sharded_model(model):
            raise UsageError("a model sharded by fully_shard cannot be read during its forward; pass example_inputs")
        else:
            self._handle = model.register_forward_pre_hook(Hook(self._first_forward), with_kwargs=True)

    def _first_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._handle is not None and module.training:  # tracing and probing run the model in evaluation mode
            self._handle.remove()
            self._handle = None
            self._start(trace(self._model, call_inputs(module, args, kwargs)))
            assert self._window is not None
            self._window._begin(module, args, kwargs)

    def _start(self, graph: NeuronGraph) -> None:
        self._state = graph.dense if self._pruner is None else self._pruner.state
        self._deaths = Deaths(graph)
        self._window = Window(self._model, graph, self._criterion)
        self._window.open(self._state)

    def _follow(self) -> None:
        """After a cut: go on at the new widths with what was seen at the old ones."""
        if self._pruner is None or self._window is None or self._state == self._pruner.state:
            return
        self._state, seen = self._pruner.state, self._window.state_dict()
        self._window.open(self._state)
        if seen is not None:
            self._window.load_state_dict(seen)

    def snapshot(self) -> Snapshot:
        """Return which neurons were dead in all training forwards since the last snapshot, and begin to watch anew.

        Raises:
            UsageError: the model has not run since.
        """
        if self._window is None or self._deaths is None or self._state is None or self._window.batches == 0:
            raise UsageError("the model has not run since the last snapshot; nothing is known about its neurons")
        self._follow()
        snapshot = self._deaths.add(self._window.detect(), self._state)
        self._window.open(self._state)
        self.history.append(snapshot)
        return snapshot

    def close(self) -> None:
        """Remove all hooks from the watched model."""
        if self._handle is not None:
            self._handle.remove()
        if self._window is not None:
            self._window.close()


def _raise_if_foreign(pruner: Shrinking, model: nn.Module) -> None:
    if getattr(pruner, "model", model) is not model:
        raise UsageError("this pruner is of another model; pass the pruner of the model that is watched")
