"""What a cut must prove: outputs before and after it, on all ranks, and the message where they differ."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import CutError
from demp.parallel import Context
from demp.surgery.compared import Outputs
from demp.surgery.constants import ConstantRules, Settled
from demp.surgery.live import LiveModel
from demp.surgery.plan import Plan
from demp.surgery.precision import as_float32, in_float32
from demp.surgery.verify import (
    TF32_TOLERANCE,
    TOLERANCE,
    difference,
    live_layers,
    masked_outputs_of,
    outputs_of,
    raise_if_nan,
    tolerance_for,
)


@dataclass(frozen=True)
class VerifyOptions:
    """What a cut must prove, and on which examples."""

    example_inputs: Any
    exact: bool = True
    """Outputs must not change: all of the neurons are dead. Else they must be those without the neurons."""
    verify: bool = True
    """Compare at all."""
    tolerance: float | None = None
    """Largest difference over the largest output; None: by the type of the outputs."""
    constants: ConstantRules | None = None
    """How the constants of neurons that are the same for every example move; None: they are zeros."""
    outputs: Outputs = None
    """What is compared."""
    held_out: Any = None
    """Inputs on which no dead neurons were looked for: what constants change is measured on them as well."""


@dataclass(frozen=True)
class Reference:
    """Outputs before the cut: as they were, and as they must be after it."""

    plain: list[Tensor]
    wanted: list[Tensor]
    precise: list[Tensor] | None = None
    """What a model in half precision must give as one in float32; None: not asked, or it does not run so."""


def refer(model: nn.Module, plan: Plan, options: VerifyOptions, settled: Settled | None) -> Reference | None:
    """Run the model before the cut; None if nothing is to be proven."""
    if not options.verify:
        return None
    if settled is not None:
        return Reference(settled.plain, settled.wanted)
    plain = outputs_of(model, options.example_inputs, options.outputs)
    raise_if_nan(plain)
    coarse = options.tolerance is None and tolerance_for(plain) > TOLERANCE[torch.float32]
    if coarse and options.exact:
        raise_if_alive(model, plan, options, plain)
    wanted = plain if options.exact else zeroed(model, plan, options)
    return Reference(plain, wanted, precise(model, options, partial(zeroed, model, plan)) if coarse else None)


def outputs_on_held_out(model: nn.Module, options: VerifyOptions) -> list[Tensor] | None:
    """Outputs on the inputs that are held out; None if there are none, or the model does not run on them so."""
    if options.held_out is None:
        return None
    try:
        return outputs_of(model, options.held_out, options.outputs)
    except Exception:  # a training batch may be such that the forward in evaluation mode does not take it
        return None


def precise(
    model: nn.Module, options: VerifyOptions, outputs: Callable[[VerifyOptions], list[Tensor]]
) -> list[Tensor] | None:
    """Outputs of the model as one in float32; None where its forward, or the memory, does not allow that."""
    try:
        with in_float32(model):
            found = outputs(replace(options, example_inputs=as_float32(options.example_inputs)))
    except Exception:  # a forward may ask for its own type; the proof in half precision stands
        return None
    good = tolerance_for(found) <= TF32_TOLERANCE and all(bool(t.isfinite().all()) for t in found)
    return found if found and good else None


def zeroed(model: nn.Module, plan: Plan, options: VerifyOptions) -> list[Tensor]:
    """Outputs without the neurons of a plan."""
    return masked_outputs_of(model, plan.before, plan.after, options.example_inputs, options.outputs)


def raise_if_alive(model: nn.Module, plan: Plan, options: VerifyOptions, plain: list[Tensor]) -> None:
    """In half precision, and in TF32, rounding would explain the loss of a neuron that is not dead: ask before the cut.

    Zeroing dead neurons changes nothing, to the bit, and neither does zeroing those that zero weights read.

    Raises:
        CutError: a neuron of the plan is not dead on the example inputs.
    """
    gap = difference(plain, zeroed(model, plan, options))
    alive = live_layers(model, plan.before, plan.layers, options.example_inputs) if gap else []
    if alive:
        raise CutError(
            f"neurons of {', '.join(alive)} are not dead on the example inputs: without them the outputs change by "
            f"{gap:.1e} of their scale. Pass exact=False to remove such neurons; nothing was cut"
        )


@dataclass(frozen=True)
class Proof:
    """Difference to the wanted outputs, the most that rounding explains, and drift from the plain ones."""

    gap: float
    limit: float
    drift: float


def prove(model: nn.Module, reference: Reference, options: VerifyOptions) -> Proof:
    """Run the model after the cut.

    Raises:
        CutError: it does not run.
    """
    try:
        after = outputs_of(model, options.example_inputs, options.outputs)
    except Exception as error:  # the user's forward may raise anything
        reason = str(error).strip().split("\n")[0]
        raise CutError(
            f"rolled back: the model does not run after the cut ({reason}); its forward depends on a width. Exclude "
            "layers from the cut, or raise the floor"
        ) from error
    limit = tolerance_for(after) if options.tolerance is None else options.tolerance
    gap, drift = difference(reference.wanted, after), difference(reference.plain, after)
    if reference.precise is not None and gap <= limit:
        fine = precise(model, options, lambda options: outputs_of(model, options.example_inputs, options.outputs))
        if fine is not None:
            gap, limit = difference(reference.precise, fine), TOLERANCE[torch.float32]
    return Proof(gap, limit, drift)


def raise_if_difference(proof: Proof, context: Context) -> None:
    """Outputs must agree on every rank; if they do not on one, all ranks roll back.

    Raises:
        Disagreement: they do not on some rank; every rank raises it.
    """
    failed = {rank: other for rank, other in enumerate(context.gathered(proof)) if not other.gap <= other.limit}
    if failed:
        worst = next(iter(failed.values()))
        raise Disagreement(worst.gap, worst.limit, context.where(failed))


class Disagreement(Exception):
    """Outputs before and after differ by more than rounding."""

    def __init__(self, gap: float, limit: float, where: str = "") -> None:
        super().__init__(gap, limit, where)
        self.gap, self.limit, self.where = gap, limit, where


def explain(live: LiveModel, plan: Plan, options: VerifyOptions, error: Disagreement) -> str:
    """What was not as it should be, after a roll-back: layers that were not dead where they had to be, or the graph."""
    mine = live_layers(live.model, plan.before, plan.layers, options.example_inputs) if options.exact else []
    alive = dict.fromkeys(name for names in live.context.gathered(mine) for name in names)
    where = (
        f"neurons of {', '.join(alive)} are not dead on the example inputs; pass exact=False to remove such neurons"
        if alive
        else f"without the neurons of {', '.join(plan.layers)} the model is another than with zeros in their place, so "
        "this model's forward depends on their number in a way the graph cannot see; exclude these layers. Where a "
        "forward sorts or selects, rounding changes what comes out: give outputs=, what to compare instead"
    )
    if error.gap < TOLERANCE[torch.float32] and not alive:
        where += "; where a float64 model computes a part in float32, give tolerance=1e-6"
    return (
        f"rolled back: outputs changed by {error.gap:.1e} of their scale{error.where} (tolerance {error.limit:.0e}); "
        f"{where}"
    )
