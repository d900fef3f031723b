"""The paper's death check: a few evaluation batches of training examples (Sec. 3.3, App. F.3)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from demp import ranks, wrappers
from demp.activity.criteria import Criterion
from demp.activity.observe import Tally, observing, quiet
from demp.compiled import original
from demp.errors import UsageError
from demp.graph import NeuronGraph, trace
from demp.graph.forward import as_inputs


@dataclass(frozen=True)
class Verdict:
    """Who is dead, judged on how many examples."""

    dead: dict[str, Tensor]
    """Layer name -> boolean per neuron, dense numbering; a removed neuron counts as neither."""
    batches: int
    examples: int


def probe(
    model: nn.Module,
    graph: NeuronGraph,
    gone: Tensor,
    batches: Iterable[Any],
    criterion: Criterion,
    *,
    until_settled: bool = False,
) -> Verdict:
    """Run ``batches`` in evaluation mode; a neuron is dead if it is dead in every batch at every read point.

    ``until_settled`` stops early once no neuron is left that all of its readers find dead: more batches can only
    show more neurons alive.

    Raises:
        UsageError: there is no batch.
    """
    tally = Tally(graph, gone, criterion)
    count = examples = 0
    with quiet(model):
        for batch in batches:
            args, kwargs = as_inputs(batch)
            watch(model, graph, tally, args, kwargs)
            count += 1
            examples += next((len(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()), 0)
            if until_settled and not bool(tally.agreed().any()):
                break
    if count == 0:
        raise UsageError("no batches to judge death on; give at least one batch of training examples")
    return Verdict(tally.verdict(), count, examples)


def agreed(mine: Verdict, group: ranks.Group) -> Verdict:
    """The verdict of all ranks: dead on each of them, on all of their examples."""
    counts = ranks.gathered((mine.batches, mine.examples), group)
    return Verdict(ranks.common(mine.dead, group), sum(b for b, _ in counts), sum(e for _, e in counts))


def watch(model: nn.Module, graph: NeuronGraph, tally: Tally, args: Any, kwargs: Any) -> Any:
    """One forward whose read points go to the tally."""
    with observing(model, graph, lambda read, value: tally.add(read, value, read.axis)):
        return model(*args, **kwargs)


def alive(
    model: nn.Module, batches: Iterable[Any], *, criterion: Criterion | str = "auto", graph: NeuronGraph | None = None
) -> dict[str, Tensor]:
    """Layer name -> boolean per neuron: alive on these batches.

    A neuron is alive if any batch shows it alive at any of its read points. Each batch is a tuple of the model's
    arguments, a dict of them, or a single tensor; the model runs in evaluation mode without gradients.
    """
    judged = Criterion(kind=criterion) if isinstance(criterion, str) else criterion
    model, batches = original(model), list(batches)
    if not batches:
        raise UsageError("no batches to judge death on; give at least one batch of training examples")
    model = wrappers.inside(model)
    graph = graph or trace(model, batches[0])
    verdict = probe(model, graph, graph.nothing_gone(), batches, judged)
    return {name: ~dead for name, dead in verdict.dead.items()}
