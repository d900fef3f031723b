"""The course of a run to its budget: which neurons must go next, how they fade, and when they are cut.

A phase of the run, a share ``push_from`` to ``push_until``, has ``rounds`` periods of equal length. At the start of
each the neurons that matter least for what they cost are chosen, as many as its goal asks for; in the period their
scales fade to exactly 0; at its end they are removed, which then changes nothing. Goals lie on a straight line from the
dense network to the budget. What is left of the run trains the network that comes out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demp.budgets import Budget, Choice, Meter, Question, choose
from demp.errors import UsageError
from demp.files.checks import check_at_least, check_number
from demp.methods.base import Selection, View
from demp.methods.reaching import goals_at
from demp.methods.redundant import enough, handovers, unsaid_by_class
from demp.regularization import Shrink
from demp.regularization.handover import Handover
from demp.surgery import Limits

LOOKS = 24
"""About so many steps of a period are looked at to learn which neurons matter; more would only cost time."""
MEMORY = 0.9
"""Decay of the mean of squared sensitivities from look to look."""


USUAL_END = 0.2
"""Share of the run by which a phase ends that was given no end."""
STEPS_A_ROUND = 8
"""Such a phase is longer where its rounds would have fewer steps, up to half of the run."""


def check_phase(start: float, end: float | None, rounds: int, power: float) -> None:
    """Refuse knobs that make no phase.

    Raises:
        UsageError: shares out of order, no round, or an exponent that is negative or not a number.
    """
    last = USUAL_END if end is None else end
    if not 0 <= start < last <= 1:
        raise UsageError(
            f"push_from is {start} and push_until is {last}; give shares of the run in [0, 1], in this order"
        )
    check_at_least("rounds", rounds, 1)
    check_number("cost_power", power)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """When and how a run goes to its budget."""

    budget: Budget
    start: float
    end: float | None
    """None: `USUAL_END`, in short runs later."""
    rounds: int
    power: float
    """Exponent of what a neuron costs, in its rank: importance / cost ** power."""
    limits: Limits
    hands_over: bool = True
    """Do fading neurons leave what others can say of them in the weights that read these?"""
    unused: tuple[str, ...] = ()
    """Options that were given and do nothing on the way to a budget."""

    def marks(self, total_steps: int) -> tuple[int, ...]:
        """Steps done at the start of each period, and at the end of the last.

        Raises:
            UsageError: the phase has no step.
        """
        first = max(1, round(self.start * total_steps))
        last = self.last(first, total_steps)
        rounds = min(self.rounds, last - first)
        if rounds < 1:
            raise UsageError(
                f"a run of {total_steps} steps is too short to reach a budget between steps {first} and {last} "
                "of it; raise total_steps, or widen push_from and push_until"
            )
        return tuple(round(first + (last - first) * k / rounds) for k in range(rounds + 1))

    def last(self, first: int, total_steps: int) -> int:
        """Steps done at the end of the last period, where the first begins after ``first``."""
        if self.end is not None:
            return round(self.end * total_steps)
        return max(round(USUAL_END * total_steps), min(first + self.rounds * STEPS_A_ROUND, total_steps // 2))


class Course:
    """Where a run is on its way to the budget. All of its decisions are functions of its state: see ``state_dict``."""

    def __init__(self, phase: Phase, total_steps: int) -> None:
        self.phase, self.total_steps = phase, total_steps
        self.marks = phase.marks(total_steps)
        self.every = max(1, (self.marks[1] - self.marks[0]) // LOOKS)
        self._next = 0
        self._fading: Tensor | None = None
        self._importance: Tensor | None = None
        self._handovers: tuple[Handover, ...] = ()
        self._left: float | None = 1.0
        """Of the scales of those that fade; None: as the cosine says (an older state)."""

    def is_due(self, step: int) -> bool:
        """Return whether a period begins or ends at this step."""
        return step in self.marks

    @property
    def done(self) -> bool:
        """Is the last period of the phase over?"""
        return self._next >= len(self.marks)

    def unfinished(self, step: int) -> str:
        """What was still to come after ``step`` steps."""
        if step >= self.marks[-1]:
            return ""
        return f"the way to the budget had not ended (it does at step {self.marks[-1]:,}), so the rest went at once"

    def looks(self, step: int) -> bool:
        """Do neurons begin to fade at this step, or did a check wait, so that what varies together is wanted?"""
        overdue = not self.done and self.marks[self._next] <= step < self.marks[-1]
        return self.phase.hands_over and overdue

    # Importance -------------------------------------------------------------------------------------------

    def watches(self, step: int) -> bool:
        """Is the sensitivity of this step wanted?"""
        return not self.done and step % self.every == 0

    def watch(self, sensitivity: Tensor) -> None:
        """Take one step's derivatives by the factors on all neurons: their mean square is the importance."""
        wide = sensitivity.to(torch.promote_types(sensitivity.dtype, torch.float32))
        square = wide.nan_to_num(0.0, 0.0, 0.0).square().clamp(max=torch.finfo(torch.float32).max)
        before = self._importance
        self._importance = square if before is None else before.to(square) * MEMORY + square * (1 - MEMORY)

    # Selection --------------------------------------------------------------------------------------------

    def select(self, step: int, view: View) -> Selection:
        """Select what has faded, and choose what fades next; at the end of the run, select all that is too much."""
        if not view.final and (self.done or step < self.marks[self._next]):
            return Selection()
        going = torch.zeros_like(view.state.removed) if self._fading is None else self._fading & ~view.state.removed
        after, notes = view.state.removed | going, []
        if self._next == 0 and self.phase.unused:
            notes.append(f"with a budget neurons fade, and these options do nothing: {', '.join(self.phase.unused)}")
        self._fading, self._handovers, self._left = None, (), 1.0
        while not self.done and self.marks[self._next] <= step:
            self._next += 1
        if view.final:
            self._next = len(self.marks)
        share = 1.0 if self.done else self._next / (len(self.marks) - 1)
        goals = goals_at(view.meter, self.phase.budget, share)
        if view.meter.lack(goals, after):
            found = self._choice(view, after, goals)
            notes += [self._message(view, after, goals, found), *said_of_frozen(view, found.chosen)]
            if self.done:
                going = going | found.chosen
            else:
                self._fading = found.chosen
        else:
            notes.append(f"budget: {spent(view.meter, goals, after)}, as far as it must be")
        layers = {layer.name: going[layer.classes] for layer in view.graph.layers}
        return Selection({n: f for n, f in layers.items() if bool(f.any())}, exact=False, notes=tuple(notes))

    def _choice(self, view: View, after: Tensor, goals: Mapping[str, float]) -> Choice:
        importance = (
            torch.zeros(view.graph.classes, device="cpu") if self._importance is None else self._importance.cpu()
        )
        found = {} if self.done or not self.phase.hands_over else enough(view.covariances())
        takers = view.takers() if found else ()
        importance = unsaid_by_class(importance, view.state, after, found, takers)
        question = Question(importance=importance, limits=self.phase.limits, power=self.phase.power, streams_first=True)
        choice = choose(view.meter, after, goals, question)
        if found:
            self._handovers = handovers(view.state, after, choice.chosen, found, takers, view.frozen())
        return choice

    def _message(self, view: View, after: Tensor, goals: Mapping[str, float], found: Choice) -> str:
        """What was decided, in a line."""
        now, then = (spent(view.meter, goals, removed) for removed in (after, after | found.chosen))
        count = view.graph.at(after).neurons - view.graph.at(after | found.chosen).neurons
        if found.lack:
            wanted = ", ".join(f"{name} {value:.3f}" for name, value in self._wanted(view.meter, goals).items())
            why = "every layer left is at its floor, excluded or refused"
            return f"budget: {now}; {wanted} cannot be reached, because {why}"
        if self.done:
            return f"budget: {then}, {count} neurons removed without fading"
        takers = f"; weights that take what others can say of them: {len(self._handovers)}" if self._handovers else ""
        return f"budget: {now}; {count} neurons fade until step {self.marks[self._next]}, to {then}{takers}"

    @staticmethod
    def _wanted(meter: Meter, goals: Mapping[str, float]) -> dict[str, float]:
        dense = torch.zeros(meter.graph.classes, dtype=torch.bool, device="cpu")
        return {name: goal / max(meter.spent(name, dense), 1e-300) for name, goal in goals.items()}

    # How they fade ----------------------------------------------------------------------------------------

    def shrink(self, step: int) -> Shrink | None:
        """The factors of the step that has just been made, the first of which is 0."""
        if self._fading is None or not bool(self._fading.any()):
            return None
        start, end = self.marks[self._next - 1], self.marks[self._next]
        before, after = (remaining((count - start) / (end - start)) for count in (step, step + 1))
        factor = after / before if before > 0 else 0.0
        left = before if self._left is None else self._left  # not `before` where the run took another length
        self._left = left * factor
        factors = torch.where(self._fading, factor, 1.0)
        last = factor == 0 and left > 0
        return Shrink(factors=factors, handovers=self._handovers, share=left - self._left, last=last)

    # State ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the next period, the fading neurons, what is left of them and handed over, and the importance."""
        fading = {"fading": self._fading, "left": self._left, "handovers": [one.to_plain() for one in self._handovers]}
        return {"next": self._next, "importance": self._importance, **fading}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved run was."""
        self._next, self._fading, self._importance = int(state["next"]), state["fading"], state["importance"]
        self._handovers = tuple(Handover(**one) for one in state.get("handovers", ()))
        self._left = state.get("left")


def remaining(progress: float) -> float:
    """What is left of a fading neuron's scale: ``(1 + cos(pi p)) / 2``, from 1 to exactly 0."""
    return 0.0 if progress >= 1 else (1 + math.cos(math.pi * max(progress, 0.0))) / 2


def said_of_frozen(view: View, chosen: Tensor) -> list[str]:
    """What to know of neurons that are about to fade where frozen weights scale them; nothing of others."""
    count = int((chosen & view.frozen()).sum())
    if not count:
        return []
    return [
        f"{count} of them are scaled by frozen weights (LoRA: of the base), which do not fade and do not say how the "
        "loss minds them: their removal changes the outputs by the drift of its report. Train these weights, or prune "
        "before they are frozen"
    ]


def spent(meter: Meter, goals: Mapping[str, float], removed: Tensor) -> str:
    """As a reader wants it: ``0.412 of flops``."""
    return ", ".join(f"{share:.3f} of {name}" for name, share in meter.shares(goals, removed).items())
