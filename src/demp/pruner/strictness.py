"""How a selection's cut is proven: exactly, or as a cut of constants."""

from demp.graph import NeuronGraph
from demp.methods.base import Method, Selection, Wants
from demp.surgery import ConstantRules


def is_exact(method: Method, graph: NeuronGraph, selection: Selection) -> bool:
    """Must the outputs stay as they are?"""
    if selection.exact is not None:
        return selection.exact
    criterion, chosen = method.criterion(), selection.neurons
    return all(criterion.is_exact(layer.activation) for layer in graph.layers if layer.name in chosen)


def constant_rules(method: Method, wants: Wants, graph: NeuronGraph, selection: Selection) -> ConstantRules | None:
    """How constants move: those of saturated neurons must, those of neurons chosen otherwise may."""
    criterion, chosen = method.criterion(), selection.neurons
    if selection.exact is None and any(
        criterion.of_moments(layer.activation) and bool(chosen[layer.name].any())
        for layer in graph.layers
        if layer.name in chosen
    ):
        return ConstantRules(max_drift=wants.max_drift)
    return ConstantRules(required=False) if wants.constants else None
