"""How a selection's cut is proven: exactly, or as a cut of constants."""

from demp.graph import NeuronGraph
from demp.methods.base import Method, Requirements, Selection
from demp.surgery import ConstantRules


def is_exact(method: Method, graph: NeuronGraph, selection: Selection) -> bool:
    """Must the outputs stay as they are?"""
    if selection.exact is not None:
        return selection.exact
    criterion, chosen = method.criterion(), selection.neurons
    return all(criterion.is_exact(layer.activation) for layer in graph.layers if layer.name in chosen)


def constant_rules(
    method: Method, requirements: Requirements, graph: NeuronGraph, selection: Selection
) -> ConstantRules | None:
    """How constants move: those of saturated neurons must, those of neurons chosen otherwise may."""
    criterion, chosen = method.criterion(), selection.neurons
    if selection.exact is None and any(
        criterion.of_moments(layer.activation) and bool(chosen[layer.name].any())
        for layer in graph.layers
        if layer.name in chosen
    ):
        return ConstantRules(max_drift=requirements.max_drift)
    return ConstantRules(required=False) if requirements.constants else None
