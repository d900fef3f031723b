"""One run under one method: the model as it shrinks, the method, how far the run is, and the detector."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from demp.activity.covariances import CovarianceWindow
from demp.activity.detector import Detector, Sources, by_probe
from demp.activity.readers import reads_its_input
from demp.budgets import Meter, sizes_of
from demp.graph import GraphState
from demp.masking.masks import Masks
from demp.methods.base import Method
from demp.methods.masks import MaskMethod, of_today
from demp.parallel import raise_if_compiled
from demp.pruner.examples import Examples, raise_if_loss_fails, raise_if_no_examples
from demp.pruner.latency import LatencyClock
from demp.pruner.model import ShrinkingModel
from demp.pruner.other_optimizers import OtherOptimizers
from demp.pruner.validation import raise_if_in_pieces, raise_if_unreachable
from demp.regularization import OutputScales


class PruningRun:
    """What the parts of a pruner share.

    Raises:
        UsageError: the method cannot work on this model, with these examples, or towards its budget.
    """

    def __init__(
        self,
        shrinking: ShrinkingModel,
        method: type[Method],
        config: Any,
        examples: Examples,
        *,
        total_steps: int,
        seed: int,
    ) -> None:
        model, graph = shrinking.model, shrinking.graph
        self.shrinking, self.config, self.examples = shrinking, config, examples
        self.step, self.total_steps, self.seed = 0, int(total_steps), seed
        self.method = of_today(method)(config, total_steps)
        self.method.raise_if_unfit(graph)
        self.requirements = self.method.requirements()
        raise_if_in_pieces(method.name, self.requirements, shrinking.context, masks=self.mask_method is not None)
        timed = config.budget is not None and config.budget.latency is not None
        clock = LatencyClock(shrinking, examples.inputs).seconds if timed else None
        self.meter = Meter(graph, sizes_of(model), clock)
        raise_if_unreachable(self.method, self.meter, config)
        raise_if_no_examples(method.name, self.requirements, examples)
        self.masks = Masks(model)
        shrinking.masks = self.masks.kept
        self.detector = self._new_detector()
        if self.requirements.scores:
            raise_if_loss_fails(model, examples)
        if not shrinking.context.compiled:
            self.detector.watch_held_out()
        self.scales = OutputScales(model, graph)
        self.covariances = self._new_window()
        self.others = OtherOptimizers(model, graph, lambda: shrinking.optimizers)
        shrinking.others, self.detector.on_training = self.others.cut_too, self.others.forward

    def _new_detector(self) -> Detector:
        shrinking, examples, requirements = self.shrinking, self.examples, self.requirements
        if not by_probe(examples.batches, requirements.collect):
            raise_if_compiled(shrinking.given)
        sources = Sources(
            example_inputs=examples.inputs,
            batches=examples.unlabelled(),
            collect=requirements.collect,
            window_steps=requirements.window_steps,
            seed=self.seed,
        )
        return Detector(shrinking.model, shrinking.graph, self.method.criterion(), sources)

    def _new_window(self) -> CovarianceWindow | None:
        """Watches what takes a handover and computes with its weight as it is; None where nothing does."""
        model, graph = self.shrinking.model, self.shrinking.graph
        if self.shrinking.context.compiled:
            return None
        asked = []
        for taker in self.scales.takers(graph.dense):
            path, _, leaf = taker.read.weight.rpartition(".")
            if leaf == "weight" and reads_its_input(model.get_submodule(path)):
                asked.append(taker.read)
        return CovarianceWindow(model, graph, asked) if asked else None

    @property
    def mask_method(self) -> MaskMethod | None:
        """The method, if it masks single weights."""
        return self.method if isinstance(self.method, MaskMethod) else None

    def plan(self, total_steps: int) -> None:
        """Take another length: the method goes on, and its schedules are those of the new one from this step on."""
        before, self.method = self.method, type(self.method)(self.config, total_steps)
        self.method.load_state_dict(before.state_dict())
        self.total_steps = total_steps

    def stepped(self) -> None:
        """An optimizer moved."""
        for watching in (self.detector, self.covariances):
            if watching is not None:
                watching.step()
        self.others.own_step()

    def look_ahead(self, due: Callable[[int], bool], *, fresh: bool) -> None:
        """Watch the forwards of the next step where something is due after it; ``fresh``: a check was just made."""
        state, step = self.shrinking.state, self.step
        self.detector.look_ahead(state, step, self.total_steps, due, fresh=fresh)
        if self.covariances is not None:
            if step < self.total_steps and due(step + 1) and self.method.looks(step + 1):
                self.covariances.open(state)
            else:
                self.covariances.close()

    def close(self) -> None:
        """Remove all hooks that watch forwards."""
        self.detector.close()
        self.others.close()
        if self.covariances is not None:
            self.covariances.close()

    def loss_scale(self) -> Tensor | None:
        """The scale that gradients still carry when a fused optimizer unscales inside its step."""
        optimizers = self.shrinking.optimizers
        return next((s for o in optimizers if (s := getattr(o, "grad_scale", None)) is not None), None)

    def moved(self) -> dict[int, dict[str, Any]]:
        """Groups of the parameters that the optimizers are about to move, by id: trainable, held, with a gradient."""
        groups = [group for optimizer in self.shrinking.optimizers for group in optimizer.param_groups]
        return {id(p): g for g in groups for p in g["params"] if p.requires_grad and p.grad is not None}


class OfRun:
    """What a pruner and the view that its method has both say of their run."""

    _run: PruningRun

    @property
    def state(self) -> GraphState:
        """The network as it is now."""
        return self._run.shrinking.state

    @property
    def total_steps(self) -> int:
        """The optimizer steps of the whole run."""
        return self._run.total_steps

    @property
    def seed(self) -> int:
        """The seed of the noise and of the examples that are drawn."""
        return self._run.seed
