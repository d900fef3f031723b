"""Neurons leave with their constants: which of a planned cut can, how their constants move, and what that changes.

A neuron that is the same for every example is a constant to all of its readers. It goes, and what its readers made of
the constant stays: in a bias, in the running mean of the norm that follows, or in a neuron of its layer that remains
and carries the constants of the others. Which is exact where is written in docs/design.md.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity.observe import named_tensors, observing, quiet
from demp.activity.tally import key_of
from demp.errors import UsageError
from demp.graph import Read
from demp.graph.forward import as_inputs
from demp.graph.inputs import copied
from demp.parallel import whole_tensor
from demp.surgery.compared import Outputs, compared
from demp.surgery.live import LiveModel
from demp.surgery.looking import look
from demp.surgery.moves import Moves, Seen, plan_moves
from demp.surgery.plan import Plan
from demp.surgery.verify import difference, raise_if_nan

WORDS = {
    "bias": "into biases",
    "norm": "into running means",
    "carrier": "into a neuron that stays",
    "border": "into biases or running means that are right on average over a padded border",
}


@dataclass(frozen=True, kw_only=True)
class ConstantRules:
    """How the constants of a cut are to be treated."""

    required: bool = True
    """A neuron whose constant finds no place stays. False: it goes as if it were zero, no neuron carries for it, and
    constants move only if that lowers the drift."""
    max_drift: float | None = None
    """The most that one cut may change the outputs, over their largest absolute value: the flattest go first, the rest
    waits. None: no bound."""

    def __post_init__(self) -> None:
        if self.max_drift is not None and not self.max_drift >= 0:
            raise UsageError(f"max_drift is {self.max_drift}; give a number >= 0, or None for no bound")


@dataclass(frozen=True)
class Settled:
    """A cut with its constants: what moves, the outputs before and as they must be after, and the report's notes."""

    moves: Moves
    plain: list[Tensor]
    wanted: list[Tensor]
    drift: float
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        """What is left of the planned cut."""
        return self.moves.plan


def settle(live: LiveModel, plan: Plan, rules: ConstantRules, example_inputs: Any, outputs: Outputs = None) -> Settled:
    """Find out on the examples which neurons can leave with their constants, and how. Nothing of the model changes.

    Masked weights cannot take anything up. All ranks come to the same answer.
    """
    model, context = live.model, live.context
    masked = masked_weights(copied.content for copied in live.copies)
    with context.whole(model), context.together():
        mine = look(model, plan.before, example_inputs, outputs)
        raise_if_nan(mine.outputs)
    readers = mine.shared(context)

    def attempt(plan: Plan, carry_borders: bool = False, drop: bool = False) -> Settled:
        with context.whole(model), context.together():
            moves = plan_moves(plan, readers, required=rules.required, carry_borders=carry_borders, masked=masked)
            moves = dropped(moves) if drop else moves
            wanted = outputs_after(model, moves, example_inputs, outputs)
            change = difference(mine.outputs, wanted)
        worst = context.highest((change,))[0]
        assert worst is not None
        return Settled(moves, mine.outputs, wanted, worst)

    best, carry, notes = attempt(plan), False, ()
    if rules.required and best.moves.into["border"]:
        other = attempt(plan, carry_borders=True)
        if other.drift < best.drift:
            notes = (
                f"neurons that stay carry constants past padded borders: drift {best.drift:.1e} -> {other.drift:.1e}",
            )
            best, carry = other, True
    elif not rules.required and best.moves.shifts:
        other = attempt(plan, drop=True)
        if other.drift <= best.drift:
            return other
        notes = (f"constants moved to the readers: drift {other.drift:.1e} -> {best.drift:.1e}",)
    limit = torch.inf if rules.max_drift is None else rules.max_drift
    while best.drift > limit and bool(best.moves.saturated.any()):
        plan = plan.without(waiting(best, plan.ranking, limit))
        best = attempt(plan, carry_borders=carry)
    return replace(best, notes=(*notes, *described(best.moves)))


def waiting(tried: Settled, ranking: Tensor | None, limit: float) -> dict[int, str]:
    """The less flat half of the neurons that would have been removed."""
    classes = tried.moves.saturated.nonzero().flatten()
    if ranking is not None:
        classes = classes[ranking[classes].argsort(stable=True)]
    why = (
        f"less flat than others, and together they would change the outputs by {tried.drift:.1e} (max_drift {limit:g})"
    )
    return dict.fromkeys(classes[len(classes) // 2 :].tolist(), why)


def described(moves: Moves) -> tuple[str, ...]:
    """Return in words how the constants of removed neurons were moved."""
    if not moves.into:
        return ()
    ways = ", ".join(f"{WORDS[how]} ({count})" for how, count in sorted(moves.into.items()))
    return (f"constants moved, readers: {ways}",)


def dropped(moves: Moves) -> Moves:
    """The same cut without its constants."""
    still = {key: Seen(s.source, (s.source == torch.arange(len(s.source), device="cpu")) * s.factor, s.offset * 0.0)
             for key, s in moves.seen.items()}  # fmt: skip
    return replace(moves, shifts=(), seen=still, into=type(moves.into)())


def outputs_after(model: nn.Module, moves: Moves, example_inputs: Any, outputs: Outputs = None) -> list[Tensor]:
    """Outputs of the model in which every neuron that goes is replaced by its constant wherever it is read.

    Where its constant goes into a bias that is not right everywhere, by nothing, and the bias has it already.
    """
    args, kwargs = copied(as_inputs(example_inputs))

    def replaced(read: Read, operand: Tensor) -> Tensor | None:
        seen = moves.seen.get(key_of(read))
        if seen is None:
            return None
        line = [-1 if dim == read.axis else 1 for dim in range(operand.dim())]
        factor, offset = (v.to(operand.device, operand.dtype).view(line) for v in (seen.factor, seen.offset))
        return operand.index_select(read.axis, seen.source.to(operand.device)) * factor + offset

    with quiet(model), shifted(named_tensors(model), moves), observing(model, moves.plan.before.graph, replaced):
        return compared(model, args, kwargs, outputs)


@contextmanager
def shifted(tensors: Mapping[str, Tensor], moves: Moves) -> Iterator[None]:
    """Inside, tensors have the shifts that are not exact; as before after."""
    names = {shift.tensor for shift in moves.shifts if not shift.exact}
    before = {name: tensors[name].detach().clone() for name in names}
    try:
        for shift in moves.shifts:
            if not shift.exact:
                tensors[shift.tensor].add_(shift.values.to(tensors[shift.tensor]))
        yield
    finally:
        for name, value in before.items():
            tensors[name].copy_(value)


def masked_weights(contents: Iterable[Any]) -> set[str]:
    """Names of weights of which some entries are held at zero: masks come as boolean copies of the model."""
    found = set()
    for content in contents:
        if isinstance(content, Mapping):
            found |= {n for n, t in content.items() if t.dtype == torch.bool and not bool(whole_tensor(t).all())}
    return found


def counts(settled: Settled) -> tuple[int, int]:
    """Neurons over all layers that went as zeros, and as other constants."""
    before, after = settled.plan.before, settled.plan.after
    saturated = sum(int(settled.moves.saturated[layer.classes].sum()) for layer in before.graph.layers)
    removed = before.neurons - after.neurons
    return removed - saturated, saturated
