"""What a network spends without a set of removed neurons: FLOPs, parameters, neurons, memory, latency."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from demp.budgets.budget import Budget
from demp.errors import UsageError
from demp.graph import NeuronGraph
from demp.graph.forward import first_names
from demp.graph.neurons import numel

Clock = Callable[[Tensor], tuple[float, float]]
"""Removed neurons -> seconds of one forward without them, and of the dense network at the same time."""
"""Removed neurons (boolean per class) -> seconds of one forward of the network that is left."""
Goals = Mapping[str, float]
"""Resource -> how much of it may be spent, absolute."""


@dataclass(frozen=True)
class Sizes:
    """What the graph does not know of a model's tensors."""

    parameters: frozenset[str]
    """First names of all parameters."""
    bytes_each: Mapping[str, int]
    """First name of a parameter or buffer -> bytes of one entry."""


def sizes_of(model: nn.Module) -> Sizes:
    """Names and bytes of a model's tensors, each tied tensor once."""
    tensors, _ = first_names(model)
    parameters = frozenset(name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter))
    return Sizes(parameters, {name: tensor.element_size() for name, tensor in tensors.items()})


class Segments:
    """Several lists of classes as one, so that all of them are counted in one operation."""

    def __init__(self, lists: Sequence[Tensor], classes: int) -> None:
        self.lengths = torch.tensor([len(one) for one in lists], dtype=torch.float64, device="cpu")
        self._members = torch.cat([*lists, torch.zeros(0, dtype=torch.long, device="cpu")])
        self._ids = torch.arange(len(lists), device="cpu").repeat_interleave(self.lengths.long())
        self._classes = classes

    def left(self, removed: Tensor) -> Tensor:
        """How many members of each list are not removed, float64."""
        return torch.zeros_like(self.lengths).index_add_(0, self._ids, (~removed[self._members]).double())

    def per_class(self, values: Tensor) -> Tensor:
        """For each class, the sum over its places in all lists of the list's value."""
        return torch.zeros(self._classes, dtype=torch.float64, device="cpu").index_add_(
            0, self._members, values[self._ids]
        )


