"""A passive window: judge death on the training forwards that happen anyway."""

from collections import Counter
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from demp import shards
from demp.activity.criteria import Criterion
from demp.activity.probe import Verdict, verdict_of
from demp.activity.tally import Tally
from demp.compiled import uncompiled
from demp.graph import NeuronGraph, Read


class Window:
    """Hooks on the modules that read neurons, for forwards in training mode; costs nothing while closed.

    Layers that are read by bare parameters, or by residual sums alone, cannot be watched by hooks and count as alive
    (``unwatched``).
    """

    def __init__(self, model: nn.Module, graph: NeuronGraph, criterion: Criterion) -> None:
        self._model, self._graph, self._criterion = model, graph, criterion
        self._handles: list[RemovableHandle] = []
        self._tally: Tally | None = None
        self._uses: Counter[str] = Counter()
        self._readers: dict[str, dict[int, Read]] = {}
        for read in graph.reads:
            path, _, leaf = read.weight.rpartition(".")
            if leaf == "weight" and reads_its_input(model.get_submodule(path)):
                self._readers.setdefault(path, {})[read.use] = read
        watched = {(r.weight, r.use) for reads in self._readers.values() for r in reads.values()}
        contracted = {(r.weight, r.use) for r in graph.reads if r.seat is None}
        self.unwatched = tuple(
            layer.name
            for layer in graph.layers
            if not set(layer.reads) & contracted <= watched or (layer.reads and not set(layer.reads) & contracted)
        )
        self.batches = self.examples = 0

    @property
    def is_open(self) -> bool:
        """Are the hooks in place?"""
        return self._tally is not None

    def open(self, gone: Tensor) -> None:
        """Start collecting."""
        self.close()
        self._tally = Tally(self._graph, gone, self._criterion, sums=False)
        self.batches = self.examples = 0
        self._handles.append(self._model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for path in self._readers:
            module = self._model.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(uncompiled(self._hook(path)), with_kwargs=True))

    def verdict(self) -> Verdict:
        """Who was dead in every forward since ``open``."""
        if self._tally is None or not self._tally.seen:  # nothing ran, or compiled code that does not see the hooks
            dead = {layer.name: layer.removable & False for layer in self._graph.layers}
            return Verdict(dead, 0, 0)
        return verdict_of((self._tally,), self.batches, self.examples)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._tally = None

    def state_dict(self) -> dict[str, Any] | None:
        """What an open window has seen; None while closed."""
        if self._tally is None:
            return None
        return {"batches": self.batches, "examples": self.examples, "tally": self._tally.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what a saved window had seen."""
        assert self._tally is not None, "open the window first"
        self.batches, self.examples = int(state["batches"]), int(state["examples"])
        self._tally.load_state_dict(state["tally"])

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._model.training:
            return
        self._uses.clear()
        self.batches += 1
        first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim()), None)
        self.examples += 0 if first is None else len(first)

    def _hook(self, path: str) -> Any:
        own = self._model.get_submodule(path)

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            if module is not own or not self._model.training:  # a deep copy of the model has this hook, too
                return
            read = self._readers[path].get(min(self._uses[path], max(self._readers[path])))  # more uses than traced
            self._uses[path] += 1
            value = args[0] if args else kwargs.get("input")
            if read is not None and self._tally is not None and isinstance(value, Tensor):
                self._tally.add(read, value, input_axis(module, value))

        return look


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def reads_its_input(module: nn.Module) -> bool:
    """Is the module's input the tensor that its weight is contracted with?"""
    return shards.kind_of(module) in (nn.Linear, *CONVOLUTIONS)


def input_axis(module: nn.Module, value: Tensor) -> int:
    """Neuron axis of the module's input."""
    return value.dim() - 1 - (0 if isinstance(module, nn.Linear) else module.weight.dim() - 2)  # type: ignore[union-attr]
