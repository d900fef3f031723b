"""Example inputs of any batch size, and the outputs of a model on them as plain tensors."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from demp.activity.observe import quiet
from demp.errors import ExportError, UsageError
from demp.graph.forward import Inputs, as_inputs
from demp.graph.inputs import copied

Answer = Callable[[Inputs], list[Tensor]]
"""From inputs to the tensors that come out."""


def batch_of(inputs: Inputs) -> int:
    """Examples in ``inputs``: the first axis of their first tensor.

    Raises:
        UsageError: no tensor has such an axis.
    """
    first = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
    if first is None or not first.dim() or not len(first):
        raise UsageError("example_inputs hold no tensor with a batch axis; give a batch of real inputs")
    return len(first)


def rows(example_inputs: Any, count: int) -> Inputs:
    """``count`` examples out of ``example_inputs``, from the start again when they run out.

    Every tensor whose first axis is the batch takes part; others stay as they are.
    """
    inputs = as_inputs(example_inputs)
    batch = batch_of(inputs)
    chosen = torch.arange(count, device="cpu") % batch
    return tree_map_only(Tensor, lambda t: t[chosen.to(t.device)] if is_batched(t, batch) else t, inputs)


def is_batched(tensor: Tensor, batch: int) -> bool:
    """Is the tensor's first axis the batch?"""
    return tensor.dim() > 0 and len(tensor) == batch


def batch_shapes(inputs: Inputs) -> torch.export.ShapesCollection:
    """For `torch.export`: the same free batch size on the first axis of every batched tensor."""
    free, size = torch.export.Dim("batch"), batch_of(inputs)
    shapes = torch.export.ShapesCollection()
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and is_batched(leaf, size):
            shapes[leaf] = {0: free}
    return shapes


def named_tensors(module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Every input tensor under the name of its argument, numbered where one argument holds several."""
    signature = inspect.signature(module.forward)
    found: dict[str, Tensor] = {}
    for name, value in signature.bind(*inputs[0], **inputs[1]).arguments.items():
        spread = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        for key, part in value.items() if spread else [(name, value)]:
            tensors = [leaf for leaf in tree_leaves(part) if isinstance(leaf, Tensor)]
            found |= {key if len(tensors) == 1 else f"{key}_{i}": leaf for i, leaf in enumerate(tensors)}
    return found


def plain(value: Any, left_out: list[str], name: str = "output") -> Any:
    """An output as tensors in tuples, lists and dicts; what is anything else is left out, and named."""
    if isinstance(value, Tensor):
        return value
    if is_dataclass(value) and not isinstance(value, Mapping):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        parts = {key: plain(part, left_out, str(key)) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None}
    if isinstance(value, (tuple, list)):
        items = [plain(part, left_out, f"{name}[{index}]") for index, part in enumerate(value)]
        kept = [part for part in items if part is not None]
        return kept if isinstance(value, list) else tuple(kept)
    if value is not None:
        left_out.append(f"{name} ({type(value).__name__})")
    return None


def is_plain(value: Any) -> bool:
    """Is this output what `plain` would make of it?"""
    if type(value) in (tuple, list, dict):
        return all(is_plain(part) for part in (value.values() if type(value) is dict else value))
    return isinstance(value, Tensor)


class Plain(nn.Module):
    """A model whose outputs are plain. Its forward shows the model's own signature, which names the inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

        def forward(*args: Any, **kwargs: Any) -> Any:
            return plain(model(*args, **kwargs), [])

        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
        self.forward = forward


def output_of(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns in evaluation mode, with everything as it was after."""
    with quiet(model):
        args, kwargs = copied(inputs)
        return model(*args, **kwargs)


def answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors of the model's plain output.

    Raises:
        ExportError: the model returns no tensor.
    """
    tensors = [leaf for leaf in tree_leaves(plain(output_of(model, inputs), [])) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ExportError(f"{type(model).__name__} returns no tensor, so that nothing can be compared; return one")
    return tensors
