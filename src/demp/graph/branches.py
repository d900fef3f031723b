"""What a forward hides: paths that it did not take, whose parameters may read neurons, and values that leave torch."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from demp.graph.scripted import followed_modules
from demp.graph.trace_state import TraceState

EXITS = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr})


@contextmanager
def frames_of(model: nn.Module, trace: TraceState) -> Iterator[None]:
    """Note the arguments and results of every module that is called inside."""

    def note(frame: str, tree: Any) -> None:
        trace.frames.visible[frame].extend(trace.labels(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        note(trace.modules[-1], (args, kwargs))

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        note(trace.running(), out)

    handles = []
    for _, module in followed_modules(model):
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Escapes(TorchFunctionMode):
    """Neurons whose values leave torch (``numpy``, ``tolist``) stay: what is done with them is not seen."""

    def __init__(self, trace: TraceState) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Freeze the neurons whose values leave torch, then run the function."""
        if func in EXITS and args and isinstance(args[0], Tensor):
            self._trace.freeze_tensor(args[0], f"values leave torch by {func.__name__}")
        return func(*args, **(kwargs or {}))


def freeze_forks(trace: TraceState, parameters: Mapping[str, Tensor], ran: Container[str]) -> None:
    """Where a forward decides by values, neurons in sight of parameters that it did not touch stay."""
    if not trace.frames.looked:
        return
    for name, tensor in parameters.items():
        if not isinstance(tensor, nn.Parameter) or name in trace.frames.touched:
            continue
        frame = name.rpartition(".")[0]
        while frame and frame not in ran:
            frame = frame.rpartition(".")[0]
        for labels in trace.frames.visible.pop(frame, []):
            for axis in labels.axes if not labels.constant else ():
                if axis is not None:
                    trace.elements.freeze(
                        axis.ids, f"in sight of {name}, which did not run: the forward decides by values"
                    )
