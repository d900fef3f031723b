"""RMS norms of a stream that lost channels, as ordinary norms of those that are left: scale and eps say the others.

With a share s of the channels left, the norm that a cut planned (`graph.rms_norms`) is the ordinary one with
``eps / s`` and the scale over the square root of s.
"""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from demp.graph.calls import CallPlan, calls_of
from demp.graph.joins import set_calls
from demp.surgery.shrink import restore

logger = logging.getLogger("demp")
EPS = ("eps", "variance_epsilon", "epsilon", "norm_eps")
"""Names that classes of RMS norms give to what they add to the mean of squares."""
SCALES: tuple[Callable[[Tensor, float], Tensor], ...] = (
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
    """One norm, if it is a module of its own with a scale and a known name of its eps."""
    plans = list(calls_of(module).values())
    parameters = list(module.parameters())
    name = next((name for name in EPS if hasattr(module, name)), None)
    if len(plans) != 1 or plans[0].scale == 1.0 or len(parameters) != 1 or name is None:
        return
    trial = copy.deepcopy(module)
    trial = trial.float() if parameters[0].dtype.itemsize < 4 else trial
    x = trial_inputs(next(trial.parameters()), plans[0])
    wanted = trial(x)
    for scale in SCALES:
        attempt = copy.deepcopy(trial)
        make_ordinary(attempt, plans[0], name, scale)
        if alike(attempt, x, wanted):
            make_ordinary(module, plans[0], name, scale)
            return


def trial_inputs(weight: Tensor, plan: CallPlan) -> Tensor:
    """Rows from large to so small that eps decides."""
    x = torch.randn(64, plan.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = torch.logspace(2, -6, 64, dtype=torch.float64)[:, None]
    return (x * sizes).to(weight).view(*[1] * (plan.ndim - 2), 64, plan.width)


def alike(norm: nn.Module, x: Tensor, wanted: Tensor) -> bool:
    """Does it run, and are all rows as they should be, each in its own scale?"""
    try:
        found = norm(x)
    except Exception as error:  # the user's code may hold the old width as a number
        logger.debug("a norm does not run on the channels that are left: %s", error)
        return False
    scale = wanted.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(wanted.dtype).tiny)
    return bool(((found - wanted).abs() <= TOLERANCE * scale).all())


def make_ordinary(module: nn.Module, plan: CallPlan, name: str, scale: Callable[[Tensor, float], Tensor]) -> None:
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
