"""A pruned network in which every residual sum and every norm is an ordinary one, for tools that read source."""

import copy
import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from demp.analysis.costs import cost
from demp.errors import ExportError, UsageError
from demp.exports.ordinary_norms import fold_norms
from demp.graph.calls import model_calls
from demp.graph.elements import components
from demp.graph.forward import as_inputs, first_names
from demp.graph.joins import model_joins, set_calls, set_joins
from demp.graph.reading import by_any_vehicle, planned_sums
from demp.graph.recording import JoinSeen, Recording
from demp.graph.streams import common_order
from demp.parallel import user_module
from demp.surgery.record import make_inputs, put_record, record_of
from demp.surgery.shrink import restore, shown_sizes
from demp.surgery.verify import difference, outputs_of, tolerance_for

logger = logging.getLogger("demp")
SEED, BATCH = 0, 2
REMEDY = "Use torch.export, torch.jit.trace or torch.fx, which read the model as it is"

Channels = tuple[int, ...]
"""The channels of one side of a residual sum, by their elements."""


def plain(model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """A copy of a pruned model whose residual sums are ordinary: of the classes you wrote, with nothing of demp in it.

    Where a sum adds two widths, both sides and all that goes through them are widened with channels of zeros until they
    hold the same channels in the same order. RMS norms of a stream that lost channels say so by another scale and eps.
    The outputs are equal; parameters and FLOPs may grow, and one line of the log then says by how much (`demp.cost`
    counts either model). Tools that read source need it, such as ``torch.jit.script``;
    those that run the forward (``torch.export``, ``torch.jit.trace``, ``torch.fx``) read the pruned model as it is.

    ``example_inputs`` as for `demp.trace`, on the model's device; without them they are made like those of the last
    cut. The copy has no record of its cuts, so save the pruned model itself.

    Raises:
        UsageError: no example inputs, and none are known.
        ExportError: sums or norms cannot be made ordinary, or the outputs would differ. The model is untouched.
    """
    model = user_module(model)
    twin = copy.deepcopy(model)
    put_record(twin, None)
    joins = model_joins(model)
    if not joins and not model_calls(model):
        return twin
    inputs = known_inputs(model) if example_inputs is None else example_inputs
    fold_norms(twin)
    calls = model_calls(twin)
    for path in calls:  # as they are written: the proof tells whether they mean the same
        set_calls(twin.get_submodule(path), {})
    if joins:
        Layouts.of(by_any_vehicle(model, as_inputs(inputs), planned_sums)).widen(twin)
    for path in joins:
        set_joins(twin.get_submodule(path), {})
    prove(model, twin, inputs, calls)
    if joins:
        say_cost(model, twin, inputs)
    return twin


def say_cost(model: nn.Module, twin: nn.Module, inputs: Any) -> None:
    """One line of the log on what zeros cost."""
    now, then = cost(model, inputs), cost(twin, inputs)
    logger.info(
        "plain sums cost %.1f %% more parameters (%d, pruned %d) and %.1f %% more FLOPs (%d, pruned %d)",
        100 * (then.parameters / now.parameters - 1),
        then.parameters,
        now.parameters,
        100 * (then.flops / now.flops - 1),
        then.flops,
        now.flops,
    )


def known_inputs(model: nn.Module) -> Any:
    """Inputs like those of the last cut.

    Raises:
        UsageError: none are known, or they cannot be given again.
    """
    record = record_of(model)
    described = None if record is None else record.inputs
    if described is None:
        raise UsageError("give example_inputs: those of the model's cuts are not known")
    args, kwargs = make_inputs(described, seed=SEED, batch=BATCH)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if args and kwargs:
        raise UsageError("give example_inputs: the model was cut on inputs by position and by name")
    if kwargs:
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in kwargs.items()}
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in args)


def refuse(why: str) -> ExportError:
    """The network stays as it is."""
    return ExportError(f"the network cannot be made ordinary: {why}. {REMEDY}")


def prove(model: nn.Module, twin: nn.Module, inputs: Any, calls: Iterable[str]) -> None:
    """The copy must answer as the model does; in modules ``calls`` it makes planned calls as they are written.

    Raises:
        ExportError: it does not run, or answers otherwise.
    """
    where = ", ".join(name or "the model itself" for name in calls)
    planned = f"calls that depend on the number of neurons, in {where}, only a cut can carry out as planned"
    wanted = outputs_of(model, inputs)
    try:
        found = outputs_of(twin, inputs)
    except Exception as error:  # the user's forward may raise anything
        raise refuse(planned if where else f"the copy does not run ({str(error).strip().splitlines()[0]})") from error
    gap = difference(wanted, found)
    if not gap <= tolerance_for(wanted):
        raise refuse(planned if where else f"the outputs of the copy differ by {gap:.1e} of their scale")


@dataclass
class Layout:
    """The channels that all sides of some residual sums have in common."""

    places: dict[int, int]
    """Element -> position; elements that some sum adds have one position."""
    width: int
    sides: list[Channels]


