"""What a method may see of a live run: the concrete ``demp.methods.View``."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity import Detection, agreed
from demp.activity.detector import Batches, Detector, made
from demp.activity.zeros import share_of_zeros
from demp.budgets import Meter
from demp.errors import UsageError
from demp.graph.forward import first_names
from demp.importance.gates import Gated, Loss, Scoring, first, scores, size_of
from demp.masking.masks import Masks, maskable
from demp.methods.base import Wants
from demp.parallel import ranks, shards
from demp.pruner.earlier import EarlierView
from demp.regularization import OutputScales

NOTHING_JUDGED = {"batches": 0, "examples": 0, "forwards": 0}


class Examples:
    """The training examples that a pruner was given: plain ones, or, with a loss, pairs of inputs and targets."""

    def __init__(self, batches: Batches | None, loss_fn: Loss | None, seed: int) -> None:
        self._batches, self.loss_fn, self.seed = batches, loss_fn, seed

    def pairs(self, step: int) -> Iterable[Any]:
        """Batches with targets, for the scores of this step."""
        return () if self._batches is None else made(self._batches, self.seed + step)

    def unlabelled(self) -> Batches | None:
        """Batches of inputs alone, to judge death on."""
        if self._batches is None or self.loss_fn is None:
            return self._batches
        return self._inputs

    def _inputs(self, seed: int) -> Iterator[Any]:
        assert self._batches is not None
        for batch in made(self._batches, seed):
            if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
                raise UsageError("with loss_fn every one of batches must be a pair (inputs, targets)")
            yield batch[0]


def refuse_missing(name: str, wants: Wants, batches: Batches | None, loss_fn: Loss | None) -> None:
    """A method that scores needs something to score on."""
    if wants.scores and (batches is None or loss_fn is None):
        raise UsageError(
            f"{name} measures the loss on training examples; pass loss_fn=... (of output and targets) and "
            "batches=... (pairs of inputs and targets: a list, a DataLoader, or a callable that takes a seed)"
        )
    if wants.zeros and batches is None:
        raise UsageError(f"{name} looks at activations on training examples; pass batches=...")


class LiveView(EarlierView):
    """One run as its method sees it; the pruner keeps ``total_steps``, ``state``, ``step``, ``final`` and ``group``."""

    def __init__(
        self, model: nn.Module, meter: Meter, detector: Detector, examples: Examples, masks: Masks, scales: OutputScales
    ) -> None:
        self._model, self._detector, self._examples, self._masks = model, detector, examples, masks
        self.meter, self.graph = meter, meter.graph
        self._scales = scales
        self.total_steps, self.state = 0, meter.graph.dense
        self.step, self.final, self.group = 0, False, None
        self.judged = dict(NOTHING_JUDGED)
        """Batches and examples looked at since the last check began, and their cost in forwards of one example."""
        self.found: Detection | None = None
        self._judged_at = -1

    @property
    def seed(self) -> int:
        """Return the random seed of the run."""
        return self._examples.seed

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Return masks by parameter name, true where a weight is kept."""
        return self._masks.kept

    def forget(self) -> None:
        """Forget what this check has found."""
        self.found, self.judged = None, dict(NOTHING_JUDGED)

    @property
    def can_detect(self) -> bool:
        """Are there examples to judge death on?"""
        return self._detector.has_examples

    def detect(self) -> Detection:
        """Who is dead now. Among several ranks all must ask."""
        if self.found is None or self._judged_at != self.step:
            self._judged_at = self.step
            with shards.whole(self._model), ranks.together(self.group):
                mine = self._detector.detect(self.state, self.step)
            self.found = agreed(mine, self.group)
            self._count(self.found.batches, self.found.examples, self.found.examples)
        return self.found

    def scores(self, scoring: Scoring) -> Tensor:
        """Return one derivative per class, computed on labelled batches."""
        loss_fn = self._examples.loss_fn
        assert loss_fn is not None, "a method that scores says so in wants()"
        with shards.whole(self._model):
            found = scores(self._model, self.state, scoring, self._examples.pairs(self.step), loss_fn, self.group)
        self._count(found.batches, found.examples, found.forwards)
        return found.values

    def loss(self, batches: int) -> float:
        """Mean loss as training sees it. Among several ranks all must ask."""
        loss_fn = self._examples.loss_fn
        assert loss_fn is not None, "a method that asks for the loss says scores=True in wants()"
        with shards.whole(self._model):
            gated = Gated(self._model, self.state, Scoring(batches=batches, batch_statistics=True))
            with ranks.together(self.group):
                pairs = first(self._examples.pairs(self.step), batches)
            with gated.ready(), torch.no_grad():
                found = [gated.loss(gated.gates(), pair, loss_fn).double().cpu() for pair in pairs]
        examples = int(ranks.total([sum(size_of(inputs) for inputs, _ in pairs)], self.group)[0])
        self._count(int(ranks.total([len(pairs)], self.group)[0]), examples, examples)
        return float(ranks.mean(torch.stack(found).mean(), self.group))

    def zeros(self, batches: int) -> Tensor:
        """Share of zeros per class."""
        source = self._examples.unlabelled()
        assert source is not None, "a method that looks at activations says so in wants()"
        with ranks.together(self.group):
            chosen = [batch for _, batch in zip(range(batches), made(source, self.seed + self.step), strict=False)]
            if not chosen:
                raise UsageError("there is no batch to look at; give at least one batch of training examples")
        found, count, examples = share_of_zeros(self._model, self.state, chosen, self.group)
        self._count(count, examples, examples)
        return found

    def scales(self) -> Tensor:
        """Sizes of the neurons' scales."""
        return self._scales.sizes(self.state)

    def parameters(self) -> Mapping[str, Tensor]:
        """Trainable parameters by first name."""
        tensors, _ = first_names(self._model)
        named = {n: p for n, p in tensors.items() if isinstance(p, nn.Parameter) and p.requires_grad}
        return {name: shards.whole_of(p.detach()) for name, p in named.items()}

    def maskable(self) -> Mapping[str, Tensor]:
        """Weights that a mask may thin out."""
        return {name: p.detach() for name, p in maskable(self._model, self.graph).items()}

    def gradients(self) -> Mapping[str, Tensor]:
        """Gradients of what is maskable; zero where there is none."""
        found = maskable(self._model, self.graph)
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
