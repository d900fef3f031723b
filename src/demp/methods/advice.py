"""What to change when a run removes nothing: logged once at half of it, and at its end, from numbers that it has."""

from torch import Tensor

from demp.activity import Detection
from demp.graph import NeuronGraph
from demp.graph.neurons import removable_classes
from demp.methods.base import View
from demp.surgery import Limits, plan_cut


class Advice:
    """Advice that a run logs after half of it, and again at its end, while no neuron was removed."""

    def __init__(self, strength: float, limits: Limits) -> None:
        self.strength, self.limits = strength, limits
        self.given = False

    def about(self, step: int, view: View, detection: Detection) -> str:
        """Empty if a neuron was removed before or is dead now, before the middle of the run, and without any step."""
        late = step > 0 and (view.final or (2 * step >= view.total_steps and not self.given))
        some = bool(view.state.removed.any()) or any(bool(flags.any()) for flags in detection.dead.values())
        if not late or some:
            return ""
        wanted = [layer.name for layer in view.graph.layers if bool(layer.removable.any())]
        if not wanted:
            return ""
        self.given = True
        never = nothing_may_go(view.graph, self.limits)
        if never:
            return f"nothing was removed by step {step} of {view.total_steps}: {never}"
        if detection.batches == 0 or set(wanted) <= set(detection.unseen):
            return nobody_watched(view, step)
        return nothing_removed(view, step, self.strength)


def nothing_may_go(graph: NeuronGraph, limits: Limits) -> str:
    """Why these limits let no neuron of the graph go, and the remedy; empty if they let one."""
    offered = {layer.name: layer.removable for layer in graph.layers if bool(layer.removable.any())}
    if not plan_cut(graph.dense, offered, limits).empty:
        return ""
    if not any(map(limits.allows, offered)):
        globs = f"include={limits.include} and exclude={limits.exclude}"
        return f"{globs} leave no layer whose neurons may go; such layers are {', '.join([*offered][:3])}"
    rounded = f" rounded up to a multiple of {limits.multiple}" if limits.multiple > 1 else ""
    return (
        f"every layer that may be cut is at its floor of {limits.floor}{rounded} already; give a lower floor or "
        "multiple, or exclude fewer layers"
    )


def nobody_watched(view: View, step: int) -> str:
    """The strength is not to blame where no neuron was looked at."""
    return (
        f"nothing was removed by step {step} of {view.total_steps}: no training forward was seen in which the modules "
        "that read the neurons were called (weights used as F.linear(h, layer.weight), layer.forward(h), compiled "
        "code), so that no dead neuron could be found. Pass batches=[...], examples to find them on"
    )


def nothing_removed(view: View, step: int, strength: float) -> str:
    """Why no neuron went, and two remedies; empty where no neuron has a scale to look at."""
    if frozen(view):
        return (
            f"nothing was removed by step {step} of {view.total_steps}: every neuron still answers to some example, "
            "and what makes them is frozen (requires_grad=False), so that no penalty reaches them. Train it, or prune "
            "before it is frozen"
        )
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


def frozen(view: View) -> bool:
    """Is nothing trained that makes a neuron which is there and may go: neither weights nor norms?"""
    wanted = removable_classes(view.graph) & ~view.state.removed
    trained = view.parameters().keys()
    norms = {(name, 0) for norm in view.graph.norms for name in (norm.scale, norm.shift) if name is not None}
    made = {pair for layer in view.graph.layers for pair in layer.producers} | norms
    return not any(
        slot.tensor in trained and (slot.tensor, slot.axis) in made and bool(wanted[slot.classes].any())
        for slot in view.graph.slots
    )


def present_scales(view: View) -> Tensor:
    """Sizes of the scales of all neurons that are there and may go."""
    sizes = view.scales()
    return sizes[removable_classes(view.graph) & ~view.state.removed & (sizes > 0)]