@dataclass
class Layouts:
    """Where every channel of a residual stream goes in the widened model."""

    recording: Recording
    root: Tensor
    of_element: dict[int, Layout] = field(default_factory=dict)

    @classmethod
    def of(cls, recording: Recording) -> "Layouts":
        """The layouts of all streams with a planned sum."""
        root, _ = recording.elements.resolve()
        found = cls(recording, root)
        seen = recording.joins
        met = [(root[j.stream.ids][j.source], root[j.branch.ids][j.target]) for j in seen]
        same = components(len(root), torch.cat([a for a, _ in met]), torch.cat([b for _, b in met]))
        sides = [(root[j.stream.ids], root[j.branch.ids]) for j in seen]
        whole = [torch.cat(pair) for pair in sides]
        family = components(len(root), torch.cat([w[:-1] for w in whole]), torch.cat([w[1:] for w in whole]))
        members: dict[int, list[int]] = defaultdict(list)
        for number, channels in enumerate(whole):
            members[int(family[channels[0]])].append(number)
        for numbers in members.values():
            pairs = [(tuple(sides[n][0].tolist()), tuple(sides[n][1].tolist())) for n in numbers]
            layout = layout_of(pairs, same)
            raise_if_left_over(pairs, [seen[n] for n in numbers], layout)
            found.of_element.update(dict.fromkeys((e for pair in pairs for side in pair for e in side), layout))
        return found

    @torch.no_grad()
    def widen(self, model: nn.Module) -> None:
        """Put channels of zeros into every tensor that these streams go through."""
        tensors, _ = first_names(model)
        for name, axes in self.recording.axes.items():
            value = tensors[name].detach()
            for dim, axis in enumerate(axes):
                to, length = self.positions(self.root[axis.ids].tolist(), name)
                if length > len(axis.ids):
                    shape = [*value.shape[:dim], length, *value.shape[dim + 1 :]]
                    fill = 1.0 if name.endswith("running_var") else 0.0
                    value = value.new_full(shape, fill).index_copy_(dim, torch.tensor(to, device=value.device), value)
            if value.shape == tensors[name].shape:
                continue
            restore(tensors[name], value, None)
            module = model.get_submodule(name.rpartition(".")[0])
            for attribute, size in shown_sizes(module).items():
                setattr(module, attribute, size)
        for (path, attribute), ids in self.recording.attributes.items():
            _, length = self.positions(self.root[ids].tolist(), f"{path}.{attribute}")
            if length > len(ids):
                setattr(model.get_submodule(path), attribute, length)

    def positions(self, elements: list[int], what: str) -> tuple[list[int], int]:
        """Where the entries of an axis go, and how long it becomes. It may hold several sides, and repeat channels.

        Raises:
            ExportError: it holds a part of a side, or another order.
        """
        to: list[int] = []
        start = at = 0
        while start < len(elements):
            layout = self.of_element.get(elements[start])
            if layout is None:
                to.append(at)
                start, at = start + 1, at + 1
                continue
            repeats = next((n for n, e in enumerate(elements[start:]) if e != elements[start]), len(elements) - start)
            for side in layout.sides:
                spelled = [e for e in side for _ in range(repeats)]
                if elements[start : start + len(spelled)] == spelled:
                    break
            else:
                raise refuse(f"{what} takes the channels of a stream in parts, or in another order")
            to += [at + layout.places[e] * repeats + n for e in side for n in range(repeats)]
            start, at = start + len(spelled), at + layout.width * repeats
        return to, at


def layout_of(pairs: list[tuple[Channels, Channels]], same: Tensor) -> Layout:
    """One position for all channels that some sum adds, in an order that suits all sides if there is one.

    Raises:
        ExportError: some channels of a stream share one position.
    """
    sides = list(dict.fromkeys(side for pair in pairs for side in pair))
    channels = {side: tuple(same[torch.tensor(side, device="cpu")].tolist()) for side in sides}
    if any(len(set(each)) < len(each) for each in channels.values()):
        raise refuse("some channels of a stream go together")
    every = dict.fromkeys(channel for each in channels.values() for channel in each)
    order = list(common_order(dict.fromkeys(channels.values())) or every)
    rank = {channel: place for place, channel in enumerate(order)}
    places = {element: rank[channel] for side in sides for element, channel in zip(side, channels[side], strict=True)}
    return Layout(places, len(order), sides)


def raise_if_left_over(pairs: list[tuple[Channels, Channels]], seen: list[JoinSeen], layout: Layout) -> None:
    """A channel that a block's output does not keep flows on there, unread; no later sum may take it up.

    Along a chain of blocks none does: a channel that comes back later has a position of its own.

    Raises:
        ExportError: a later sum does.
    """
    left: dict[Channels, set[int]] = defaultdict(set)
    for (stream, branch), join in zip(pairs, seen, strict=True):
        here = {layout.places[e] for e in stream}
        kept = {layout.places[e] for e in branch}
        added = {layout.places[stream[i]] for i in join.source.tolist()}
        if kept & ((here - added) | left[stream]):
            raise refuse("a channel that one block drops comes back by a longer way")
        left[branch] |= (here | left[stream]) - kept
