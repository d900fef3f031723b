"""The paper's death check: a few evaluation batches of training examples (Sec. 3.3, App. F.3)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from demp.activity.criteria import Criterion, CriterionKind
from demp.activity.observe import observing, quiet
from demp.activity.tally import Flatness, Tally, larger
from demp.errors import DempError, UsageError
from demp.graph import GraphState, NeuronGraph, trace
from demp.graph.forward import as_inputs
from demp.graph.inputs import copied
from demp.parallel import Context, user_module


@dataclass(frozen=True)
class Detection:
    """Which neurons are dead or saturated, and on how many examples that was seen."""

    dead: dict[str, Tensor]
    """Layer name -> boolean per neuron, dense numbering: dead or, by the criterion ``saturated``, constant. A removed
    neuron counts as neither."""
    batches: int
    examples: int
    means: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> float64 per neuron, dense numbering: its mean over examples and positions (at the consumer where it
    is largest). Only of layers with the criterion ``saturated``; nan where nothing is known or nothing is left."""
    deviations: dict[str, Tensor] = field(default_factory=dict)
    """Layer name -> its deviation over the mean deviation of its layer (at the consumer where that is largest): the
    smaller, the flatter. As ``means``."""
    unseen: tuple[str, ...] = ()
    """Layers that some reader never read, so that nothing is known about their neurons."""
    tallies: tuple[Tally, ...] = field(default=(), repr=False, compare=False)
    """What was seen; a neuron must be dead or saturated by each of them."""

    def saturated(self, layer: str) -> Tensor:
        """Of the neurons in ``dead``, those that are constant without being zero."""
        flags = self.dead[layer]
        if layer not in self.means:
            return torch.zeros_like(flags)
        return flags & ~Flatness(self.means[layer], self.deviations[layer]).zero


def detection_of(tallies: Iterable[Tally], batches: int, examples: int) -> Detection:
    """What follows from what was seen, by all of the tallies."""
    tallies = tuple(tallies)
    dead, means, deviations = tallies[0].detect(), {}, {}
    for tally in tallies[1:]:
        dead = {name: dead[name] & flags for name, flags in tally.detect().items()}
    for tally in tallies:
        for name, flat in tally.flatness().items():
            means[name] = larger(means[name], flat.mean) if name in means else flat.mean
            known = deviations.get(name, flat.deviation)
            deviations[name] = torch.maximum(known, flat.deviation)
    unseen = tuple(dict.fromkeys(name for tally in tallies for name in tally.unseen()))
    return Detection(dead, batches, examples, means, deviations, unseen, tallies)


def probe(
    model: nn.Module,
    state: GraphState,
    batches: Iterable[Any],
    criterion: Criterion,
    *,
    until_settled: bool = False,
) -> Detection:
    """Run ``batches`` in evaluation mode; a neuron is dead if it is dead in every batch at every consumer.

    ``until_settled`` stops early once no neuron is left that all of its readers find dead, where more batches can only
    show more neurons alive: the criterion ``saturated`` needs all of them.

    Raises:
        UsageError: there is no batch, or the model does not run on one.
    """
    tally = Tally(state, criterion)
    count = examples = 0
    with quiet(model):
        for batch in batches:
            args, kwargs = copied(as_inputs(batch))
            watch(model, state.graph, tally, args, kwargs)
            count += 1
            examples += next((len(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()), 0)
            if until_settled and tally.settles and not bool(tally.agreed().any()):
                break
    if count == 0:
        raise UsageError("no batches to look for dead neurons on; give at least one batch of training examples")
    return detection_of((tally,), count, examples)


def agreed(mine: Detection, context: Context) -> Detection:
    """The detection of all ranks: dead on each of them, saturated over the examples of all of them together."""
    if context.alone:
        return mine
    counts = context.gathered((mine.batches, mine.examples))
    batches, examples = sum(b for b, _ in counts), sum(e for _, e in counts)
    states = context.gathered([tally.state_dict() for tally in mine.tallies])
    if not all(len(of_rank) == len(states[0]) > 0 for of_rank in states):  # some rank has seen nothing
        nobody = {name: torch.zeros_like(flags) for name, flags in mine.dead.items()}
        return Detection(nobody, batches, examples)
    joined = (tally.joined(of_all) for tally, *of_all in zip(mine.tallies, *states, strict=True))
    return detection_of(joined, batches, examples)


def watch(model: nn.Module, graph: NeuronGraph, tally: Tally, args: Any, kwargs: Any) -> Any:
    """One forward whose consumers report to the tally.

    Raises:
        UsageError: it fails.
    """
    with observing(model, graph, lambda read, value: tally.add(read, value, read.axis)):
        return tried(model, args, kwargs)


def tried(model: nn.Module, args: Any, kwargs: Any) -> Any:
    """The model's output.

    Raises:
        UsageError: it does not run on these inputs.
    """
    try:
        return model(*args, **kwargs)
    except DempError:
        raise
    except Exception as error:  # the user's forward may raise anything
        raise UsageError(
            f"{type(model).__name__} does not run on the examples of the detector ({type(error).__name__}: "
            f"{error}). A batch is a tuple of the model's arguments, a dict of them by name, or one tensor: without "
            "targets"
        ) from error


def alive(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    criterion: Criterion | CriterionKind = "auto",
    graph: NeuronGraph | None = None,
) -> dict[str, Tensor]:
    """Find out which neurons are alive on these batches: layer name -> boolean per neuron, of shape (width,).

    A neuron is alive if any batch shows it alive at any of its consumers (Sec. 2 of the paper); what dead means for
    each activation is the ``criterion``'s. Each batch is a tuple of the model's arguments, a dict of them, or a single
    tensor; the model runs in evaluation mode without gradients. Layers and neurons are those of `demp.trace` on the
    model as it stands; a ``graph`` of it saves tracing again.

    Raises:
        UsageError: there is no batch, or the model does not run on one.
        TraceError: the model cannot be traced on the first batch.

    >>> import demp
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> _ = model[0].bias.data.copy_(torch.tensor([100.0, -100.0, 100.0]))
    >>> demp.alive(model, [torch.rand(16, 2)])["1"]
    tensor([ True, False,  True])
    """
    chosen = Criterion(kind=criterion) if isinstance(criterion, str) else criterion
    batches = list(batches)
    if not batches:
        raise UsageError("no batches to look for dead neurons on; give at least one batch of training examples")
    model = user_module(model)
    graph = graph or trace(model, batches[0])
    detection = probe(model, graph.dense, batches, chosen)
    return {name: ~dead for name, dead in detection.dead.items()}


def ranked(graph: NeuronGraph, deviations: Mapping[str, Tensor]) -> Tensor:
    """Per class: how flat it is in the layer where it deviates most; nan where nothing is known.

    Float64; sorted upwards it is the order in which saturated neurons leave.
    """
    rank = torch.full((graph.classes,), -torch.inf, dtype=torch.float64, device="cpu")
    for layer in graph.layers:
        if layer.name in deviations:
            rank[layer.classes] = torch.maximum(rank[layer.classes], deviations[layer.name])
    return torch.where(rank == -torch.inf, torch.nan, rank)
