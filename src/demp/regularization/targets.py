"""On which parameters a penalty or noise acts, and which of their entries belong to live neurons."""

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from demp.graph import GraphState, NeuronGraph
from demp.graph.neurons import channel_slots, making_slots, removable_classes
from demp.graph.parts import STREAM
from demp.parallel import everyone, nonzero_along, user_class
from demp.regularization import penalties
from demp.regularization.noise import Target
from demp.regularization.penalties import SLICED, Penalty, PenaltyTarget
from demp.regularization.slices import PresentSlices, Slices

logger = logging.getLogger("demp")

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.RMSNorm,
)


NOTHING_PENALISED = "nothing"
"""In place of a penalty's target: the method has no penalty."""
TargetOrNothing = Literal[PenaltyTarget, "nothing"]
"""What `Requirements.penalty_on` may be."""
LiveMask = Literal["none", "neuron-gradient", "weight-gradient", "last-check"]
"""How it is known which entries are live: see ``DemPConfig.live_mask``; ``none``: all of them count as live."""


def penalised(model: nn.Module, graph: NeuronGraph, on: TargetOrNothing) -> list[nn.Parameter]:
    """Trainable parameters that the penalty acts on now: see DemPConfig.penalty_on.

    A model in which no trainable normalisation feeds removable neurons is penalised on the weights that produce them,
    with one warning (paper, Sec. 4.2).
    """
    scales, producers = candidates(model, graph, on)
    chosen = trainable(scales, producers)
    text = unusual(scales, producers, user_class(model).__name__)
    if on not in ("parameters", NOTHING_PENALISED) and text and everyone().is_main_process:
        logger.warning("%s", text)
    return chosen


def unusual(scales: list[nn.Parameter], producers: list[nn.Parameter], model: str) -> str:
    """What to know where the penalty does not act on scales; empty where it does."""
    if any(p.requires_grad for p in scales):
        return ""
    if producers and not any(p.requires_grad for p in producers):
        return (
            f"what makes the removable neurons of {model} is frozen (requires_grad=False): no penalty reaches them, so "
            "that only neurons go that are dead already. Train it, or prune before it is frozen"
        )
    why = (
        "the normalisations that feed the removable neurons of {} are frozen"
        if scales
        else ("no normalisation feeds the removable neurons of {}")
    )
    return why.format(model) + ": the penalty acts on the weights that produce them instead"


