"""What a method may see of a live run: the concrete ``demp.methods.View``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from demp.activity import Detection, agreed
from demp.activity.covariances import Covariance
from demp.activity.detector import made
from demp.activity.tally import Key
from demp.activity.zeros import share_of_zeros
from demp.errors import UsageError
from demp.graph.forward import first_names
from demp.importance.gates import Gated, Scoring, first, scores, size_of
from demp.masking.masks import maskable
from demp.parallel import whole_tensor
from demp.pruner.earlier import EarlierView
from demp.pruner.run import OfRun, PruningRun
from demp.regularization.handover import Taker

NOTHING_LOOKED_AT = {"batches": 0, "examples": 0, "forwards": 0}


class LiveView(OfRun, EarlierView):
    """One run as its method sees it. ``final`` and what a check has found last as long as that check."""

    def __init__(self, run: PruningRun) -> None:
        self._run, self._shrinking, self._examples = run, run.shrinking, run.examples
        self.meter, self.graph = run.meter, run.shrinking.graph
        self.final = False
        self.judged = dict(NOTHING_LOOKED_AT)
        """Batches and examples looked at since the last check began, and their cost in forwards of one example."""
        self.found: Detection | None = None
        self._detected_at = -1

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Return masks by parameter name, true where a weight is kept."""
        return self._run.masks.kept

    def forget(self) -> None:
        """Forget what this check has found."""
        self.found, self.judged = None, dict(NOTHING_LOOKED_AT)

    @property
    def can_detect(self) -> bool:
        """Are there examples to look for dead neurons on?"""
        return self._run.detector.has_examples

    def detect(self) -> Detection:
        """Find out which neurons are dead now. Among several ranks all must call this."""
        if self.found is None or self._detected_at != self._run.step:
            self._detected_at = self._run.step
            context = self._shrinking.context
            with context.whole(self._shrinking.model), context.together():
                mine = self._run.detector.detect(self.state, self._run.step)
            self.found = agreed(mine, context)
            self._count(self.found.batches, self.found.examples, self.found.examples)
        return self.found

    def scores(self, scoring: Scoring) -> Tensor:
        """Return one derivative per class, computed on labelled batches."""
        loss_fn = self._examples.loss_fn
        assert loss_fn is not None, "a method that scores says so in requirements()"
        model, context = self._shrinking.model, self._shrinking.context
        with context.whole(model):
            pairs = self._examples.pairs(self.seed + self._run.step)
            found = scores(model, self.state, scoring, pairs, loss_fn, context)
        self._count(found.batches, found.examples, found.forwards)
        return found.values

    def loss(self, batches: int) -> float:
        """Mean loss as training sees it. Among several ranks all must ask."""
        loss_fn = self._examples.loss_fn
        assert loss_fn is not None, "a method that asks for the loss says scores=True in requirements()"
        model, context = self._shrinking.model, self._shrinking.context
        with context.whole(model):
            gated = Gated(model, self.state, Scoring(batches=batches, batch_statistics=True))
            with context.together():
                pairs = first(self._examples.pairs(self.seed + self._run.step), batches)
            with gated.ready(), torch.no_grad():
                found = [gated.loss(gated.gates(), pair, loss_fn).double().cpu() for pair in pairs]
        examples = int(context.total([sum(size_of(inputs) for inputs, _ in pairs)])[0])
        self._count(int(context.total([len(pairs)])[0]), examples, examples)
        return float(context.mean(torch.stack(found).mean()))

    def zeros(self, batches: int) -> Tensor:
        """Share of zeros per class.

        Raises:
            UsageError: there is no batch of training examples.
        """
        source = self._examples.unlabelled()
        assert source is not None, "a method that looks at activations says so in requirements()"
        model, context = self._shrinking.model, self._shrinking.context
        with context.together():
            chosen = [batch for _, batch in zip(range(batches), made(source, self.seed + self._run.step), strict=False)]
            if not chosen:
                raise UsageError("there is no batch to look at; give at least one batch of training examples")
        found, count, examples = share_of_zeros(model, self.state, chosen, context)
        self._count(count, examples, examples)
        return found

    def scales(self) -> Tensor:
        """Per class: the sum of ``|gamma|`` over its norms, or of ``|w|`` over the weights that make it; float64."""
        return self._run.scales.sizes(self.state)

    def covariances(self) -> Mapping[Key, Covariance]:
        """What varies together in the forwards of this step; nothing where no forward was watched."""
        window, context = self._run.covariances, self._shrinking.context
        with context.together():
            return {} if window is None else window.take(context)

    def takers(self) -> Sequence[Taker]:
        """Weights that can take what fading neurons hand over."""
        return self._run.scales.takers(self.state)

    def frozen(self) -> Tensor:
        """Neurons that something frozen scales."""
        return self._run.scales.frozen(self.state)

    def parameters(self) -> Mapping[str, Tensor]:
        """Trainable parameters by first name."""
        tensors, _ = first_names(self._shrinking.model)
        named = {n: p for n, p in tensors.items() if isinstance(p, nn.Parameter) and p.requires_grad}
        return {name: whole_tensor(p.detach()) for name, p in named.items()}

    def maskable(self) -> Mapping[str, Tensor]:
        """Weights that a mask may thin out."""
        return {name: p.detach() for name, p in maskable(self._shrinking.model, self.graph).items()}

    def gradients(self) -> Mapping[str, Tensor]:
        """Gradients of what is maskable; zero where there is none."""
        found = maskable(self._shrinking.model, self.graph)
        return {name: torch.zeros_like(p) if p.grad is None else p.grad.detach() for name, p in found.items()}

    def _count(self, batches: int, examples: int, forwards: int) -> None:
        for key, number in (("batches", batches), ("examples", examples), ("forwards", forwards)):
            self.judged[key] += number


@contextmanager
def last_check(view: LiveView) -> Iterator[None]:
    """Inside, the view says that no check follows."""
    view.final = True
    try:
        yield
    finally:
        view.final = False
