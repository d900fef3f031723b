"""The true reason where an RNN is one: its weights serve every time step, and torch fixes its widths."""

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from demp.graph.neurons import NeuronGraph, Refusal
from demp.graph.rehearsal import HARD_CODED

RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def name_recurrent(graph: NeuronGraph, model: nn.Module) -> NeuronGraph:
    """The graph whose refusals name the RNN that a layer is part of, or that reads it."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, RECURRENT)}
    if not kinds:
        return graph
    return replace(graph, refused=tuple(renamed(graph, refusal, kinds) for refusal in graph.refused))


def renamed(graph: NeuronGraph, refusal: Refusal, kinds: dict[str, str]) -> Refusal:
    """The refusal, with the RNN as its reason if there is one."""
    own = within(refusal.name.partition("#")[0], kinds)
    if own is not None:
        return replace(refusal, reason=f"part of an RNN ({kinds[own]}), whose weights serve every time step")
    layer = graph.index.get(refusal.name)
    names = [] if layer is None else [name for weight, _ in layer.reads if (name := within(weight, kinds)) is not None]
    if not names or refusal.reason != HARD_CODED:
        return refusal
    return replace(refusal, reason=f"read by an RNN ({kinds[names[0]]} {names[0]}), whose widths torch fixes".rstrip())


def within(path: str, kinds: Iterable[str]) -> str | None:
    """The RNN that a module or parameter is, or is part of."""
    return next((name for name in kinds if not name or path == name or path.startswith(f"{name}.")), None)
