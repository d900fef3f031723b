"""The examples that a pruner was given: inputs of one forward, and batches of training examples."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from demp.activity.detector import Batches, made
from demp.activity.observe import quiet
from demp.activity.probe import tried
from demp.errors import UsageError
from demp.graph.forward import as_inputs
from demp.graph.inputs import copied
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
            yield pair(batch)[0]


def pair(batch: Any) -> Sequence[Any]:
    """The inputs and targets of one batch.

    Raises:
        UsageError: it is no pair.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise UsageError("with loss_fn every one of batches must be a pair (inputs, targets)")
    return batch


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


def raise_if_loss_fails(model: nn.Module, examples: Examples) -> None:
    """Try the loss on the first of the batches, where they are a sequence: before the first check, not at it.

    Raises:
        UsageError: the batch is no pair, the model does not run on its inputs, or the loss is not one number.
    """
    if examples.loss_fn is None or not isinstance(examples.batches, Sequence):
        return
    inputs, targets = pair(examples.batches[0])
    args, kwargs = copied(as_inputs(inputs))
    with quiet(model):
        output = tried(model, args, kwargs)
        try:
            loss = examples.loss_fn(output, targets)
        except Exception as error:  # the user's loss may raise anything
            raise UsageError(
                f"loss_fn fails on the first of batches ({type(error).__name__}: {error}). It takes the model's output "
                "and the targets: every one of batches is a pair (inputs, targets)"
            ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise UsageError("loss_fn(output, targets) must return the mean loss of the batch, a tensor of one number")
