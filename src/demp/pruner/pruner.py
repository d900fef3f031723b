"""The conductor: when to penalise, add noise, look, and cut. It attaches to the optimizer and owns nothing else."""

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity import Detection, ranked
from demp.activity.detector import Batches, Detector, by_probe
from demp.budgets import Meter, sizes_of
from demp.errors import DempError, UsageError
from demp.graph import GraphState
from demp.graph.forward import set_forward
from demp.importance.gates import Loss
from demp.masking.masks import Masks
from demp.methods.base import Method, Selection
from demp.parallel import ranks, wrappers
from demp.parallel.compiled import Stopwatch, is_compiled, refuse_to_watch
from demp.pruner.attachment import attach as attach_hooks
from demp.pruner.copies import PrunerCopy
from demp.pruner.earlier import Earlier
from demp.pruner.initialization import draw_weights
from demp.pruner.latency import LatencyClock
from demp.pruner.length import Pushes, compare_plans, same_plan
from demp.pruner.model import HeldError, ShrinkingModel
from demp.pruner.other_optimizers import OtherOptimizers
from demp.pruner.postponement import Postponement, broken
from demp.pruner.skipping import Skips
from demp.pruner.sparing import Sparing, warn_of_changes
from demp.pruner.strictness import constant_rules, is_exact
from demp.pruner.summary import Summary, metrics_of, show, summary_of, with_run
from demp.pruner.validation import (
    left_out,
    refuse_foreign_optimizer,
    refuse_other_pruner,
    refuse_pieces,
    refuse_second_pruner,
    refuse_unreachable,
)
from demp.pruner.view import Examples, LiveView, last_check, refuse_missing
from demp.regularization import OutputScales
from demp.regularization import noise as noise_module
from demp.regularization.targets import LiveNeurons, Penalised
from demp.surgery import CutReport, denormals
from demp.surgery.cut import as_optimizers
from demp.surgery.guards import outside_autocast
from demp.surgery.record import described_inputs, remember_inputs

logger = logging.getLogger("demp")

STATE_VERSION = 1


