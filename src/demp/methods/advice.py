"""What to change when a run removes nothing: said once at half of it, and at its end, from numbers that it has."""

from torch import Tensor

from demp.graph.neurons import removable_classes
from demp.methods.base import View


def nothing_removed(view: View, step: int, strength: float) -> str:
    """Why nobody went, and two remedies; empty where no neuron has a scale to look at."""
    sizes = present_scales(view)
    if not len(sizes):
        return ""
    smallest, typical = float(sizes.min()), float(sizes.median())
    return (
        f"nothing was removed by step {step} of {view.total_steps}: every neuron still answers to some example. Its "
        f"scale would have to come near 0; the smallest is {smallest:.2g}, the median {typical:.2g}, under a peak "
        f"strength of {strength:g}. Give budget=demp.Budget(flops=0.5), which needs no strength, or raise "
        "peak_strength tenfold; under Adam a scale moves by at most the learning rate per step, so that short "
        "runs need the budget"
    )


def present_scales(view: View) -> Tensor:
    """Sizes of the scales of all neurons that are there and may go."""
    sizes = view.scales()
    return sizes[removable_classes(view.graph) & ~view.gone & (sizes > 0)]
