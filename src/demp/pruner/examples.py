"""The examples that a pruner was given: inputs of one forward, and batches of training examples."""

from collections.abc import Iterable, Iterator
from typing import Any

from demp.activity.detector import Batches, made
from demp.errors import UsageError
from demp.importance.gates import Loss
from demp.methods.base import Requirements


class Examples:
    """``inputs`` of one forward; training examples are plain ones, or, with a loss, pairs of inputs and targets."""

    def __init__(self, inputs: Any, batches: Batches | None, loss_fn: Loss | None) -> None:
        self.inputs, self.batches, self.loss_fn = inputs, batches, loss_fn

    def pairs(self, seed: int) -> Iterable[Any]:
        """Batches with targets, to score on."""
        return () if self.batches is None else made(self.batches, seed)

    def unlabelled(self) -> Batches | None:
        """Batches of inputs alone, to look for dead neurons on."""
        if self.batches is None or self.loss_fn is None:
            return self.batches
        return self._inputs_of_pairs

    def _inputs_of_pairs(self, seed: int) -> Iterator[Any]:
        assert self.batches is not None
        for batch in made(self.batches, seed):
            if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
                raise UsageError("with loss_fn every one of batches must be a pair (inputs, targets)")
            yield batch[0]


def raise_if_no_examples(name: str, requirements: Requirements, examples: Examples) -> None:
    """A method that looks at training examples, or measures the loss on them, needs some.

    Raises:
        UsageError: the method needs labelled or unlabelled batches that were not given.
    """
    if requirements.scores and (examples.batches is None or examples.loss_fn is None):
        raise UsageError(
            f"{name} measures the loss on training examples; pass loss_fn=... (of output and targets) and "
            "batches=... (pairs of inputs and targets: a list, a DataLoader, or a callable that takes a seed)"
        )
    if requirements.zeros and examples.batches is None:
        raise UsageError(f"{name} looks at activations on training examples; pass batches=...")
