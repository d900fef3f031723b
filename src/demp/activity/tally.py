"""What was seen of the neurons over many batches, and what follows from it: dead, saturated, how flat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from demp.activity import moments
from demp.activity.criteria import Criterion, Peaks
from demp.activity.moments import Moments
from demp.activity.observe import LayerPositions, layer_positions
from demp.errors import UsageError
from demp.graph import GraphState, Layer, Read

Key = tuple[str, int]
"""A consumer of neurons: its weight and the number of the use."""


@dataclass(frozen=True)
class Flatness:
    """Neurons of one layer, dense numbering, float64; nan where nothing is known."""

    mean: Tensor
    """The constant: the mean at the consumer where it is largest."""
    deviation: Tensor
    """Deviation over the mean deviation of the layer's present neurons, at the consumer where that is largest."""

    @property
    def zero(self) -> Tensor:
        """Exactly zero in all that was seen."""
        return (self.mean == 0) & (self.deviation == 0)


class Tally:
    """Collects over batches what every consumer saw, in dense numbering."""

    def __init__(self, state: GraphState, criterion: Criterion, *, sums: bool = True) -> None:
        """Without ``sums`` only contractions are asked."""
        self.state, self.criterion = state, criterion
        self.graph = graph = state.graph
        asked = [read for read in graph.reads if sums or read.seat is None]
        self._here = {key_of(read): state.kept(read.classes) for read in asked}
        self._widths = {key_of(read): len(read.classes) for read in asked}
        self._parts = {key_of(read): layer_positions(state, read) for read in asked}
        self._by_moments = [criterion.of_moments(layer.activation) for layer in graph.layers]
        self._needs_total = criterion.kind == "sum"
        self._dead = [torch.ones(layer.width, dtype=torch.bool, device="cpu") for layer in graph.layers]
        self._moments: dict[str, Moments] = {}
        self._read_before = WeakTensorKeyDictionary()
        self._flat: dict[int, Flatness] = {}
        self.seen: set[Key] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_read_before"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _read_before=WeakTensorKeyDictionary())

    @property
    def settles(self) -> bool:
        """Can more batches only show more life? Not where moments decide: a neuron may turn out flat in the end."""
        return not any(self._by_moments)

    def width(self, read: Read) -> int:
        """How many neurons this consumer has now."""
        return len(self._here[key_of(read)])

    def unseen(self) -> tuple[str, ...]:
        """Layers with neurons that may go, of which some reader never ran, so that nothing is known about them."""
        return tuple(
            layer.name
            for layer in self.graph.layers
            if layer.reads
            and not self._complete(layer)
            and bool((layer.removable & ~self.state.removed[layer.classes]).any())
        )

    def add(self, read: Read, operand: Tensor, axis: int) -> None:
        """Look at one batch at one consumer; nothing is known of an expert that gets no rows.

        Raises:
            UsageError: there are more or fewer neurons than when watching began.
        """
        if operand.numel() == 0 and operand.shape[axis]:
            return
        key = key_of(read)
        if operand.shape[axis] != len(self._here[key]):
            raise UsageError(
                f"{read.weight} reads {operand.shape[axis]} neurons where there were {len(self._here[key])} when "
                "watching began. Either the model was cut meanwhile (start watching again after a cut, or give the "
                "monitor the pruner), or its forward takes other widths than the traced one (a switch)"
            )
        self.seen.add(key)
        self._flat = {}
        carried = [self._by_moments[part.layer] for part in self._parts[key]]
        if any(carried):
            found = self._moments_of(operand, axis).at(self._here[key], self._widths[key])
            name = name_of(key)
            self._moments[name] = self._moments[name].merged(found) if name in self._moments else found
        if not all(carried):
            self._look_at_peaks(key, operand.detach(), axis)

    def _moments_of(self, operand: Tensor, axis: int) -> Moments:
        """Of one activation; of one that several consumers read (a residual stream), only once."""
        version = None if operand.is_inference() else operand._version
        known = self._read_before.get(operand)
        if known is None or version is None or known[:2] != (version, axis):
            known = (version, axis, Moments.along(operand.detach(), axis))
            self._read_before[operand] = known
        return known[2]

    def _look_at_peaks(self, key: Key, operand: Tensor, axis: int) -> None:
        """Test the neurons that no batch has shown alive yet; where one depends on others, test all."""
        asked = [part for part in self._parts[key] if not self._by_moments[part.layer]]
        asked = [self._in_doubt(s) if self.criterion.alone(self._activation(s)) else s for s in asked]
        asked = [part for part in asked if len(part.positions)]
        if not asked:
            return
        places, device = torch.cat([part.positions for part in asked]).unique(), operand.device
        if 2 * len(places) <= operand.shape[axis]:
            operand = operand.index_select(axis, places.to(device))
            asked = [LayerPositions(s.layer, torch.searchsorted(places, s.positions), s.neuron) for s in asked]
        peaks = Peaks.along(operand, axis, self._needs_total)
        for part in asked:
            members, compact = members_of(part)
            mine = peaks.gather(part.positions.to(device), compact.to(device), len(members))
            self._dead[part.layer][members] &= self.criterion.dead(self._activation(part), mine).cpu()

    def _activation(self, part: LayerPositions) -> str:
        return self.graph.layers[part.layer].activation

    def _in_doubt(self, part: LayerPositions) -> LayerPositions:
        """Those of its positions whose neurons may be dead."""
        kept = self._dead[part.layer][part.neuron]
        return LayerPositions(part.layer, part.positions[kept], part.neuron[kept])

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as tensors by name."""
        return {
            "dead": [flags.clone() for flags in self._dead],
            "seen": [list(key) for key in sorted(self.seen)],
            "moments": {name: found.to_plain() for name, found in self._moments.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was seen."""
        self._dead = [flags.clone() for flags in state["dead"]]
        self.seen = {(str(weight), int(use)) for weight, use in state["seen"]}
        self._moments = {name: Moments(*parts) for name, parts in state.get("moments", {}).items()}
        self._flat = {}

    def joined(self, states: Sequence[dict[str, Any]]) -> "Tally":
        """Of several ranks, in their order: dead on each of them, flat over all that they saw together."""
        whole = Tally.__new__(Tally)
        vars(whole).update(vars(self))
        whole._dead = [torch.stack(flags).all(0) for flags in zip(*(s["dead"] for s in states), strict=True)]
        whole.seen = set.intersection(*({(str(w), int(u)) for w, u in s["seen"]} for s in states))
        first, *others = ({name: Moments(*parts) for name, parts in s["moments"].items()} for s in states)
        whole._moments = moments.merged(first, others)
        whole._flat = {}
        return whole

    def detect(self) -> dict[str, Tensor]:
        """Layer name -> dead or saturated neurons (dense numbering; removed ones are neither).

        A layer whose consumers did not all run is alive as a whole: nothing is known about it. A layer without
        consumers of its own is dead by the layers that carry its neurons on.
        """
        agreed = self.agreed()
        return {
            layer.name: self._dead_by_criterion(number) if layer.reads else agreed[layer.classes]
            for number, layer in enumerate(self.graph.layers)
        }

    def agreed(self) -> Tensor:
        """Per class: dead or saturated in every layer that reads it."""
        dead = {layer.name: self._dead_by_criterion(n) for n, layer in enumerate(self.graph.layers) if layer.reads}
        return self.graph.agreed(dead) & ~self.state.removed

    def flatness(self) -> dict[str, Flatness]:
        """Layer name -> how flat its neurons are, for the layers that have a criterion of moments."""
        found = {}
        for number, layer in enumerate(self.graph.layers):
            if self._by_moments[number] and layer.reads:
                found[layer.name] = self._flatness(number)
        return found

    def _dead_by_criterion(self, number: int) -> Tensor:
        layer, flags = self.graph.layers[number], self._dead[number]
        if self._by_moments[number]:
            flags = self.criterion.flat(self._flatness(number).deviation)
        return flags & ~self.state.removed[layer.classes] if self._complete(layer) else torch.zeros_like(flags)

    def _complete(self, layer: Layer) -> bool:
        asked = [key for key in layer.reads if key in self._parts]
        return bool(asked) and all(key in self.seen for key in asked)

    def _flatness(self, number: int) -> Flatness:
        if number not in self._flat:
            self._flat[number] = self._flatness_now(number)
        return self._flat[number]

    def _flatness_now(self, number: int) -> Flatness:
        layer = self.graph.layers[number]
        mean = torch.full((layer.width,), torch.nan, dtype=torch.float64, device="cpu")
        deviation = torch.full((layer.width,), -1.0, dtype=torch.float64, device="cpu")
        for key in layer.reads if self._complete(layer) else ():
            for part in (s for s in self._parts.get(key, ()) if s.layer == number):
                members, compact = members_of(part)
                mine = self._moments[name_of(key)].of(self._here[key][part.positions], compact, len(members))
                mean[members] = larger(mean[members], mine.mean)
                deviation[members] = torch.maximum(deviation[members], relative(mine.deviation))
        return Flatness(mean, torch.where(deviation < 0, torch.nan, deviation))


def relative(deviation: Tensor) -> Tensor:
    """Deviations over their mean; what does not deviate at all is 0 even where nothing does."""
    scale = deviation[deviation.isfinite()].mean()
    return torch.where(deviation == 0, 0.0, deviation / scale)


def larger(known: Tensor, new: Tensor) -> Tensor:
    """Of two means the one of larger size; a nan that is new stays, one that is old gives way."""
    return torch.where(known.isnan() | (new.abs() > known.abs()) | new.isnan(), new, known)


def members_of(part: LayerPositions) -> tuple[Tensor, Tensor]:
    """The neurons that sit on an axis, each once, and which of them each place belongs to."""
    members = part.neuron.unique()
    return members, torch.searchsorted(members, part.neuron)


def key_of(read: Read) -> Key:
    """What identifies a place where neurons are read: the weight, and which of its uses."""
    return read.weight, read.use


def name_of(key: Key) -> str:
    """The same in one word, as files need it."""
    return f"{key[0]}#{key[1]}"
