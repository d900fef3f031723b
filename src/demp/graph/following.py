"""One forward that is followed: what its neurons met, which modules ran, where its residual sums stand in the code."""

import logging
from collections import Counter
from collections.abc import Mapping, Set
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from demp.errors import UsageError
from demp.graph import calls
from demp.graph.attributes import counted, groups_of
from demp.graph.branches import Escapes, frames_of, freeze_forks
from demp.graph.forward import Inputs, hooks_off, module_stack, relevant, run, stand_ins
from demp.graph.inputs import tensors_in
from demp.graph.joins import SumSeat, SumWatch
from demp.graph.numbers import Numbers, WidthError
from demp.graph.random_state import SEED
from demp.graph.recomputed import Position, UserCalls
from demp.graph.recording import USUAL, Offer
from demp.graph.recurrent_rules import recurrent_modules
from demp.graph.repeated import merge_runs
from demp.graph.scripted import unfollowed
from demp.graph.trace_state import TraceState
from demp.graph.tracer import Tracer

logger = logging.getLogger("demp")
_followed: ContextVar[frozenset[int]] = ContextVar("models whose training forward is followed", default=frozenset())

DRAWS = 4
"""Training forwards that are followed at most, each with other random numbers."""


@dataclass(frozen=True)
class Forward:
    """A forward that was followed."""

    trace: TraceState
    """What is known of it."""
    substitutes: Mapping[str, Tensor]
    """What stood in for the model's tensors."""
    vehicle: str
    ran: Counter[str]
    """Calls of each module."""
    nested: set[str]
    """Modules inside which other modules sum."""
    out: Any
    left: list[Tensor]
    """Tensors that it left on modules."""
    positions: dict[SumSeat | calls.CallSeat, Position] = field(default_factory=dict)
    """Where each sum stands in the code."""
    recomputed: set[Position] = field(default_factory=set)
    """Sums that the backward ran again, outside of any module."""
    by_chance: bool = False
    """Did a training forward draw from Python's own random numbers?"""
    seed: int = SEED
    """Of what a training forward drew."""
    numbers: frozenset[str] = frozenset()
    """What it computed with."""

    def again(self, model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor], training: bool) -> Any:
        """The same forward on stand-ins of fewer neurons: what counts of its output, and what it left on modules.

        Raises:
            WidthError: it computes with numbers that the forward of the dense model does not have.
        """
        out, left, seen = self._run(model, inputs, tensors, training)
        new = seen.found - self.numbers
        if new and self._run(model, inputs, self.substitutes, training)[2].found <= self.numbers:
            raise WidthError(f"the forward computes with the width: {', '.join(sorted(new))}", seen.lines[min(new)])
        return all_that_counts(out, self.trace.recording.offer, self.vehicle, training), left

    def _run(
        self, model: nn.Module, inputs: Inputs, tensors: Mapping[str, Tensor], training: bool
    ) -> tuple[Any, list[Tensor], Numbers]:
        numbers = Numbers(self.numbers)
        out, left = run(model, tensors, inputs, self.vehicle, modes=(numbers,), training=training, seed=self.seed)
        return out, left, numbers

    def freeze_outputs(self, parameters: Mapping[str, Tensor], known: Set[str] = frozenset()) -> None:
        """Neurons that leave the model, or that a forward which looks at values may treat otherwise, stay.

        Of the parameters ``known``, another forward has shown what they read.
        """
        for tree, reason in ((self.out, "model output"), (self.left, "kept on a module by the forward")):
            for tensor in tensors_in(tree):
                labels = self.trace.labels(tensor)
                for axis in (*labels.axes, labels.chosen):
                    if axis is not None:
                        self.trace.elements.freeze(axis.ids, reason)
        freeze_forks(self.trace, {name: t for name, t in parameters.items() if name not in known}, self.ran)


def all_that_counts(out: Any, offer: Offer, vehicle: str, training: bool, modes: tuple[Any, ...] = ()) -> Any:
    """What counts of an output. Of a training forward that returns something else (losses), all of it."""
    try:
        found = relevant(out, offer.outputs, vehicle, modes)
        if offer.outputs is not None and not tensors_in(found):
            raise UsageError(f"outputs= returns a {type(found).__name__} without tensors; return what counts")
        return found
    except UsageError:
        if not training:
            raise
        return out


