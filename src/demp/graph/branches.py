"""What a forward hides: paths that it did not take, whose parameters may read neurons, and values that leave torch."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from demp.graph.scripted import followed_modules

if TYPE_CHECKING:
    from demp.graph.tracer import Tracer

EXITS = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr})


@contextmanager
def frames_of(model: nn.Module, tracer: "Tracer") -> Iterator[None]:
    """Note the arguments and results of every module that is called inside."""

    def note(frame: str, tree: Any) -> None:
        tracer.frames.visible[frame].extend(
            tracer.labels(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)
        )

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        note(tracer.modules[-1], (args, kwargs))

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        note(tracer.modules[-1] if tracer.modules else "", out)

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

    def __init__(self, tracer: "Tracer") -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Freeze the neurons whose values leave torch, then run the function."""
        if func in EXITS and args and isinstance(args[0], Tensor):
            self._tracer.freeze_tensor(args[0], f"values leave torch by {func.__name__}")
        return func(*args, **(kwargs or {}))


def freeze_forks(tracer: "Tracer", parameters: Mapping[str, Tensor], ran: Container[str]) -> None:
    """Where a forward decides by values, neurons in sight of parameters that it did not touch stay."""
    if not tracer.frames.looked:
        return
    for name, tensor in parameters.items():
        if not isinstance(tensor, nn.Parameter) or name in tracer.frames.touched:
            continue
        frame = name.rpartition(".")[0]
        while frame and frame not in ran:
            frame = frame.rpartition(".")[0]
        for labels in tracer.frames.visible.pop(frame, []):
            for axis in labels.axes if not labels.constant else ():
                if axis is not None:
                    tracer.elements.freeze(
                        axis.ids, f"in sight of {name}, which did not run: the forward decides by values"
                    )