def trainable(scales: list[nn.Parameter], producers: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the scales that are trained at the moment, or else of the weights."""
    return [p for p in scales if p.requires_grad] or [p for p in producers if p.requires_grad]


def candidates(
    model: nn.Module, graph: NeuronGraph, on: TargetOrNothing
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What a penalty acts on while it is trained, and the weights in its place while nothing of it is."""
    parameters = dict(model.named_parameters())
    if on == NOTHING_PENALISED:
        return [], []
    if on == "parameters":
        return list(parameters.values()), []
    removable = removable_classes(graph)
    if on == "all-scales":
        names = [f"{path}.weight" if path else "weight" for path, m in model.named_modules() if isinstance(m, NORMS)]
    else:
        fed = {slot.tensor for slot in graph.slots if bool(removable[slot.classes].any())}
        names = [norm.scale for norm in graph.norms if norm.scale in fed]
    producers = dict.fromkeys(
        tensor
        for layer in graph.layers
        if layer.activation != STREAM and bool(layer.removable.any())
        for tensor, _ in layer.producers
    )
    scales = [parameters[n] for n in dict.fromkeys(names) if n in parameters]
    return scales, [parameters[n] for n in producers if n in parameters]


class Penalised:
    """What the penalty of one run acts on: parameters, or slices of them that belong to neurons."""

    def __init__(self, model: nn.Module, graph: NeuronGraph, on: TargetOrNothing) -> None:
        self._graph, self._sliced = graph, on in SLICED
        if not self._sliced:
            penalised(model, graph, on)  # says so where there is nothing but weights
        self._candidates = ([], []) if self._sliced else candidates(model, graph, on)
        slots = (making_slots(graph) if on == "producers" else channel_slots(graph)) if self._sliced else []
        self._slices = PresentSlices(model, slots)

    def slices(self, state: GraphState) -> list[Slices]:
        """Slices at present widths, in the order in which they lie."""
        return self._slices.at(state)

    def add_gradient(
        self,
        penalty: Penalty,
        state: GraphState,
        loss_scale: Tensor | None,
        moved: Collection[int] | None = None,
        rising: Collection[int] = (),
    ) -> None:
        """See ``penalties.add_gradient``; with ``moved``, only those parameters get one (ids)."""
        if self._sliced:
            slices = [one for one in self.slices(state) if moved is None or id(one.parameter) in moved]
            penalties.add_slice_gradient(slices, penalty, loss_scale, rising)
        else:
            parameters = [p for p in trainable(*self._candidates) if moved is None or id(p) in moved]
            penalties.add_gradient(parameters, penalty, loss_scale, rising)

    def value(self, penalty: Penalty, state: GraphState) -> Tensor:
        """Return the value of the penalty; see ``penalties.value``."""
        if self._sliced:
            return penalties.slice_value(self.slices(state), penalty)
        return penalties.value(trainable(*self._candidates), penalty)


NOTHING = torch.zeros(0, dtype=torch.long, device="cpu")


@dataclass(frozen=True)
class Unit:
    """A parameter whose entries along one axis belong to neurons, and where their liveness shows."""

    parameter: nn.Parameter
    axis: int
    liveness: nn.Parameter
    """The shift vector that follows the weight, else the weight itself."""
    liveness_axis: int
    classes: Tensor
    maker: nn.Parameter
    """The weight, which is the liveness while the shift has no gradient."""
    maker_axis: int


class LiveNeurons:
    """Which entries of which parameters belong to live neurons, step by step."""

    def __init__(
        self, model: nn.Module, graph: NeuronGraph, *, mask: LiveMask, weights_only: bool, others: bool
    ) -> None:
        self._mask = mask
        self._graph = graph
        parameters = dict(model.named_parameters())
        self._units = units(parameters, graph)
        owned = {id(unit.parameter) for unit in self._units}
        vectors = {id(p) for p in parameters.values() if p.dim() < 2}
        if weights_only:
            self._units = [u for u in self._units if id(u.parameter) not in vectors]
        rest = [p for p in parameters.values() if id(p) not in owned]
        self._others = [p for p in rest if others and not (weights_only and id(p) in vectors)]
        self._live: dict[int, Tensor] = {}
        self.dead_classes: Tensor | None = None

    def look(self) -> None:
        """Read the data gradients of this step, before anything is added to them."""
        self._live = {}
        if self._mask == "weight-gradient":
            for parameter in [*self._others, *(u.parameter for u in self._units)]:
                if parameter.grad is not None:
                    self._live[id(parameter)] = parameter.grad != 0
        elif self._mask == "neuron-gradient":
            seen = {id(u.maker): (u.maker.grad, u.maker_axis) for u in self._units if u.liveness.grad is None}
            seen |= {id(u.liveness): (u.liveness.grad, u.liveness_axis) for u in reversed(self._units)}
            looked = {key: (grad, axis) for key, (grad, axis) in seen.items() if grad is not None}
            self._live = dict(zip(looked, nonzero_along(list(looked.values())), strict=True))

    def checked(self, dead: dict[str, Tensor]) -> None:
        """Take the detection of a check, for the mask ``last-check``."""
        self.dead_classes = self._graph.agreed(dead)

    def targets(self, state: GraphState, lr_of: dict[int, float] | None = None) -> list[Target]:
        """The targets that noise is added to at this step."""
        factors = lr_of or {}
        found = []
        for unit in self._units:
            if unit.parameter.requires_grad:
                mask, silent = self._unit_mask(unit, state)
                if not silent:
                    found.append(Target(unit.parameter, mask, factors.get(id(unit.parameter), 1.0)))
        for parameter in (p for p in self._others if p.requires_grad):
            mask = self._live.get(id(parameter)) if self._mask == "weight-gradient" else None
            if self._mask == "weight-gradient" and mask is None:
                continue
            found.append(Target(parameter, mask, factors.get(id(parameter), 1.0)))
        return found

    def _unit_mask(self, unit: Unit, state: GraphState) -> tuple[Tensor | None, bool]:
        if self._mask == "none":
            return None, False
        if self._mask == "weight-gradient":
            live = self._live.get(id(unit.parameter))
            return live, live is None
        if self._mask == "last-check":
            if self.dead_classes is None:
                return None, False
            live = ~self.dead_classes[state.present(unit.classes)].to(unit.parameter.device)
        else:
            live = self._live.get(id(unit.liveness), self._live.get(id(unit.maker)))
            if live is None:
                return None, True
        shape = [1] * unit.parameter.dim()
        shape[unit.axis] = -1
        return live.view(shape), False


def liveness_parameters(parameters: dict[str, nn.Parameter], graph: NeuronGraph) -> dict[str, str]:
    """Weight -> the shift in whose gradient the liveness of its neurons shows: its norm's, else its bias.

    A weight that several norms follow has none: a neuron may be dead behind one of them and alive behind another.
    """
    followers = Counter(norm.producer for norm in graph.norms if norm.scale is not None)
    return {
        norm.producer: norm.shift
        for norm in graph.norms
        if norm.producer and followers[norm.producer] < 2 and norm.shift in parameters
    }


def units(parameters: dict[str, nn.Parameter], graph: NeuronGraph) -> list[Unit]:
    """Every parameter that makes neurons: producing weights, and the norms and biases that follow them."""
    made: dict[str, int] = {}
    for layer in graph.layers:
        made.update(layer.producers)
    slot_classes = {(slot.tensor, slot.axis): slot.classes for slot in graph.slots}
    shifts = liveness_parameters(parameters, graph)
    found: dict[str, Unit] = {}
    for weight, axis in made.items():
        if weight not in parameters or (weight, axis) not in slot_classes:
            continue
        mine = slot_classes[weight, axis]

        def alike(name: str | None, mine: Tensor = mine) -> bool:
            """A transposed grouped convolution has more outputs than its weight has entries along either axis."""
            return name in parameters and torch.equal(slot_classes.get((name, 0), NOTHING), mine)

        shift = shifts.get(weight)
        liveness, at = (parameters[shift], 0) if shift and alike(shift) else (parameters[weight], axis)
        maker = (parameters[weight], axis)
        found[weight] = Unit(parameters[weight], axis, liveness, at, mine, *maker)
        for norm in graph.norms:
            if norm.producer != weight:
                continue
            for name in (norm.scale, norm.shift):
                if name is not None and alike(name):
                    found[name] = Unit(parameters[name], 0, liveness, at, slot_classes[name, 0], *maker)
    for norm in graph.norms:  # those behind a sum (pre-activation networks) have liveness parameters of their own
        for name in (norm.scale, norm.shift):
            if name in parameters and name not in found and (name, 0) in slot_classes:
                own = norm.shift if norm.shift in parameters else name
                found[name] = Unit(parameters[name], 0, parameters[own], 0, slot_classes[name, 0], parameters[name], 0)
    return list(found.values())
