"""What could go: which tensor slices a neuron owns, and who reads it."""

from demp.graph.neurons import Contraction, Layer, NeuronGraph, Norm, Read, Refusal, Slot
from demp.graph.reading import trace

__all__ = ["Contraction", "Layer", "NeuronGraph", "Norm", "Read", "Refusal", "Slot", "trace"]
