"""Numbers that modules keep in attributes and that their forwards read: they must follow a cut."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from demp.graph.neurons import GraphState, NeuronGraph

HEAD_COUNTS = ("num_heads", "n_heads", "n_head", "num_attention_heads", "nhead", "heads", "num_key_value_heads",
         "num_kv_heads", "n_kv_heads", "n_kv_head")  # fmt: skip
"""How the forwards of attention call the number of their heads."""
REPEATS = ("num_key_value_groups", "n_rep")
"""How they call the number of heads of the query for each of the key."""
CHANNEL_COUNTS = ("attn_dim", "all_head_size", "inner_dim")
"""How they call the number of channels of all heads together."""
SPLIT_SIZES = ("split_size",)
"""How GPT-2 and its kin call the channels of the query in one packed weight; nothing is computed with it."""
COUNTS = ("groups", "nf", "num_features", "num_groups", "input_size", "hidden_size", *HEAD_COUNTS, *REPEATS,
          *CHANNEL_COUNTS, *SPLIT_SIZES)  # fmt: skip
"""Groups of a convolution, output features of transformers' Conv1D, channels of an instance norm, groups of a group
norm, inputs and hidden units of a recurrent layer, heads of attention."""


def counted(module: nn.Module) -> tuple[str, str, int] | None:
    """(attribute, tensor, axis of the tensor that the attribute counts), for kinds of modules known by name."""
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "nf", "weight", 1
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.affine:
        return "num_features", "weight", 0
    if isinstance(module, nn.RNNBase):
        return "input_size", "weight_ih_l0", 1
    if isinstance(module, nn.RNNCellBase):
        return "input_size", "weight_ih", 1
    return None


def head_counts(module: nn.Module, ids: Tensor, size: int) -> dict[str, Tensor]:
    """Attributes of a module that count heads, or the channels of all heads: name -> the head that each belongs to.

    ``ids`` are the heads, one entry each; ``size`` the channels of one.
    """
    numbers = {name: value for name, value in vars(module).items() if type(value) is int}
    found = {name: ids for name in HEAD_COUNTS if numbers.get(name) == len(ids)}
    return found | {
        name: ids.repeat_interleave(size) for name in CHANNEL_COUNTS if numbers.get(name) == len(ids) * size
    }


def with_head_counts(graph: NeuronGraph, model: nn.Module) -> NeuronGraph | None:
    """The graph in which the modules that attend count their heads; None if none has an attribute for it."""
    found = {
        (path, name): classes
        for path, seen in graph.heads.items()
        for heads, size in seen
        for name, classes in head_counts(model.get_submodule(path), heads, size).items()
    }
    return replace(graph, attributes={**found, **graph.attributes}) if found else None


def with_lengths(graph: NeuronGraph, model: nn.Module) -> NeuronGraph:
    """The graph in which attributes follow that say how often a key is repeated, or how a packed weight is split.

    No forward computes with them, and other code than what was traced may read them (of ``generate``, say).
    """
    found = {}
    for path, ((heads, size), *_) in graph.heads.items():
        numbers = vars(model.get_submodule(path))
        repeats = REPEATS if path in graph.sharing else ()
        found |= {(path, name): heads for name in repeats if numbers.get(name) == len(heads)}
        channels = heads.repeat_interleave(size)
        found |= {(path, name): channels for name in SPLIT_SIZES if numbers.get(name) == len(channels)}
    return replace(graph, attributes={**found, **graph.attributes}) if found else graph


def groups_of(model: nn.Module) -> dict[str, int]:
    """Module path -> the number of groups that its forward normalises."""
    named = ((path, getattr(module, "num_groups", None)) for path, module in model.named_modules())
    return {path: groups for path, groups in named if type(groups) is int}


SIZE_ATTRIBUTES = {
    nn.Linear: (("out_features", 0), ("in_features", 1)),
    nn.BatchNorm1d: (("num_features", 0),),
    nn.BatchNorm2d: (("num_features", 0),),
    nn.BatchNorm3d: (("num_features", 0),),
    nn.SyncBatchNorm: (("num_features", 0),),
    nn.PReLU: (("num_parameters", 0),),
    nn.GroupNorm: (("num_channels", 0),),
    nn.Conv1d: (("out_channels", 0), ("in_channels", 1)),
    nn.Conv2d: (("out_channels", 0), ("in_channels", 1)),
    nn.Conv3d: (("out_channels", 0), ("in_channels", 1)),
    nn.ConvTranspose1d: (("in_channels", 0), ("out_channels", 1)),
    nn.ConvTranspose2d: (("in_channels", 0), ("out_channels", 1)),
    nn.ConvTranspose3d: (("in_channels", 0), ("out_channels", 1)),
}


def shown_sizes(module: nn.Module, weight: Tensor | None = None) -> dict[str, int]:
    """The sizes that a module's ``repr`` shows, as its weight (or the given one) has them."""
    sizes = next((v for kind, v in SIZE_ATTRIBUTES.items() if isinstance(module, kind)), ())
    weight = getattr(module, "weight", None) if weight is None else weight
    if not isinstance(weight, Tensor):
        return {}
    return {name: weight.shape[axis] * (getattr(module, "groups", 1) if axis else 1) for name, axis in sizes}


@contextmanager
def attributes_of(model: nn.Module, state: GraphState, small: Mapping[str, Tensor]) -> Iterator[None]:
    """Modules count what stays, and show the sizes of the tensors in ``small``; restored after."""
    changed = []

    def put(module: nn.Module, name: str, value: int) -> None:
        if hasattr(module, name) and getattr(module, name) != value:
            changed.append((module, name, getattr(module, name)))
            setattr(module, name, value)

    try:
        for (path, name), classes in state.graph.attributes.items():
            put(model.get_submodule(path), name, len(state.kept(classes)))
        for name in dict.fromkeys(slot.tensor for slot in state.graph.slots):
            path, _, leaf = name.rpartition(".")
            if leaf == "weight":
                module = model.get_submodule(path)
                for attribute, value in shown_sizes(module, small[name]).items():
                    put(module, attribute, value)
        yield
    finally:
        for module, name, value in reversed(changed):
            setattr(module, name, value)
