"""A model that gets smaller: what was traced, what is removed by now, what must follow, and the cuts."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from demp.errors import CutError, UsageError
from demp.graph import trace
from demp.graph.forward import first_names, set_forward
from demp.parallel import (
    accumulates,
    autograd_leaves,
    context_of,
    raise_if_unfit_sharding,
    rehearse_renewal,
    reshard,
    user_module,
)
from demp.pruner.outside import OutsideReaders
from demp.pruner.validation import raise_if_copy_inside, raise_if_nothing_removable, raise_if_wrapper
from demp.surgery import (
    CutReport,
    Limits,
    LiveModel,
    Plan,
    VerifyOptions,
    execute,
    plan_cut,
    record_of,
)
from demp.surgery.compared import Outputs, raise_if_unknown_outputs
from demp.surgery.copies import Copy, look_alikes, raise_if_misfit, tensors_of, with_copy
from demp.surgery.finite import raise_if_not_finite
from demp.surgery.going_back import go_back
from demp.surgery.guards import held_forward, parts_of, raise_if_replaced_parts
from demp.surgery.report import nothing_removed
from demp.surgery.state import raise_if_odd_state

logger = logging.getLogger("demp")


class HeldError(CutError):
    """A forward may still get its backward, so that the check must wait; the message is what holds it."""


class StillWaitingError(CutError):
    """``finish`` came while a forward waits for its backward: the caller can mend that at once."""


@dataclass(frozen=True)
class CutRequest:
    """One cut that a check asks of a model: which neurons, how it is proven, and what its report says besides."""

    neurons: Mapping[str, Tensor]
    """Layer -> boolean per neuron, dense numbering."""
    limits: Limits
    proof: VerifyOptions
    step: int
    ranking: Tensor | None = None
    """One number per class: of neurons that could go, those that it puts highest stay for floors and the like."""
    judged: Mapping[str, int] = field(default_factory=dict)
    """What the detection behind it looked at: batches, examples, forwards."""
    notes: tuple[str, ...] = ()
    """What the report says besides its own notes."""


def raise_if_uncuttable(model: nn.Module) -> None:
    """The model must be one that demp can cut where it is; its parameters are sharded again if a forward gathered them.

    Raises:
        UsageError: it is a wrapper itself, or sharded in a way that no cut can follow.
    """
    raise_if_wrapper(model)
    raise_if_unfit_sharding(model)
    rehearse_renewal(model)
    reshard(model)


class ShrinkingModel:
    """One model under one pruner.

    ``state`` is the network as it is now. ``reading`` are options of `demp.trace`. ``copies`` are cut with the model
    (see ``add_copy``); ``forward`` and ``outputs`` as in ``PrunerOptions``. Wrappers and ranks may come after the
    pruner: ``look_around`` finds them.
    """

    def __init__(
        self,
        given: nn.Module,
        example_inputs: Any,
        *,
        reading: Mapping[str, bool],
        forward: str | Callable[..., Any] | None = None,
        outputs: Outputs = None,
        copies: Iterable[Any] = (),
    ) -> None:
        self.given, self.model, self._outputs = given, user_module(given), outputs
        set_forward(self.model, forward)
        raise_if_unknown_outputs(self.model, outputs)
        raise_if_uncuttable(self.model)
        self.graph = trace(self.model, example_inputs, outputs=outputs, **reading)
        self._parts, self._base = parts_of(self.model), record_of(self.model)
        raise_if_nothing_removable(self.model, self.graph)
        raise_if_copy_inside(self.model, self.graph)
        self.state = self.graph.dense
        self.optimizers: tuple[torch.optim.Optimizer, ...] = ()
        self.others: Callable[[], tuple[torch.optim.Optimizer, ...]] = tuple
        """Optimizers beside them whose state must follow a cut."""
        self.copies: list[Copy] = []
        """Of the model: they are cut with it."""
        self.measured: list[nn.Module] = []
        """Copies that stay as they are, which measurements are made on."""
        self.masks: Mapping[str, Tensor] = {}
        """Laid out like the parameters; they are cut too."""
        self._looked = self._may_break = self._state_known = False
        self.held_by: str | None = None
        """What holds a forward of the model at this check; None: not looked for, since nothing is to be cut so far."""
        self.outside = OutsideReaders(self.model, self.graph)
        self.history: list[CutReport] = []
        self.cuts = 0
        """How many of the checks in ``history``, and before a restart, took something."""
        self.look_around()
        for copied in copies:
            self.add_copy(copied)

    def look_around(self) -> None:
        """Find out anew who trains the model: wrappers and ranks."""
        self.context = context_of(self.given)

    def raise_if_unready(self) -> None:
        """A model that is not what was traced, or a moment that would meet old weights."""
        with self.context.together():
            torch.clear_autocast_cache()
            reshard(self.model)
            raise_if_replaced_parts(self.model, self._parts)
            raise_if_not_finite(self.model)
            self.context.raise_if_unfit_wrappers()
        self.outside.settle(self.context)

    def add_copy(self, given: Any) -> None:
        """Cut this copy of the model with it, from now on.

        Raises:
            UsageError: there is no copy in it, or it does not fit the model as it is now.
        """
        copies = with_copy(self.copies, given, self.model)
        for copied in copies[len(self.copies) :]:
            raise_if_misfit(copied, self.model, self.state.shapes, cut=bool(self.state.removed.any()))
        self.copies = copies

    def tensors_of_copies(self) -> list[dict[str, Tensor]]:
        """The tensors of each copy by the model's names."""
        return [tensors_of(copied.content) for copied in self.copies]

    def warn_of_copies(self) -> None:
        """At the first cut: name living copies of the model that were not given, because they keep their widths."""
        if self._looked:
            return
        self._looked = True
        found = look_alikes(self.model, [*(copied.content for copied in self.copies), *self.measured])
        if found and self.context.is_main_process:
            several = len(found) > 1 or found[0][0].isdigit()
            logger.warning(
                "the model becomes narrower, and %s with the same parameters %s not given to the pruner: what updates "
                "%s from the model would meet two widths. %s the model (an average, a teacher, a target), call "
                "pruner.add_copy(it) before the first cut, or make it anew after the last",
                " and ".join(found),
                *(("were", "them", "For each that follows") if several else ("was", "it", "If it follows")),
            )

    def raise_if_odd_state_once(self) -> None:
        """Once the optimizers remember something: all of it must be such as a cut can make smaller.

        Raises:
            UsageError: a piece of it is not.
        """
        if not self._state_known and any(optimizer.state for optimizer in self.optimizers):
            self._state_known = True
            raise_if_odd_state(self.optimizers, first_names(self.model)[0], self.state.shapes)

    def begin_check(self, *, finishing: bool, at_once: bool) -> None:
        """A check must wait where gradients or a forward do; ``finishing``: no cut waits for a backward any more.

        The search for a forward looks at every object that Python holds. It is made where something is to be cut, or
        ``at_once``, and among several ranks always, since all must search together.

        Raises:
            HeldError: the check must wait.
            StillWaitingError: it cannot, because it is the last.
        """
        self._may_break, self.held_by = finishing, None
        if self.accumulates():
            if finishing:
                raise StillWaitingError(
                    "finish() was called while gradients wait to be averaged; call it after the last step"
                )
            raise HeldError("an unfinished accumulation of gradients")
        if at_once or not self.context.alone:
            self._raise_if_held()

    def _raise_if_held(self) -> None:
        if self.held_by is None:
            self.held_by = self.held()
        if self.held_by and not self._may_break:
            raise HeldError(self.held_by)

    def accumulates(self) -> bool:
        """Do gradients wait on any rank to be averaged later?"""
        return self.context.any_of(accumulates(self.model))

    def held(self) -> str:
        """What holds a forward that may still get its backward, on any rank; empty if nothing does."""
        with self.context.together():
            names = {id(p): name for name, p in self.model.named_parameters()}
            mine = held_forward((names.get(id(p), "a parameter"), p) for p in autograd_leaves(self.model))
        return next((text for text in self.context.gathered(mine) if text), "")

    def cut(self, request: CutRequest) -> CutReport:
        """Take the neurons of a request, proven on its examples; the report is added to the history.

        Raises:
            CutError: refused, or rolled back; the model is as before.
        """
        plan = plan_cut(self.state, request.neurons, request.limits, request.ranking)
        if not plan.empty:
            self._raise_if_held()
            self.warn_of_copies()
        options = dataclasses.replace(request.proof, outputs=self._outputs)
        report, plan = execute(self._live(), plan, options, step=request.step, judged=request.judged)
        report = dataclasses.replace(report, notes=(*report.notes, *request.notes))
        self.state = plan.after
        self._parts = parts_of(self.model)
        self.history.append(report)
        self.cuts += report.happened
        return report

    def skip(self, step: int, note: str) -> CutReport:
        """Nothing could be taken at this check; the report that says so is added to the history."""
        report = nothing_removed(self.state, dict(self.model.named_parameters()), step=step, notes=(note,))
        self.history.append(report)
        return report

    def replay(self, removed: Tensor, examples: Any) -> None:
        """Have the widths of a saved run at once: take what its cuts took, and give back, as zeros, what it still had.

        Raises:
            UsageError: the saved run is of another model.
        """
        if len(removed) != self.graph.classes:
            raise UsageError("the saved run is of another model: build the dense model that was trained")
        self.look_around()
        after = self.graph.at(removed.bool().cpu())
        raise_if_replaced_parts(self.model, self._parts)
        if bool((self.state.removed & ~after.removed).any()):
            go_back(self._live(), self.state, after, example_inputs=examples)
        else:
            execute(self._live(), Plan(self.state, after, {}), VerifyOptions(examples, verify=False))
        self.state, self._parts = after, parts_of(self.model)

    def _live(self) -> LiveModel:
        """The model as it is now, with all that must follow when it takes other widths."""
        optimizers, copies = (*self.optimizers, *self.others()), (*self.copies, Copy("masks", self.masks))
        return LiveModel(self.model, optimizers, copies, self._base, self.context)
