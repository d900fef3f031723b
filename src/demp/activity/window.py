"""A passive window: find dead neurons in the training forwards that happen anyway."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from demp.activity.criteria import Criterion
from demp.activity.probe import Detection, detection_of
from demp.activity.readers import first_length, in_backward, input_axis, operations_of, readers_of, reads_its_input
from demp.activity.tally import Tally
from demp.graph import GraphState, NeuronGraph, Read
from demp.parallel import Hook


class Window:
    """Hooks on the modules that read neurons, for training forwards; costs nothing while closed.

    A forward is one of training if the model or the reader is in training mode. In evaluation mode it is one if
    gradients are enabled and the model trains so: between two calls of ``step`` no forward ran in training mode
    (``in_evaluation``). It need not be a call of the model itself: its parts and methods are watched at the readers.

    Layers that are read by bare parameters, or by residual sums alone, cannot be watched by hooks and count as alive
    (``unwatched``).
    """

    def __init__(self, model: nn.Module, graph: NeuronGraph, criterion: Criterion) -> None:
        self._model, self._graph, self._criterion = model, graph, criterion
        self._handles: list[RemovableHandle] = []
        self._collected: Any = None
        self._readers = readers_of(model, graph)
        watched = {(w, use) for of_path in self._readers.values() for w, reads in of_path.items() for use in reads}
        contracted = {(r.weight, r.use) for r in graph.reads if r.seat is None}
        self.unwatched = tuple(
            layer.name
            for layer in graph.layers
            if not set(layer.reads) & contracted <= watched or (layer.reads and not set(layer.reads) & contracted)
        )
        self.in_evaluation = False
        self._ran_training = self._ran_evaluation = False
        self._depth = 0
        """Calls of the model itself that run now, one inside the other."""
        self._whole_counts = False
        self._uses: dict[str, int] = {}
        self._modes: list[Any] = []
        self._forget()

    def _forget(self) -> None:
        self._whole = [0, 0]
        self._parts: dict[str, list[int]] = {}

    @property
    def batches(self) -> int:
        """Training forwards since ``open``: calls of the model, and of the reader that was called most without it."""
        return self._whole[0] + max((calls for calls, _ in self._parts.values()), default=0)

    @property
    def examples(self) -> int:
        """Return the number of examples in the training forwards since ``open``."""
        return self._whole[1] + max((examples for _, examples in self._parts.values()), default=0)

    @property
    def is_open(self) -> bool:
        """Are the hooks in place, so that forwards are watched?"""
        return self._collected is not None

    def open(self, state: GraphState) -> None:
        """Attach the hooks and start collecting over training forwards."""
        self.close()
        self._collected = self.collector(state)
        self._forget()
        self._handles.append(self._model.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
        self._handles.append(self._model.register_forward_hook(Hook(self._end), always_call=True))
        for path, weights in self._readers.items():
            module = self._model.get_submodule(path)
            if reads_its_input(module):
                look = Hook(self._hook(path, weights))
                self._handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
            else:
                enter, leave = self._around(path, weights)
                self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(leave, always_call=True))

    def collector(self, state: GraphState) -> Any:
        """What collects what is read from now on: by default what death is decided by."""
        return Tally(state, self._criterion, sums=False)

    def step(self) -> None:
        """An optimizer moved: forwards in evaluation mode were training if no other ran since the last step."""
        if self._ran_training or self._ran_evaluation:
            self.in_evaluation = not self._ran_training
        self._ran_training = self._ran_evaluation = False

    def detect(self) -> Detection:
        """Which neurons were dead in every forward since ``open``."""
        if self._collected is None or not self._collected.seen:  # nothing ran, or nothing that sees the hooks
            dead = {layer.name: layer.removable & False for layer in self._graph.layers}
            return Detection(dead, 0, 0)
        return detection_of((self._collected,), self.batches, self.examples)

    def close(self) -> None:
        """Remove the hooks and drop what was collected."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._collected = None

    def state_dict(self) -> dict[str, Any] | None:
        """What an open window has seen; None while closed."""
        if self._collected is None:
            return None
        seen = {"whole": list(self._whole), "parts": {path: list(pair) for path, pair in self._parts.items()}}
        return {**seen, "in_evaluation": self.in_evaluation, "tally": self._collected.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what a saved window had seen."""
        assert self._collected is not None, "open the window first"
        self._whole = [int(n) for n in state.get("whole", (state.get("batches"), state.get("examples")))]
        self._parts = {path: [int(n) for n in pair] for path, pair in state.get("parts", {}).items()}
        self.in_evaluation = bool(state.get("in_evaluation", False))
        self._collected.load_state_dict(state["tally"])

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self._uses.clear()
        self._whole_counts = self._counts(module)
        if self._whole_counts:
            self._whole[0] += 1
            self._whole[1] += first_length(args, kwargs)

    def _end(self, module: nn.Module, args: Any, out: Any) -> None:
        self._depth = max(0, self._depth - 1)

    def _counts(self, module: nn.Module) -> bool:
        """Is this a training forward, which the window watches?"""
        if in_backward():
            return False
        if self._model.training or module.training:
            self._ran_training = True
            return True
        if not torch.is_grad_enabled():
            return False
        self._ran_evaluation = True
        return self.in_evaluation

    def _hook(self, path: str, weights: dict[str, dict[int, Read]]) -> Any:
        own = self._model.get_submodule(path)
        ((weight, reads),) = weights.items()

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            if module is not own or not self._counts(module):  # a shallow copy has this hook, too
                return
            value = args[0] if args else kwargs.get("input")
            if not self._starts(path, weights, args, kwargs) or not isinstance(value, Tensor):
                return
            use = self._uses.get(weight, 0)
            self._uses[weight] = use + 1
            read = reads.get(min(use, max(reads)))  # more uses than traced
            if read is not None:
                self._add(read, value, input_axis(module, value))

        return look

    def _around(self, path: str, weights: dict[str, dict[int, Read]]) -> tuple[Hook, Hook]:
        """Hooks before and after a module whose operations are looked at while it runs."""
        own = self._model.get_submodule(path)

        def on_read(read: Read, value: Tensor) -> None:
            self._add(read, value, read.axis)

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if module is own and self._counts(module) and self._starts(path, weights, args, kwargs):
                mode = operations_of(module, weights, self._graph, on_read, self._uses)
                mode.__enter__()
                self._modes.append((path, mode))

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if module is own and self._modes and self._modes[-1][0] == path:
                self._modes.pop()[1].__exit__(None, None, None)

        return Hook(enter), Hook(leave)

    def _starts(self, path: str, weights: dict[str, dict[int, Read]], args: Any, kwargs: Any) -> bool:
        """Count a call of a reader; False if it cannot be known which of several uses in one forward it is."""
        if self._depth and self._whole_counts:
            return True
        if self._depth == 0:
            if any(len(reads) > 1 for reads in weights.values()):
                return False
            for weight in weights:
                self._uses.pop(weight, None)
        calls = self._parts.setdefault(path, [0, 0])
        calls[0] += 1
        calls[1] += first_length(args, kwargs)
        return True

    def _add(self, read: Read, value: Tensor, axis: int) -> None:
        """One batch at one consumer; a rehearsal of demp's own, which may be narrower, does not count."""
        rehearsal = not self._model.training and (value.is_meta or value.shape[axis] != self._width(read))
        if self._collected is not None and not rehearsal:
            self._collected.add(read, value, axis)

    def _width(self, read: Read) -> int:
        return -1 if self._collected is None else self._collected.width(read)
