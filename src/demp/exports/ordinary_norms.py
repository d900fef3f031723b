"""RMS norms of a stream that lost channels, as ordinary norms of those that are left: scale and eps say the others.

With a share s of the channels left, the norm that a cut planned (`graph.stream_norms`) is the ordinary one with
``eps / s`` and the scale over the square root of s.
"""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from demp.graph.calls import CallPlan, calls_of
from demp.graph.forward import hooks_off
from demp.graph.joins import set_calls
from demp.surgery.shrink import restore

logger = logging.getLogger("demp")
EPS = ("eps", "variance_epsilon", "epsilon", "norm_eps")
"""Names that classes of RMS norms give to what they add to the mean of squares."""
Scale = Callable[[Tensor, float], Tensor]
SCALES: tuple[Scale, ...] = (
    lambda weight, factor: weight * factor,
    lambda weight, factor: (1 + weight) * factor - 1,  # Gemma's
)
TOLERANCE = 1e-4
"""Of the scale of the outputs, in float32: between roundings and another eps."""


def fold_norms(model: nn.Module) -> None:
    """Make ordinary norms, in place, of those whose scale and eps can say what a cut planned; others stay planned."""
    for module in model.modules():
        fold(module)


def rescaled(model: nn.Module) -> list[str]:
    """The modules in which calls still count removed channels as zeros."""
    return [name for name, m in model.named_modules() if any(plan.scale != 1.0 for plan in calls_of(m).values())]


@torch.no_grad()
def fold(module: nn.Module) -> None:
    """One norm over the last axis, if it is a module of its own with a scale and a known name of its eps."""
    plans = list(calls_of(module).values())
    parameters = list(module.parameters())
    name = next((name for name in EPS if hasattr(module, name)), None)
    if len(plans) != 1 or plans[0].scale == 1.0 or len(parameters) != 1 or name is None:
        return
    if parameters[0].shape != (plans[0].width,) or plans[0].axis != plans[0].ndim - 1:
        return
    for scale in SCALES:
        if says_the_same(module, plans[0], name, scale):
            make_ordinary(module, plans[0], name, scale)
            return


def says_the_same(module: nn.Module, plan: CallPlan, name: str, scale: Scale) -> bool:
    """Does an ordinary copy compute what the planned norm does, each row in its own scale?"""
    try:
        planned = copy.deepcopy(module)
        planned = planned.float() if next(planned.parameters()).dtype.itemsize < 4 else planned
        attempt = copy.deepcopy(planned)
        make_ordinary(attempt, plan, name, scale)
        x = trial_inputs(next(planned.parameters()), plan)
        with hooks_off(planned), hooks_off(attempt):
            wanted, found = planned(x), attempt(x)
        size = wanted.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(wanted.dtype).tiny)
        return bool(((found - wanted).abs() <= TOLERANCE * size).all())
    except Exception as error:  # the user's norm may raise anything, and then stays planned
        logger.debug("a norm is not made an ordinary one: %s", error)
        return False


def trial_inputs(weight: Tensor, plan: CallPlan) -> Tensor:
    """Rows from large to so small that eps decides."""
    x = torch.randn(64, plan.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    sizes = torch.logspace(2, -6, 64, dtype=torch.float64, device="cpu")[:, None]
    return (x * sizes).to(weight).view(*[1] * (plan.ndim - 2), 64, plan.width)


def make_ordinary(module: nn.Module, plan: CallPlan, name: str, scale: Scale) -> None:
    """Without the plan: another scale and eps."""
    (weight,) = module.parameters()
    eps = getattr(module, name)
    if eps is None:
        eps = torch.finfo(torch.promote_types(weight.dtype, torch.float32)).eps
    set_calls(module, {})
    restore(weight, scale(weight, plan.scale**-0.5), None)
    setattr(module, name, eps / plan.scale)
    if hasattr(module, "normalized_shape"):
        module.__dict__["normalized_shape"] = (plan.width,)
