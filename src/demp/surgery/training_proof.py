"""A cut is proven in training mode, too, where that can be done: batch statistics, dropout off, a few examples.

It costs two forwards of at most ``EXAMPLES`` examples, one before the cut and one after. Where they differ, up to
``TRIES`` more tell whether chance or rounding makes such a difference by itself. The model after the cut is compared
with the model in which the neurons that go are zeroed: with batch statistics a neuron may live that is dead in
evaluation, and this asks about the surgery alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from demp.activity.detector import first_examples
from demp.activity.observe import observing
from demp.errors import CutError
from demp.graph.forward import as_inputs
from demp.graph.inputs import copied
from demp.surgery.compared import Outputs, compared
from demp.surgery.live import LiveModel
from demp.surgery.plan import Plan
from demp.surgery.proving import VerifyOptions
from demp.surgery.training_mode import is_weight, replaced, training
from demp.surgery.verify import TOLERANCE, difference, tolerance_for, zeroing

EXAMPLES = 8
LIMIT = {torch.float64: 1e-6, torch.float32: 1e-2}
"""Wider than in evaluation: statistics of a few examples divide by small deviations. A wrong channel is far above."""
TRIES = 3
NUDGE = 4.0
"""Units in the last place."""


def refer_training(live: LiveModel, plan: Plan, options: VerifyOptions) -> list[Tensor] | None:
    """Outputs in training mode without the neurons of a plan.

    None where they prove nothing: among several ranks, in half precision, and where the training forward needs more
    than the example inputs or does not end in finite numbers.
    """
    model = live.model
    if not options.verify or not live.context.alone or live.context.sharded:
        return None
    try:
        with training(model), observing(model, plan.before.graph, zeroing(plan.before, plan.after)):
            wanted = run(model, options.example_inputs, options.outputs)
    except Exception:  # the user's forward may raise anything; it has run in evaluation mode, and this is a bonus
        return None
    if not wanted or tolerance_for(wanted) > TOLERANCE[torch.float32]:
        return None
    return wanted if all(bool(t.isfinite().all()) for t in wanted) else None


def prove_training(model: nn.Module, wanted: list[Tensor] | None, options: VerifyOptions) -> None:
    """Run the model after the cut in training mode.

    Nothing is proven where it draws at random besides dropout, or blows up rounding as deep stacks of batch norms over
    two values do.

    Raises:
        CutError: it does not run, or its outputs are others.
    """
    if wanted is None:
        return
    try:
        with training(model):
            after = run(model, options.example_inputs, options.outputs)
    except Exception as error:  # the user's forward may raise anything
        reason = str(error).strip().split("\n")[0]
        raise CutError(
            f"rolled back: in training mode the model does not run after the cut ({reason}); {HINT}"
        ) from error
    limit = max([LIMIT.get(t.dtype, 0.0) for t in wanted if t.is_floating_point()] + [options.tolerance or 0.0])
    gap = difference(wanted, after) if len(wanted) == len(after) else torch.inf
    if not gap <= limit and not by_itself(model, after, gap, options):
        raise CutError(
            f"rolled back: in training mode (batch statistics, no dropout) outputs changed by {gap:.1e} of their scale "
            f"(tolerance {limit:.0e}) more than by the neurons that went; {HINT}"
        )


def by_itself(model: nn.Module, outputs: list[Tensor], gap: float, options: VerifyOptions) -> bool:
    """Do outputs in training mode change about as much without a cut, by other random numbers or by rounding?

    Inputs and weights are rounded otherwise: inputs alone may be ids.

    ``gap``: the difference that the cut made; infinite where whole numbers or shapes differ.
    """
    enough = max(tolerance_for(outputs), gap / 10 if gap < torch.inf else 0.0)
    for ahead in range(1, TRIES + 1):
        try:
            with training(model, ahead), replaced(model, is_weight, nudged):
                again = run(model, options.example_inputs, options.outputs, change=nudged)
        except Exception:  # it has just run: only chance can have led it elsewhere
            return True
        if [t.shape for t in outputs] != [t.shape for t in again]:
            return True
        if not difference(outputs, again) <= enough:
            return True
    return False


def nudged(tensor: Tensor) -> Tensor:
    """Every number rounded otherwise: some units in the last place up or down. Whole ones, which may be ids, stay."""
    if not tensor.is_floating_point():
        return tensor.clone()
    size = NUDGE * torch.finfo(tensor.dtype).eps
    moved = tensor * (1 + size * torch.empty_like(tensor).uniform_(-1, 1).sign())
    return torch.where(tensor == tensor.round(), tensor, moved)


HINT = "its training forward reads them where the graph cannot see; exclude these layers"


def run(
    model: nn.Module, example_inputs: Any, outputs: Outputs, change: Callable[[Tensor], Tensor] = torch.clone
) -> list[Tensor]:
    """A forward of the first examples, each tensor of them changed: what is compared."""
    inputs = as_inputs(first_examples(example_inputs, EXAMPLES))
    args, kwargs = tree_map_only(Tensor, change, copied(inputs))
    return compared(model, args, kwargs, outputs)
