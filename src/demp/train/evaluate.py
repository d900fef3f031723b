"""Accuracy on a whole test set."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demp.errors import UsageError
from demp.files.run import ACCURACY
from demp.parallel import ALONE, Context


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    context: Context = ALONE,
) -> dict[str, float]:
    """Share of right answers and mean cross-entropy, in eval mode; the mode comes back.

    The ranks that train the model each bring a part of the images, and share the result.

    Raises:
        UsageError: a label is no class of the model's head.
    """
    was_training = model.training
    model.eval()
    right, loss, count = 0, 0.0, 0
    for x, y in batches:
        with autocast():
            logits = model(x).float()
        if y.numel() and int(y.max()) >= logits.shape[1]:
            raise UsageError(
                f"there is a label {int(y.max())}, but the model's head has {logits.shape[1]} "
                "classes; test it on data with the same classes"
            )
        right += int((logits.argmax(dim=1) == y).sum())
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        count += len(y)
    model.train(was_training)
    right, loss, count = context.total((right, loss, count))
    return {ACCURACY: right / count, "eval/loss": loss / count}
