"""What demp cannot read of a model: parts that TorchScript runs, and parameters that do not exist yet."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from demp.errors import TraceError
from demp.graph.trace_state import TraceState


def raise_if_unreadable(model: nn.Module) -> None:
    """A model that is TorchScript as a whole, or whose lazy modules have not run.

    Raises:
        TraceError: it is one of them; says what to do.
    """
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            f"{kind} is TorchScript, whose operations demp can neither follow nor change: prune the module that it was "
            "made of, and script or trace what is left"
        )
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        more = f" and {len(lazy) - 1} more" if len(lazy) > 1 else ""
        raise TraceError(
            f"{kind} has parameters without a shape ({lazy[0]}{more}): its lazy modules take one from their first "
            "input. Run one batch through the model before you hand it over"
        )


def followed_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules, without those that TorchScript runs: they take no hooks."""
    return ((path, one) for path, one in model.named_modules() if not isinstance(one, torch.jit.ScriptModule))


def scripted_parts(model: nn.Module) -> dict[str, Any]:
    """The outermost parts that TorchScript runs, by path."""
    every = {path: one for path, one in model.named_modules() if isinstance(one, torch.jit.ScriptModule)}
    return {path: one for path, one in every.items() if path.rpartition(".")[0] not in every}


@contextmanager
def unfollowed(model: nn.Module, trace: TraceState) -> Iterator[None]:
    """Inside, scripted parts run without being followed: what they read stays, and so do they as a whole."""
    with ExitStack() as stack:
        for path, part in scripted_parts(model).items():
            for name, axes in trace.recording.axes.items():
                for axis in axes if name.startswith(f"{path}.") else ():
                    trace.elements.freeze(axis.ids, f"part of {path}, which is TorchScript")
            stack.callback(vars(part).pop, "forward")
            vars(part)["forward"] = watched(trace, path, part, part.forward)
        yield


def watched(trace: TraceState, path: str, part: nn.Module, forward: Any) -> Any:
    """The forward of a scripted part, as one step of which nothing is known."""

    def run(*args: Any, **kwargs: Any) -> Any:
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in operands:
            trace.freeze_tensor(tensor, f"read by {path}, which is TorchScript")
        before, trace.paused = trace.paused, True
        try:
            out = forward(*args, **kwargs)
        finally:
            trace.paused = before
        own = [trace.labels(tensor) for tensor in (*part.parameters(), *part.buffers())]
        known = [trace.bare(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        trace.frames.operation(path, "scripted", [*map(trace.labels, operands), *own], known)
        return out

    return run