def prepared(model: nn.Module, substitutes: Mapping[str, Tensor], training: bool, offer: Offer) -> TraceState:
    """What is known before a forward runs: the tensors of a model, and what its modules say of them."""
    trace = TraceState(substitutes, training=training, offer=offer)
    trace.groups, trace.recurrent = groups_of(model), recurrent_modules(model)
    trace.buffers = {name for name, _ in model.named_buffers()}
    trace.fused = {path for path, module in model.named_modules() if isinstance(module, nn.TransformerEncoderLayer)}
    trace.parents = {path.rpartition(".")[0] for path, _ in model.named_modules() if path}
    for path, module in model.named_modules():
        attribute, leaf, axis = counted(module) or ("", "", 0)
        weight = f"{path}.{leaf}".lstrip(".")
        if attribute and weight in substitutes and substitutes[weight].shape[axis] == getattr(module, attribute):
            trace.attribute(weight, attribute, trace.recording.axes[weight][axis].ids)
    return trace


def follow(
    model: nn.Module,
    substitutes: Mapping[str, Tensor],
    inputs: Inputs,
    vehicle: str,
    *,
    training: bool = False,
    seed: int = SEED,
    offer: Offer = USUAL,
) -> Forward:
    """Run the model's forward on ``substitutes`` in place of its tensors, and follow the neurons.

    A training forward draws by ``seed``. After one with residual sums that a backward may run again (checkpointing) the
    backward runs, too.
    """
    trace, ran = prepared(model, substitutes, training, offer), Counter[str]()
    user_calls = UserCalls(trace, ran, seed)
    tracer, watch = Tracer(trace), SumWatch(trace.modules, user_calls.sum, user_calls.call, ran)
    escapes = (Escapes(trace),) if vehicle == "eager" else ()  # on meta there are no values
    with module_stack(model, trace.modules, ran), frames_of(model, trace), unfollowed(model, trace):
        modes = (tracer, watch, *escapes, numbers := Numbers())
        then = user_calls.after_training if training else None
        out, left = run(model, substitutes, inputs, vehicle, modes=modes, training=training, seed=seed, then=then)
    trace.recording.sums.update(watch.counts)
    trace.recording.counts.update(watch.calls.counts)
    trace.recording.places.update({seat: {place} for seat, place in watch.calls.places().items()})
    merge_runs(trace.recording, ran)
    out = all_that_counts(out, offer, vehicle, training, (tracer,))
    backward = (user_calls.positions, user_calls.recomputed, user_calls.by_chance)
    seen = (watch.nested, out, left, *backward, seed, frozenset(numbers.found))
    return Forward(trace, substitutes, vehicle, ran, *seen)


def follow_training(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs, seen: Forward) -> list[Forward]:
    """The forward in training mode; empty if it does not run on these inputs. ``seen`` is the evaluation forward.

    Where it decides by what it draws and leaves modules out, other draws follow (`DRAWS` in all) until it has run every
    module that evaluation runs. The model's own hooks, which may watch the training, see nothing of it; nor
    does a trace that this forward makes itself follow it once more.
    """
    if id(model) in _followed.get():
        return []
    before = _followed.set(_followed.get() | {id(model)})
    try:
        found: list[Forward] = []
        unseen = set(seen.ran)
        for seed in range(SEED, SEED + DRAWS):
            one = _followed_training(model, tensors, inputs, seen, seed=seed)
            if one is None:
                break
            found.append(one)
            unseen -= set(one.ran)
            if not unseen or one.vehicle == "meta":  # which knows no values to decide by
                break
        return found
    finally:
        _followed.reset(before)


def _followed_training(
    model: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs, seen: Forward, *, seed: int
) -> Forward | None:
    offer = seen.trace.recording.offer
    for each in dict.fromkeys((seen.vehicle, "eager")):
        substitutes = stand_ins(tensors, each)
        if each == "eager":  # a training forward may update parameters in place (codebooks)
            substitutes = {name: t.detach().clone().requires_grad_(t.requires_grad) for name, t in substitutes.items()}
        try:
            with hooks_off(model):
                return follow(model, substitutes, inputs, each, training=True, seed=seed, offer=offer)
        except Exception as error:  # it may need targets, or other examples (a batch norm of one position)
            logger.debug("the training forward does not run (%s) on the example inputs: %s", each, error)
    return None