class Pruner(Earlier):
    """Runs one method on one training run. What each option means: ``help(demp.DemP)``.

    A method that prunes or masks before training does so here (or in ``attach_to``). Where a trainer makes the
    optimizer later, give None and call ``attach_to(optimizer)``.

    ``model`` may be wrapped in ``DistributedDataParallel``. Among several ranks each one builds a pruner with the same
    arguments but its own ``batches``, and calls what the others call; a neuron goes only if it is dead on all of them.
    """

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
        holders: Iterable[Any] = (),
        seed: int = 0,
        fresh: bool = True,
        forward: str | Callable[..., Any] | None = None,
        outputs: Callable[[Any], Any] | Sequence[str] | None = None,
        on_error: str = "skip",
        alive_in_copies: str = "wait",
        shows_cuts: bool = True,
    ) -> None:
        if not isinstance(total_steps, Integral) or total_steps <= 0:
            raise UsageError(f"total_steps is {total_steps}; give the number of optimizer steps of the run, at least 1")
        optimizers = as_optimizers(optimizer)
        if attach and len(optimizers) > 1:
            raise UsageError(
                "with several optimizers use attach=False and call before_step() and after_step() yourself"
            )
        set_forward(wrappers.inside(model), forward)
        self._shrinking = shrinking = ShrinkingModel(model, example_inputs, joins=config.joins, outputs=outputs)
        self._stopwatch = Stopwatch(is_compiled(model))
        self.model, self.graph, self.history = shrinking.model, shrinking.graph, shrinking.history
        self.config, self.total_steps, self.seed, self.step = config, int(total_steps), seed, 0
        self.method = method(config, total_steps)
        self._pushes = Pushes(self.method, self.total_steps)
        self.method.refuse_unfit(self.graph)
        self.wants = wants = self.method.wants()
        refuse_pieces(method.name, wants, self.model)
        meter = Meter(self.graph, sizes_of(self.model), LatencyClock(shrinking, example_inputs).seconds)
        refuse_unreachable(self.method, meter, config)
        refuse_missing(method.name, wants, batches, loss_fn)
        given_examples = Examples(batches, loss_fn, seed)
        self.masks = Masks(self.model)
        if not by_probe(batches, wants.collect):
            refuse_to_watch(model)
        model = self.model
        self._penalised = Penalised(model, self.graph, wants.penalty_on)
        self._live = LiveNeurons(
            model, self.graph, mask=wants.live_mask, weights_only=wants.noise_weights_only, others=wants.noise_others
        )
        self._detector = Detector(
            model,
            self.graph,
            self.method.criterion(),
            example_inputs=example_inputs,
            batches=given_examples.unlabelled(),
            collect=wants.collect,
            window_steps=wants.window_steps,
            seed=seed,
        )
        self._scales = OutputScales(model, self.graph)
        self._view = LiveView(model, meter, self._detector, given_examples, self.masks, self._scales)
        self._view.total_steps = self.total_steps
        self._sparing, shrinking.masks = Sparing(alive_in_copies), self.masks.kept
        for given in holders:
            self.add_copy(given)
        self._skips = Skips(on_error, self.total_steps)
        self._scratch: noise_module.Scratch = {}
        self._masks_wait = self._finished = self._final = False
        self._postponement = Postponement()
        self._others = OtherOptimizers(model, self.graph, lambda: shrinking.optimizers)
        shrinking.others, self._detector.on_training = self._others.cut_too, self._others.forward
        self._checks_before = 0
        """Checks before a restart."""
        self._shows_cuts = shows_cuts
        self._detached = True
        """False while this pruner is at work."""
        self._moving: dict[int, float] | None = None
        self._begun = not fresh
        self._handles: list[Any] = []
        wrappers.refuse_unfit(shrinking.wrappers)
        refuse_other_pruner(self, shrinking.group)
        refuse_second_pruner(self)
        self._look_ahead()
        if optimizer is not None:
            self._take(optimizers)
        if attach and optimizers:
            self._handles += attach_hooks(optimizers[0], self, lambda: shrinking.group)
        self._detached = False

    def attach_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Hook the step of an optimizer that was made after the pruner: the first, or another for a second phase.

        The optimizer before it is let go; as long as it lives its state still follows the cuts.
        """
        if self._detached:
            raise UsageError("this pruner has ended (finish() or detach()); make another one for another run")
        before = self.optimizers
        if optimizer in before:
            raise UsageError("this pruner has its optimizer already")
        self._take((optimizer,))
        for handle in self._handles:
            handle.remove()
        self._others.keep(before)
        self._others.handed_over()
        self._handles = attach_hooks(optimizer, self, lambda: self._shrinking.group)

    def plan(self, total_steps: int) -> None:
        """Take another length for the rest of the run: all schedules are those of the new one from this step on."""
        if same_plan(self.total_steps, total_steps, self.step, self._shrinking.group):
            return
        before, self.method = self.method, type(self.method)(self.config, total_steps)
        self.method.load_state_dict(before.state_dict())
        self.total_steps = self._view.total_steps = self._skips.total_steps = total_steps
        self._pushes, self._final = Pushes(self.method, total_steps), False
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
        """Accept these optimizers as those of the parameters, and begin pruning."""
        refuse_foreign_optimizer(self.model, self.graph, optimizers)
        self._shrinking.optimizers = optimizers
        self._begin()

    def _begin(self) -> None:
        """What the method does before the first step."""
        if self._begun:
            return
        self._begun = True
        if self.method.is_due(0):
            self._check_now()
        if self.wants.new_weights:
            draw_weights(self.model, self.seed)
        masks, factors = self.method.initial_masks(self._seen()), self.method.initial_factors(self._seen())
        with torch.no_grad():
            for name, factor in factors.items():
                self.model.get_parameter(name).mul_(factor)
        self.masks.put(masks, self.optimizers)

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Those that hold the parameters; none yet where a trainer makes them later."""
        return self._shrinking.optimizers

    @property
    def finished(self) -> bool:
        """Return whether ``finish`` has been called."""
        return self._finished

    @property
    def at_work(self) -> bool:
        """Is it attached, or driven by hand, and neither finished nor detached?"""
        return not self._detached

    @property
    def state(self) -> GraphState:
        """The network as it is now."""
        return self._shrinking.state

    @property
    def flops(self) -> int:
        """FLOPs of one forward of one example through the network as it is now."""
        return self.state.flops()

    # The two moments of a step -----------------------------------------------------------------------

    @outside_autocast()
    def before_step(self) -> None:
        """After backward, before the optimizer moves: look who is live, add the penalty's gradient."""
        self._pushes.say_past(self.step, self._shrinking.group)
        noise = self._pushes.noise(self.step)
        if noise is not None and noise.std > 0:
            self._live.look()
        if self._pushes.watches(self.step):
            self._watch()
        moves = not self._update_masks()
        penalty = self._pushes.penalty(self.step)
        if penalty is not None and self.wants.penalty_in == "gradient":
            moved = self._moved()
            rising = frozenset(p for p, group in moved.items() if group.get("maximize"))
            self._penalised.add_gradient(penalty, self.state, self._loss_scale(), moved.keys(), rising)
        self.masks.hold_gradients()
        if not moves:
            for parameter in self.model.parameters():
                parameter.grad = None
        self._moving = {p: lr for p, group in self._moved().items() if (lr := float(group["lr"])) != 0}

    def _watch(self) -> None:
        """Show the method how the loss answers to every neuron, before anything is added to the gradients."""
        found = self._scales.sensitivity(self.state)
        if found is not None:
            scale = self._loss_scale()
            self.method.watch(found if scale is None else found / scale.to(found.device))

    def _update_masks(self) -> bool:
        """New masks where they are due, from the gradients as they are; is the optimizer to skip this step?

        Gradients that are not finite (an overflow that a fused optimizer is about to skip) say nothing: the next do.
        """
        if not (self._masks_wait or self._pushes.masks_due(self.step)):
            return False
        view = self._seen()
        self._masks_wait = not all(bool(g.isfinite().all()) for g in view.gradients().values())
        if self._masks_wait:
            return False
        self.masks.put(self.method.update_masks(self.step, view), self.optimizers)
        return self.wants.skip_updates

    @outside_autocast()
    def after_step(self) -> CutReport | None:
        """After the optimizer moved: noise on the live, count the step, and where due check and cut.

        Of several cuts in one step the report of the last; ``history`` has them all.
        """
        self._stopwatch.stop()
        self._detector.step()
        self._others.own_step()
        noise = self._pushes.noise(self.step)
        if noise is not None and noise.std > 0:
            lr_of = {p: float(group["lr"]) for p, group in self._moved().items()} if noise.times_lr else None
            targets = [t for t in self._live.targets(self.state, lr_of) if id(t.parameter) in (self._moving or ())]
            noise_module.add_noise(targets, noise, seed=self.seed, step=self.step, scratch=self._scratch)
        shrink = self._pushes.shrink(self.step)
        if shrink is not None:
            self._scales.apply(shrink, self.state, self._shrinking.tensors_of_copies(), self._moving)
        self.masks.hold_weights()
        self._moving, self._final = None, False
        self.step += 1
        if self.step % denormals.EVERY_STEPS == 0:
            denormals.sweep(self.optimizers)
        self._shrinking.refuse_state_once()
        report, cuts = None, self._shrinking.cuts
        if self._is_due(self.step):
            report = self._check(final=self.step == self.total_steps)
        self._look_ahead(fresh=report is not None)
        self._stopwatch.start(after_cut=self._shrinking.cuts > cuts)
        return report

    def skip_step(self) -> None:
        """Instead of ``after_step`` when the optimizer did not move (a GradScaler met an overflow)."""

    def penalty_loss(self) -> Tensor:
        """The penalty as a differentiable term, for ``penalty_in="loss"``."""
        penalty = self._pushes.penalty(self.step)
        return torch.zeros(()) if penalty is None else self._penalised.value(penalty, self.state)

    @outside_autocast()
    def finish(self) -> CutReport:
        """The final check and cut, unless it was just made; all hooks are removed. Again: the last report.

        A check that falls on the last of ``total_steps`` is the final one.
        """
        if self._finished:
            return self.history[-1]
        if not self.optimizers:
            raise UsageError("finish() was called on a pruner without an optimizer; call attach_to(optimizer) to train")
        if not self._final:
            self._check(final=True, finishing=True)
        elif not self.history:  # made before a restart
            self._cut_nothing()
        self.detach()
        self._finished = True
        report = self.history[-1] = with_run(self.history[-1], self.summary())
        return report

    def summary(self) -> Summary:
        """What the run has come to by now, layer by layer, and what is next; printed, a table."""
        return summary_of(self, self._checks_before + len(self.history), self._shrinking.cuts)

    def __repr__(self) -> str:
        return f"<Pruner {self.summary().head()}>"

    def __reduce__(self) -> Any:
        return PrunerCopy, (self.state_dict(), self.history, self.summary(), self.metrics())

    def detach(self) -> None:
        """Remove all hooks of this pruner from model and optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._detector.close()
        self._others.close()
        self._shrinking.outside.close()
        self._detached = True

    # Checks ------------------------------------------------------------------------------------------

    def detect(self) -> Detection:
        """Who is dead now, on examples of training data. Among several ranks all must ask."""
        return self._seen().detect()

    def _seen(self) -> LiveView:
        """The run as the method sees it now."""
        self._view.state, self._view.step, self._view.group = self.state, self.step, self._shrinking.group
        return self._view

    def _is_due(self, step: int) -> bool:
        """Is a check due with ``step`` steps done?"""
        return self._postponement.waiting or self._skips.is_due(step) or self.method.is_due(step)

    def _check(self, *, final: bool, finishing: bool = False) -> CutReport | None:
        """A check; if the cut cannot be made, the report that says why."""
        try:
            return self._check_now(final=final, finishing=finishing)
        except DempError as error:
            self._view.forget()
            return self._skips.skip(self._shrinking, self.step, error, finishing=finishing)

    def _check_now(self, *, final: bool = False, finishing: bool = False) -> CutReport | None:
        """Every cut that the method wants now; the report of the last one. ``finishing``: there is no later moment."""
        shrinking, again = self._shrinking, self._postponement.waiting or self._skips.is_due(self.step)
        shrinking.look_around()
        shrinking.refuse_unready()
        if not (final or again or ranks.any_of(self.method.ready(self.step, self._seen()), shrinking.group)):
            return None
        says = ranks.is_main_process(shrinking.group)
        try:
            shrinking.begin_check(finishing=finishing, at_once=self._postponement.waiting)
            wrappers.share_buffers(shrinking.wrappers)
            report = self._cut(final)
            while self.method.again(self.step):
                report = self._cut(final)
        except HeldError as error:
            self._view.forget()
            self._postponement.put_off(self.step, f"{error}", says=says)
            return None
        self._postponement.end()
        if shrinking.held_by and report.happened and says:
            logger.warning("%s", broken(shrinking.held_by))
        self._skips.settle()
        self._final = final
        return report

    def _cut_nothing(self) -> None:
        """A report of the final check, which was made before a restart."""
        how = {"exact": True, "constants": None, "ranking": None, "step": self.step, "judged": {}}
        notes = ("made before the restart",)
        self._shrinking.cut({}, self.config.limits(), examples=self._detector.proof(), notes=notes, **how)

    def _cut(self, final: bool) -> CutReport:
        """One selection and its cut; if that fails, the method has not selected."""
        before = deepcopy(self.method.state_dict())
        try:
            return self._select_and_cut(final)
        except DempError:
            self.method.load_state_dict(before)
            raise

    def _select_and_cut(self, final: bool) -> CutReport:
        selection, detection = self._select(final)
        self._live.checked((detection or Detection(selection.neurons, 0, 0)).dead)
        neurons, notes = selection.neurons, ()
        if detection is not None and selection.exact is None:
            spared = self._sparing.spared
            neurons, notes = spared(self._detector, self._shrinking, neurons, step=self.step, final=final)
        notes += (*selection.notes, *([selection.advice] if selection.advice else []))
        notes += () if detection is None else self._detector.notes(detection)
        notes += self._others.notes(left_out(self.model, self.graph, (*self.optimizers, *self._shrinking.others())))
        notes += self._skips.summary() if final else ()
        rules = constant_rules(self.method, self.wants, self.graph, selection)
        if rules is not None and detection is None:
            with ranks.together(self._shrinking.group):
                self._detector.draw(self.step)
        report = self._shrinking.cut(
            neurons,
            self.config.limits(),
            examples=self._detector.proof(),
            exact=is_exact(self.method, self.graph, selection),
            constants=rules,
            ranking=ranked(self.graph, detection.deviations)
            if detection is not None and detection.deviations
            else None,
            step=self.step,
            judged=self._view.judged,
            notes=notes,
        )
        self._view.forget()
        warn_of_changes(report, self._shrinking.group)
        if ranks.is_main_process(self._shrinking.group):
            show(report, selection.advice, bool(selection.notes), on_stderr=self._shows_cuts)
        return report

    def _select(self, final: bool) -> tuple[Selection, Detection | None]:
        """Who goes, and the detection behind it if the method asked for one."""
        view = self._seen()
        view.forget()
        if not final:
            return self.method.select(self.step, view), view.found
        with last_check(view):
            return self.method.select(self.step, view), view.found

    def _look_ahead(self, *, fresh: bool = False) -> None:
        if not self._finished:
            self._detector.look_ahead(self.state, self.step, self.total_steps, self._is_due, fresh=fresh)

    # What the optimizers know -------------------------------------------------------------------------

    def _loss_scale(self) -> Tensor | None:
        """The scale that gradients still carry when a fused optimizer unscales inside its step."""
        return next((s for o in self.optimizers if (s := getattr(o, "grad_scale", None)) is not None), None)

    def _moved(self) -> dict[int, dict[str, Any]]:
        """Groups of the parameters that the optimizers are about to move, by id: trainable, held, with a gradient."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return {id(p): g for g in groups for p in g["params"] if p.requires_grad and p.grad is not None}

    # State -------------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """What a log line needs; cheap."""
        return metrics_of(self, self._pushes, self._shrinking.cuts)

    def state_dict(self) -> dict[str, Any]:
        """Everything that must survive a restart: tensors, numbers and strings only."""
        return {
            "version": STATE_VERSION,
            "method": self.method.name,
            "step": self.step,
            "seed": self.seed,
            "total_steps": self.total_steps,
            "gone": self.state.removed.clone(),
            "postponed": self._postponement.waiting,
            "method_state": self.method.state_dict(),
            "judge": self._detector.state_dict(with_inputs=self.step >= self.total_steps),
            "dead_classes": self._live.dead_classes,
            "masks": self.masks.state_dict(),
            "masks_wait": self._masks_wait,
            "cuts": self._shrinking.cuts,
            "checks": self._checks_before + len(self.history),
            "latencies": self._view.meter.state_dict(),
            "final": self._final,
            "skips": self._skips.state_dict(),
            "inputs": described_inputs(self.model),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give model and optimizer the widths of a saved run: the freshly built dense model, or this run later on.

        Call it before ``model.load_state_dict`` and ``optimizer.load_state_dict``. Neurons that return, in the model,
        its copies and the optimizer's state, are zero until then. A run may be resumed with another ``total_steps``.

        Raises:
            UsageError: the state is of another method or model.
        """
        as_planned = compare_plans(state, self.method.name, self.total_steps, self._shrinking.group)
        self._shrinking.replay(state["gone"], self._detector.proof())
        self.step, self.seed = int(state["step"]), int(state["seed"])
        self._postponement.waiting = bool(state["postponed"])
        self.method.load_state_dict(state["method_state"])
        self._live.dead_classes = state["dead_classes"]
        self.masks.load_state_dict(state["masks"])
        self._masks_wait, self._begun = bool(state["masks_wait"]), True
        self._shrinking.cuts = int(state["cuts"])
        checks = int(state.get("checks", len(self.history)))
        del self.history[max(0, checks - self._checks_before) :]  # made after the state was saved
        self._checks_before = max(0, checks - len(self.history))
        self._view.meter.load_state_dict(state.get("latencies", {}))
        self._final = as_planned and bool(state.get("final", False))
        if "skips" in state:
            self._skips.load_state_dict(state["skips"])
        if state.get("inputs") is not None:
            remember_inputs(self.model, state["inputs"])
        self._detector.seed = self.seed
        self._detector.load_state_dict(state["judge"], self.state)
        if self._detached:
            self._detector.close()
