"""What could be removed: which tensor slices a neuron owns, and what consumes it."""

from demp.graph.neurons import GraphState, NeuronGraph
from demp.graph.parts import Contraction, Layer, Norm, Read, Refusal, Slot
from demp.graph.reading import trace

__all__ = ["Contraction", "GraphState", "Layer", "NeuronGraph", "Norm", "Read", "Refusal", "Slot", "trace"]
