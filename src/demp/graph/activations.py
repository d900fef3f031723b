"""Which operations are activations, alone or in several steps: x * sigmoid(x), max(x, 0), the tanh form of GELU."""

import torch
from torch import Tensor

from demp.graph.elements import Labels, newest
from demp.graph.operations import Call
from demp.graph.trace_state import TraceState

SITES = {
    "relu": "relu", "relu_": "relu", "hardtanh": "relu6", "hardtanh_": "relu6", "relu6": "relu6",
    "leaky_relu": "leaky_relu", "leaky_relu_": "leaky_relu", "_prelu_kernel": "leaky_relu",
    "rrelu_with_noise": "leaky_relu", "gelu": "gelu", "gelu_": "gelu", "silu": "silu", "silu_": "silu",
    "mish": "mish", "mish_": "mish", "hardswish": "hardswish", "hardswish_": "hardswish", "elu": "elu",
    "elu_": "elu", "celu": "elu", "celu_": "elu", "softplus": "softplus", "glu": "glu", "softshrink": "softshrink",
    "hardshrink": "hardshrink",
}  # fmt: skip
"""ATen operations that are activation sites -> kind of activation."""

STEPS = ("tanh", "sin")
"""ATen operations that are activations by themselves (of a SIREN, say) or steps of one."""
GATES = ("mul", "div", "where", "maximum")
"""ATen operations that make an activation out of a tensor and a function of itself."""


def activated(trace: TraceState, call: Call, operands: list[Tensor], labels: Labels) -> Labels:
    """Labels of an element-wise result, marked where the operation is an activation or the step of one."""
    kind = kind_of(call)
    if kind is not None:
        return trace.site(labels, kind)
    step = step_of(trace, call, operands)
    if step is None or any(trace.recording.sites[site].certain for site in sites_before(trace, labels)):
        return labels
    return trace.site(labels, step, certain=False)


def kind_of(call: Call) -> str | None:
    """Kind of activation; None if the operation is none, or does not keep zero at zero."""
    name = call.name.rstrip("_")
    if name in ("clamp", "clamp_min"):
        low, high = call.arg(1, "min"), call.arg(2, "max") if name == "clamp" else None
        if not isinstance(low, (int, float)) or low != 0 or isinstance(high, Tensor):
            return None
        return "relu" if high is None else "relu6"
    if name == "threshold":
        return "relu" if call.arg(2, "value") == 0 else None
    return SITES.get(call.name)


def step_of(trace: TraceState, call: Call, operands: list[Tensor]) -> str | None:
    """Kind of what may turn out to be an activation: a layer only if a contraction reads this very step."""
    name = call.name.rstrip("_")
    if name in STEPS:
        return name
    if name not in GATES or not same_neurons(trace, operands):
        return None
    return "relu" if name == "mul" and any(t.dtype == torch.bool for t in operands) else "composite"


def same_neurons(trace: TraceState, operands: list[Tensor]) -> bool:
    """Do several operands carry neurons, and all the same ones?"""
    axes = [axis for axis in (newest(trace.labels(t)) for t in operands) if axis is not None]
    return len(axes) > 1 and all(axis.ids is axes[0].ids or torch.equal(axis.ids, axes[0].ids) for axis in axes[1:])


def sites_before(trace: TraceState, labels: Labels) -> set[int]:
    """Sites whose output flows along the neuron axis."""
    axis = newest(labels)
    marks = [] if axis is None else axis.sites.unique().tolist()
    return set().union(*(trace.elements.sites_of(mark) for mark in marks))