class Meter:
    """Measures resources of one model as functions of ``removed`` (boolean per class, dense numbering).

    ``clock`` is asked for latency alone, and remembers nothing: what was measured is kept here.
    """

    def __init__(self, graph: NeuronGraph, sizes: Sizes, clock: Clock | None = None) -> None:
        self.graph, self.sizes, self._clock = graph, sizes, clock
        self._times: dict[str, float] = {}
        self._dense = graph.none_removed()
        everyone = torch.zeros(0, dtype=torch.long, device="cpu")
        ops = graph.contractions
        self._flops = torch.tensor([float(op.flops) for op in ops], dtype=torch.float64, device="cpu")
        self._inputs, self._outputs = (
            Segments([everyone if one is None else one for one in sides], graph.classes)
            for sides in ([op.inputs for op in ops], [op.outputs for op in ops])
        )
        self._layers = Segments([layer.classes for layer in graph.layers], graph.classes)
        self._axes = Segments([slot.classes for slot in graph.slots], graph.classes)
        self._tensors = list(graph.shapes)
        of_tensor: dict[str, list[int]] = {name: [] for name in self._tensors}
        for index, slot in enumerate(graph.slots):
            of_tensor[slot.tensor].append(index)
        most = max((len(slots) for slots in of_tensor.values()), default=0)
        none = len(graph.slots)  # stands for an axis of length 1
        self._slots_of = torch.tensor(
            [s + [none] * (most - len(s)) for s in of_tensor.values()], dtype=torch.long, device="cpu"
        )
        dense = torch.tensor(
            [float(numel(shape)) for shape in graph.shapes.values()], dtype=torch.float64, device="cpu"
        )
        self._fixed = dense / padded(self._axes.lengths)[self._slots_of].prod(1)

    def spent(self, resource: str, removed: Tensor) -> float:
        """How much of ``resource`` the network spends that ``removed`` leaves, in the units of ``budget.UNITS``."""
        if resource == "flops":
            shares = self._share(self._inputs, removed) * self._share(self._outputs, removed)
            return float(round(float((self._flops * shares).sum())))
        if resource == "neurons":
            return float(self._layers.left(removed).sum())
        if resource == "latency":
            return self._latency(removed)
        lengths = padded(self._axes.left(removed))[self._slots_of]
        return float((self._each(resource) * self._fixed * lengths.prod(1)).sum())

    def goals(self, budget: Budget) -> dict[str, float]:
        """The limits of a budget as absolute numbers.

        Raises:
            UsageError: latency without a device to measure on.
        """
        if budget.latency is not None and self._clock is None:
            raise UsageError("a latency budget is measured on the example inputs; give example_inputs that can be run")
        return {
            name: limit * self.spent(name, self._dense) if isinstance(limit, float) else float(limit)
            for name, limit in budget.given().items()
        }

    def shares(self, goals: Goals, removed: Tensor) -> dict[str, float]:
        """Resource -> what is spent of it over the dense network's, for the resources of ``goals``."""
        return {name: self.spent(name, removed) / max(self.spent(name, self._dense), 1e-300) for name in goals}

    def lack(self, goals: Goals, removed: Tensor) -> dict[str, float]:
        """Resource -> by how much the network exceeds its goal; only those that do."""
        over = {name: self.spent(name, removed) - goal for name, goal in goals.items()}
        return {name: excess for name, excess in over.items() if excess > 0}

    def savings(self, resource: str, removed: Tensor) -> Tensor:
        """Per class, float64: what removing it alone saves, to first order; 0 for what is removed.

        FLOPs stand for latency, whose share of one neuron cannot be measured.
        """
        if resource in ("flops", "latency"):
            inputs, outputs = self._share(self._inputs, removed), self._share(self._outputs, removed)
            found = self._inputs.per_class(self._flops * outputs / self._inputs.lengths.clamp(min=1))
            found += self._outputs.per_class(self._flops * inputs / self._outputs.lengths.clamp(min=1))
        elif resource == "neurons":
            found = self._layers.per_class(torch.ones_like(self._layers.lengths))
        else:
            lengths = padded(self._axes.left(removed))
            entries = self._each(resource) * self._fixed * lengths[self._slots_of].prod(1)
            owner = torch.zeros(len(self.graph.slots) + 1, dtype=torch.float64, device="cpu")
            owner[self._slots_of.flatten()] = entries[:, None].expand(self._slots_of.shape).flatten()
            found = self._axes.per_class((owner / lengths.clamp(min=1))[:-1])
        found[removed] = 0.0
        return found

    @staticmethod
    def _share(lists: Segments, removed: Tensor) -> Tensor:
        """Share of each list that is left; 1 where it is empty."""
        return torch.where(lists.lengths > 0, lists.left(removed) / lists.lengths.clamp(min=1), 1.0)

    def _each(self, resource: str) -> Tensor:
        """Per tensor: bytes of an entry, or 1 for parameters and 0 for buffers."""
        counted = self.sizes.bytes_each if resource == "memory" else dict.fromkeys(self.sizes.parameters, 1)
        return torch.tensor([float(counted.get(name, 0)) for name in self._tensors], dtype=torch.float64, device="cpu")

    def measure_again(self, removed: Tensor) -> None:
        """Forget the latency of a network and take it anew: of several that were measured the luckiest is chosen."""
        self._times[key_of(removed)] = self._measured(removed)

    def _latency(self, removed: Tensor) -> float:
        key = key_of(removed)
        if key not in self._times:
            self._times[key] = self._measured(removed)
        return self._times[key]

    def _measured(self, removed: Tensor) -> float:
        """Microseconds, on the scale of the dense network's first measurement: machines are busier at other times."""
        assert self._clock is not None
        mine, dense = self._clock(removed)
        if not bool(removed.any()):
            return 1e6 * dense
        return mine / dense * self._latency(self._dense)

    def state_dict(self) -> dict[str, float]:
        """The measured latencies, so that a resumed run decides from the same numbers."""
        return dict(self._times)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore the latencies that were measured in a saved run."""
        self._times = {key: float(value) for key, value in state.items()}


def key_of(removed: Tensor) -> str:
    """A short name for a set of removed neurons."""
    return hashlib.sha256(removed.numpy().tobytes()).hexdigest()[:16]


def padded(lengths: Tensor) -> Tensor:
    """Lengths of axes, and a 1 at the end for the axis that is not there."""
    return torch.cat([lengths, lengths.new_ones(1)])
