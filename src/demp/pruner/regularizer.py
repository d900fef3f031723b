"""What a method adds to training around every optimizer step: penalty, noise, fading scales, masks."""

from typing import Any

import torch
from torch import Tensor

from demp.pruner.length import Pushes
from demp.pruner.run import PruningRun
from demp.pruner.view import LiveView
from demp.regularization import noise as noise_module
from demp.regularization.targets import LiveNeurons, Penalised


class Regularizer:
    """Carries out what the method answers, on gradients before a step and on weights after it.

    What it remembers: which neurons were live in this step, which parameters move in it, and whether masks that are
    due still wait for finite gradients.
    """

    def __init__(self, run: PruningRun, view: LiveView) -> None:
        model, graph, requirements = run.shrinking.model, run.shrinking.graph, run.requirements
        self._run, self._view = run, view
        self.pushes = Pushes(run.method, run.total_steps)
        self._penalised = Penalised(model, graph, requirements.penalty_on)
        self.live = LiveNeurons(
            model,
            graph,
            mask=requirements.live_mask,
            weights_only=requirements.noise_weights_only,
            others=requirements.noise_others,
        )
        self._scratch: noise_module.Scratch = {}
        self._masks_wait = False
        self._moving: dict[int, float] | None = None
        """Parameter id -> learning rate, of those that the step that has begun moves."""

    def plan(self) -> None:
        """Follow the run, which has taken another length."""
        self.pushes = Pushes(self._run.method, self._run.total_steps)

    def begin(self) -> None:
        """Multiply and mask weights as the method asks before the first step."""
        method, shrinking = self._run.mask_method, self._run.shrinking
        if method is None:
            return
        masks, factors = method.initial_masks(self._view), method.initial_factors(self._view)
        with torch.no_grad():
            for name, factor in factors.items():
                shrinking.model.get_parameter(name).mul_(factor)
        self._run.masks.put(masks, shrinking.optimizers)

    def before_step(self) -> None:
        """After backward, before the optimizer moves: note which neurons are live, add the penalty's gradient."""
        run, step = self._run, self._run.step
        self.pushes.say_past(step, run.shrinking.context)
        noise = self.pushes.noise(step)
        if noise is not None and noise.std > 0:
            self.live.look()
        if self.pushes.watches(step):
            self._watch()
        moves = not self._update_masks()
        self._add_penalty()
        run.masks.hold_gradients()
        if not moves:
            for parameter in run.shrinking.model.parameters():
                parameter.grad = None
        self._moving = {p: lr for p, group in run.moved().items() if (lr := float(group["lr"])) != 0}

    def _add_penalty(self) -> None:
        run = self._run
        penalty = self.pushes.penalty(run.step)
        if penalty is not None and run.requirements.penalty_in == "gradient":
            moved = run.moved()
            rising = frozenset(p for p, group in moved.items() if group.get("maximize"))
            self._penalised.add_gradient(penalty, run.shrinking.state, run.loss_scale(), moved.keys(), rising)

    def _watch(self) -> None:
        """Show the method how the loss answers to every neuron, before anything is added to the gradients."""
        found = self._run.scales.sensitivity(self._run.shrinking.state)
        if found is not None:
            scale = self._run.loss_scale()
            self._run.method.watch(found if scale is None else found / scale.to(found.device))

    def _update_masks(self) -> bool:
        """New masks where they are due, from the gradients as they are; is the optimizer to skip this step?

        Gradients that are not finite (an overflow that a fused optimizer is about to skip) say nothing: the next do.
        """
        run, method = self._run, self._run.mask_method
        if method is None or not (self._masks_wait or self.pushes.masks_due(run.step, method)):
            return False
        self._masks_wait = not all(bool(g.isfinite().all()) for g in self._view.gradients().values())
        if self._masks_wait:
            return False
        run.masks.put(method.update_masks(run.step, self._view), run.shrinking.optimizers)
        return method.skips_updates()

    def after_step(self) -> None:
        """After the optimizer moved: noise on the live, scales shrink, masked weights are zero again."""
        run, state = self._run, self._run.shrinking.state
        noise = self.pushes.noise(run.step)
        if noise is not None and noise.std > 0:
            lr_of = {p: float(group["lr"]) for p, group in run.moved().items()} if noise.times_lr else None
            targets = [t for t in self.live.targets(state, lr_of) if id(t.parameter) in (self._moving or ())]
            noise_module.add_noise(targets, noise, seed=run.seed, step=run.step, scratch=self._scratch)
        shrink = self.pushes.shrink(run.step)
        if shrink is not None:
            run.scales.apply(shrink, state, run.shrinking.tensors_of_copies(), self._moving)
        run.masks.hold_weights()
        self._moving = None

    def penalty_value(self) -> Tensor:
        """The penalty of this step as a differentiable term."""
        penalty = self.pushes.penalty(self._run.step)
        return (
            torch.zeros((), dtype=torch.float32, device="cpu")
            if penalty is None
            else self._penalised.value(penalty, self._run.shrinking.state)
        )

    def state_dict(self) -> dict[str, Any]:
        """Which neurons were dead at the last check, and whether masks wait."""
        return {"dead_classes": self.live.dead_classes, "masks_wait": self._masks_wait}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved run was."""
        self.live.dead_classes, self._masks_wait = state["dead_classes"], bool(state["masks_wait"])
