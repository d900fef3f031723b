"""What a training loop attaches: the moments of a run, and which part of the pruner acts at each of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity import Detection
from demp.activity.detector import Batches
from demp.errors import UsageError
from demp.importance.gates import Loss
from demp.methods.base import Method
from demp.parallel import Stopwatch
from demp.pruner.attachment import Attachment
from demp.pruner.checkpoint import restore, saved_state, say_detached, say_ended
from demp.pruner.checks import Checks
from demp.pruner.copies import PrunerCopy, pickled
from demp.pruner.cutter import Cutter
from demp.pruner.earlier import EarlierPruner
from demp.pruner.examples import Examples
from demp.pruner.initialization import draw_weights
from demp.pruner.length import same_plan
from demp.pruner.model import ShrinkingModel
from demp.pruner.regularizer import Regularizer
from demp.pruner.run import OfRun, PruningRun
from demp.pruner.summary import Summary, metrics_of, summary_of, with_run
from demp.pruner.validation import (
    raise_if_foreign_optimizer,
    raise_if_other_pruner,
    raise_if_second_pruner,
    validate_attachment,
    validate_total_steps,
)
from demp.pruner.view import LiveView
from demp.surgery import CutReport, denormals
from demp.surgery.earlier import names_of_today
from demp.surgery.guards import outside_autocast
from demp.surgery.optimizers import as_optimizers


class Pruner(OfRun, EarlierPruner):
    """Runs one method on one training run. What each option means: ``help(demp.DemP)``.

    A method that prunes or masks before training does so here (or in ``attach_to``). Where a trainer makes the
    optimizer later, give None and call ``attach_to(optimizer)``.

    ``model`` may be wrapped in ``DistributedDataParallel``. Among several ranks each one builds a pruner with the same
    arguments but its own ``batches``, and calls what the others call; a neuron goes only if it is dead on all of them.
    """

    @names_of_today
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
        method: type[Method],
        config: Any,
        *,
        example_inputs: Any,
        total_steps: int,
        batches: Batches | None = None,
        loss_fn: Loss | None = None,
        attach: bool = True,
        copies: Iterable[Any] = (),
        seed: int = 0,
        resume: bool = False,
        forward: str | Callable[..., Any] | None = None,
        outputs: Callable[[Any], Any] | Sequence[str] | None = None,
        on_error: str = "skip",
        alive_in_copies: str = "wait",
        shows_cuts: bool = True,
    ) -> None:
        self._begun, self._finished, self._detached = resume, False, True
        validate_total_steps(total_steps)
        optimizers = as_optimizers(optimizer)
        validate_attachment(optimizers, attach=attach)
        self._shrinking = shrinking = ShrinkingModel(
            model, example_inputs, reading=config.reading(), forward=forward, outputs=outputs, copies=copies
        )
        self._stopwatch = Stopwatch(shrinking.context.compiled)
        examples = Examples(example_inputs, batches, loss_fn)
        self._run = run = PruningRun(shrinking, method, config, examples, total_steps=total_steps, seed=seed)
        self.model, self.graph, self.history = shrinking.model, shrinking.graph, shrinking.history
        self.config, self.requirements, self.masks = config, run.requirements, run.masks
        self._view = view = LiveView(run)
        self._regularizer = Regularizer(run, view)
        cutter = Cutter(run, view, self._regularizer.live, alive_in_copies, shows_cuts=shows_cuts)
        self._checks = Checks(run, view, cutter, on_error)
        self._attachment = Attachment(lambda: shrinking.context)
        self._start(None if optimizer is None else optimizers, attach=attach)

    def _start(self, optimizers: tuple[torch.optim.Optimizer, ...] | None, *, attach: bool) -> None:
        """Refuse where others prune the model in another way, and begin if the optimizers are there."""
        self._shrinking.context.raise_if_unfit_wrappers()
        raise_if_other_pruner(self, self._shrinking.context)
        raise_if_second_pruner(self)
        self._look_ahead()
        if optimizers is not None:
            self._take(optimizers)
        if attach and optimizers:
            self._attachment.move(optimizers[0], self)
        self._detached = False

    def attach_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Hook the step of an optimizer that was made after the pruner: the first, or another for a second phase.

        The optimizer before it is let go; as long as it lives its state still follows the cuts.

        Raises:
            UsageError: the pruner has ended, or this is its own already, or no optimizer.
        """
        if self._detached:
            raise UsageError("this pruner has ended (finish() or detach()); make another one for another run")
        before, after = self.optimizers, as_optimizers(optimizer)
        validate_attachment(after, attach=True)
        if any(one is held for one in after for held in before):
            raise UsageError("this pruner has its optimizer already")
        self._take(after)
        self._attachment.move(after[0], self)
        self._run.others.keep(before)
        self._run.others.handed_over()

    def plan(self, total_steps: int) -> None:
        """Take another length for the rest of the run: from this step on, all schedules are those of the new length."""
        if same_plan(self.total_steps, total_steps, self.step, self._shrinking.context):
            return
        self._run.plan(total_steps)
        self._regularizer.plan()
        self._checks.plan()
        self._look_ahead()

    def add_copy(self, copy: Any) -> None:
        """Cut a copy of the model (an average, a teacher, a target network) with it from now on, and fade it along.

        It may be a module like the model, a wrapper around one (``AveragedModel``, an EMA class), a dict of tensors by
        the model's names (a state dict), or a list of tensors in the order of ``model.parameters()``.

        Raises:
            UsageError: there is no copy in it, or it does not fit the model as it is now.
        """
        self._shrinking.add_copy(copy)

    def _take(self, optimizers: tuple[torch.optim.Optimizer, ...]) -> None:
        """Accept these optimizers as those of the parameters, and do what the method does before the first step."""
        raise_if_foreign_optimizer(self.model, self.graph, optimizers)
        self._shrinking.optimizers = optimizers
        if self._begun:
            return
        self._begun = True
        if self.method.is_due(0):
            self._checks.attempt()
        if self.requirements.new_weights:
            draw_weights(self.model, self.seed)
        self._regularizer.begin()

    @property
    def method(self) -> Method:
        """Return the method, which holds what it has learned of this run."""
        return self._run.method

    @property
    def step(self) -> int:
        """Return how many optimizer steps are done."""
        return self._run.step

    @step.setter
    def step(self, step: int) -> None:
        self._run.step = step

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Return the optimizers that hold the parameters; none yet where a trainer makes them later."""
        return self._shrinking.optimizers

    @property
    def finished(self) -> bool:
        """Return whether ``finish`` has been called."""
        return self._finished

    @property
    def at_work(self) -> bool:
        """Return whether it is attached, or driven by hand, and neither finished nor detached."""
        return not self._detached

    @property
    def flops(self) -> int:
        """Return the FLOPs of one forward on the example inputs, through the network as it is now."""
        return self.state.flops()

    @outside_autocast()
    def before_step(self) -> None:
        """Call it, with ``attach=False``, after backward: notes which neurons are live, adds the penalty's gradient."""
        self._regularizer.before_step()

    @outside_autocast()
    def after_step(self) -> CutReport | None:
        """Call it, with ``attach=False``, after the optimizer's step: adds noise, counts the step, checks where due.

        Returns the report of the check, None without one; of several cuts that of the last (``history`` has all).

        Raises:
            CutError: with ``on_error="raise"``: a cut was refused or rolled back.
        """
        self._stopwatch.stop()
        self._run.stepped()
        self._regularizer.after_step()
        self._run.step += 1
        if self.step % denormals.EVERY_STEPS == 0:
            denormals.sweep(self.optimizers)
        self._shrinking.raise_if_odd_state_once()
        report, cuts = None, self._shrinking.cuts
        if self._checks.is_due(self.step):
            report = self._checks.make(final=self.step >= self.total_steps)
        self._look_ahead(fresh=report is not None)
        self._stopwatch.start(after_cut=self._shrinking.cuts > cuts)
        return report

    def skip_step(self) -> None:
        """Call it instead of ``after_step`` when the optimizer did not move (a GradScaler met an overflow)."""

    def penalty_loss(self) -> Tensor:
        """Return the penalty as a differentiable scalar to add to the loss, for ``penalty_in="loss"`` (Sec. 3.1)."""
        return self._regularizer.penalty_value()

    @outside_autocast()
    def finish(self) -> CutReport:
        """Make the final check and its cut, remove all hooks, and return the report, with what the whole run came to.

        A check on the last of ``total_steps`` is the final one and is not made twice. Called again, it returns the same
        report.

        Raises:
            UsageError: it never had an optimizer.
        """
        if self._finished:
            return self.history[-1]
        if not self.optimizers:
            raise UsageError("finish() was called on a pruner without an optimizer; call attach_to(optimizer) to train")
        self._checks.finish()
        self._finished = True
        self.detach()
        report = self.history[-1] = with_run(self.history[-1], self.summary())
        return report

    def summary(self) -> Summary:
        """Return what the run has come to by now, layer by layer, and what comes next; printed, it is a table."""
        return summary_of(self, self._checks.past, self._shrinking.cuts)

    def __repr__(self) -> str:
        return f"<Pruner {self.summary().head()}>"

    def __reduce__(self) -> Any:
        return pickled(PrunerCopy(self.state_dict(), self.history, self.summary(), self.metrics()))

    def detach(self) -> None:
        """Remove all hooks of this pruner from model and optimizers."""
        self._attachment.remove()
        self._run.close()
        self._shrinking.outside.close()
        if not (self._detached or self._finished) and self.step < self.total_steps:
            say_detached(self._run)
        self._detached = True

    def detect(self) -> Detection:
        """Detect which neurons are dead now, on ``batches`` or what the window saw. All ranks must call this."""
        return self._view.detect()

    def _look_ahead(self, *, fresh: bool = False) -> None:
        """Watch training forwards where a check is near; ``fresh``: one was just made."""
        if not self._finished:
            self._run.look_ahead(self._checks.is_due, fresh=fresh)

    def metrics(self) -> dict[str, float]:
        """Return strength, noise, sparsity, parameters and FLOPs of this step by name: cheap, for a log."""
        return metrics_of(self, self._regularizer.pushes, self._shrinking.cuts)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside model and optimizer: tensors, numbers and strings only."""
        return saved_state(self._run, self._regularizer, self._checks)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give model and optimizer the widths of a saved run: the freshly built dense model, or this run later on.

        Call it before ``model.load_state_dict`` and ``optimizer.load_state_dict``. Neurons that return, in the model,
        its copies and the optimizer's state, are zero until then. A run may be resumed with another ``total_steps``. A
        pruner that has ended gives back the widths alone.

        Raises:
            UsageError: the state is of another method or model.
        """
        restore(state, self._run, self._regularizer, self._checks)
        self._begun = True
        if self._detached:
            say_ended(self._run)
        else:
            self._look_ahead()
