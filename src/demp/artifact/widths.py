"""The widths of a model in a file, and a model that takes them: shapes, sizes that modules remember, residual sums."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from demp.activity.observe import quiet
from demp.errors import UsageError
from demp.graph import NeuronGraph, trace
from demp.graph.call_plans import plan_calls
from demp.graph.calls import calls_from_plain, model_calls
from demp.graph.forward import as_inputs, first_names
from demp.graph.inputs import copied
from demp.graph.joins import joins_from_plain, model_joins
from demp.surgery.record import Record, put_record, record_from_plain, record_of
from demp.surgery.refit import Sources, forget_states, raise_if_unsaved, refit_states, refit_tensors
from demp.surgery.shrink import UndoLog, shown_sizes

Shapes = dict[str, tuple[int, ...]]
OTHER = "build the model with the arguments it was trained with"


@dataclass(frozen=True)
class Widths:
    """Those of one module (the model, or a part of it that was cut) in a file."""

    path: str
    shapes: Shapes
    """Of every tensor that cuts have changed, in the file or here."""
    sources: Sources = field(default_factory=dict)
    """Where the entries of the file's tensors lie now."""
    record: Record | None = None
    joins: Mapping[str, Any] = field(default_factory=dict)
    calls: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Module -> attribute -> size, of those that no shape shows."""
    unknown: tuple[str, ...] = ()
    """Tensors of which it is not known which entries the file still has."""

    @property
    def resized(self) -> tuple[str, ...]:
        """Names of the tensors that take other entries."""
        return tuple(whole_name(self.path, name) for name in (*self.sources, *self.unknown))


def whole_name(path: str, name: str) -> str:
    """Of a tensor of a part."""
    return f"{path}.{name}" if path else name


# From the record ----------------------------------------------------------------------------------------


def recorded(part: nn.Module, path: str, entry: Mapping[str, Any] | None) -> Widths:
    """Widths by the record beside a state dict; None: the dense ones of a model that was cut.

    Raises:
        UsageError: file and model come from two dense models, or what returns is in no file.
    """
    mine, theirs = record_of(part), None if entry is None else record_from_plain(entry["record"])
    tensors, shapes, sources = first_names(part)[0], {}, {}
    one = theirs or mine
    assert one is not None
    for name in dict.fromkeys(name for record in (theirs, mine) if record is not None for name, _ in record.kept):
        dense = one.dense_shapes[name]
        here, there = ([kept(record, name, axis, n) for axis, n in enumerate(dense)] for record in (mine, theirs))
        expected, found = tuple(map(len, here)), tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != expected:
            raise UsageError(f"{whole_name(path, name)} is {found} in this model, not {expected}; {OTHER}")
        shapes[name] = tuple(map(len, there))
        for axis, length in enumerate(dense):
            if not torch.equal(here[axis], there[axis]):
                where = torch.full((length,), -1, device="cpu")
                where[here[axis]] = torch.arange(len(here[axis]), device="cpu")
                sources.setdefault(name, {})[axis] = where[there[axis]]
    raise_if_unsaved(part, sources)
    if entry is None:
        return Widths(path, shapes, sources, sizes=dense_sizes(one))
    joins, calls = joins_from_plain(entry["joins"]), calls_from_plain(entry.get("calls", {}))
    return Widths(path, shapes, sources, theirs, joins, calls, entry["modules"])


def kept(record: Record | None, name: str, axis: int, length: int) -> Tensor:
    """Indices that are there, in dense numbering."""
    whole = torch.arange(length, device="cpu")
    return whole if record is None else record.kept.get((name, axis), whole)


def dense_sizes(record: Record) -> dict[str, dict[str, int]]:
    """Sizes of the dense model that no shape shows."""
    sizes: dict[str, dict[str, int]] = {}
    for key, count in record.dense_counts.items():
        path, _, name = key.rpartition("|")
        sizes.setdefault(path, {})[name] = count
    return sizes


# From the widths alone ----------------------------------------------------------------------------------

BY_COUNT = frozenset({"mean", "norm", "layer_norm", "view", "heads"})
"""Kinds of planned calls to which it is the same which neurons are left."""


def traced(model: nn.Module, example_inputs: Any, shapes: Shapes, lost: str) -> Widths:
    """Widths by the shapes of a file alone, for a dense model that is traced.

    Raises:
        UsageError: a shape that no cut leaves, or a residual sum or call of which the shapes say too little.
    """
    graph = trace(model, example_inputs)
    if missing(graph, shapes):
        graph = trace(model, example_inputs, streams=True, linear=True)
    for name, axis in missing(graph, shapes):
        raise UsageError(f"{name} is {shapes[name]} in the state dict, and no neurons lie along its axis {axis}")
    widths = lengths(graph, shapes, set(model.state_dict(keep_vars=True)), lost)
    smaller = graph.none_removed()
    for whole in (False, True):
        for along, (length, _) in widths.items():
            if whole == (length == len(along)):
                smaller[list(along)] = not whole
    raise_if_ambiguous(graph, smaller, lost)
    state = graph.at(fewer(graph, widths))
    for along, (length, name) in widths.items():
        if len(state.kept(torch.tensor(along, device="cpu"))) != length:
            raise UsageError(f"{name} has {length} neurons in the state dict, which no cut leaves; {lost}")
    sizes: dict[str, dict[str, int]] = {}
    for (path, name), classes in graph.attributes.items():
        if bool(smaller[classes].any()):
            sizes.setdefault(path, {})[name] = len(state.kept(classes))
    return Widths("", shapes, calls=plan_calls(state), sizes=sizes, unknown=tuple(shapes))


def lengths(graph: NeuronGraph, shapes: Shapes, stored: Set[str], lost: str) -> dict[tuple[int, ...], tuple[int, str]]:
    """Classes of each axis that is shorter in the file, or shares neurons with one -> its length there, and a tensor.

    Raises:
        UsageError: tensors that share neurons have other lengths, or one is not among those ``stored``.
    """
    known = {(slot.tensor, slot.axis): slot.classes for slot in graph.slots}
    smaller = graph.none_removed()
    for name, shape in shapes.items():
        for axis, (length, dense) in enumerate(zip(shape, graph.shapes[name], strict=True)):
            if length != dense:
                smaller[known[name, axis]] = True
    found: dict[tuple[int, ...], tuple[int, str]] = {}
    for (name, axis), classes in known.items():
        if not bool(smaller[classes].any()):
            continue
        if name not in stored:
            raise UsageError(f"nobody knows what {name} holds at these widths, which no state dict has; {lost}")
        length = shapes.get(name, graph.shapes[name])[axis]
        before, other = found.setdefault(tuple(classes.tolist()), (length, name))
        if before != length:
            raise UsageError(
                f"{other} has {before} neurons in the state dict, and {name}, which holds them too, {length}"
            )
    return found


def raise_if_ambiguous(graph: NeuronGraph, smaller: Tensor, lost: str) -> None:
    """Sums and calls to which it is not the same which of these neurons are left.

    Raises:
        UsageError: there is one.
    """
    for call in graph.calls:
        by_count = call.seat[1] in BY_COUNT and not call.grid
        if (call.needed or call.before) and not by_count and bool(smaller[call.source].any()):
            raise UsageError(f"a {call.seat[1]} in {call.seat[0] or 'the model'} depends on the widths, and {lost}")
    for join in graph.joins:
        if bool(smaller[torch.cat([join.stream, join.branch])].any()):
            raise UsageError(f"a residual sum of {join.module or 'the model'} may add two widths, and {lost}")


def missing(graph: NeuronGraph, shapes: Shapes) -> list[tuple[str, int]]:
    """Axes that are shorter in a file, and along which no neurons lie."""
    known = {(slot.tensor, slot.axis) for slot in graph.slots}
    return [
        (name, axis)
        for name, shape in shapes.items()
        for axis, (length, dense) in enumerate(zip(shape, graph.shapes[name], strict=True))
        if length != dense and (name, axis) not in known
    ]


def fewer(graph: NeuronGraph, widths: Mapping[tuple[int, ...], tuple[int, str]]) -> Tensor:
    """Classes without as many as are missing, although not which ones."""
    removed = graph.none_removed()
    for along, (length, _) in sorted(widths.items(), key=lambda item: len(set(item[0]))):
        here = list(dict.fromkeys(along))
        left = [one for one in here if not bool(removed[one])]
        removed[left[length * len(here) // len(along) :]] = True
    return removed


def raise_if_broken(model: nn.Module, example_inputs: Any) -> None:
    """The forward must run at the new widths.

    Raises:
        UsageError: it does not.
    """
    args, kwargs = copied(as_inputs(example_inputs))
    try:
        with quiet(model):
            model(*args, **kwargs)
    except Exception as error:  # the user's forward may fail in any way
        raise UsageError(f"the forward does not run at the widths of the state dict: {error}") from None


# Carrying it out ----------------------------------------------------------------------------------------


def fit(part: nn.Module, widths: Widths, optimizers: Iterable[Optimizer], undo_log: UndoLog) -> tuple[str, ...]:
    """Give a module these widths; the notes on optimizers. Entries that return are zero."""
    tensors, optimizers = first_names(part)[0], tuple(optimizers)
    forgot = refit_states(optimizers, tensors, widths.sources, undo_log)
    forgot += forget_states(optimizers, [tensors[name] for name in widths.unknown], undo_log)
    refit_tensors([tensors], widths.sources, undo_log)
    for name in widths.unknown:
        undo_log.put(tensors[name], tensors[name].new_zeros(widths.shapes[name]))
    changed = {name.rpartition(".")[0] for name in (*widths.sources, *widths.unknown)}
    for path, module in part.named_modules():
        sizes = dict(widths.sizes.get(path, {}))
        if "groups" in sizes:
            undo_log.attribute(module, "groups", sizes["groups"])
        if path in changed:
            sizes |= shown_sizes(module)
        for attribute, value in sizes.items():
            if hasattr(module, attribute):
                undo_log.attribute(module, attribute, value)
    for path in {*model_joins(part), *widths.joins}:
        undo_log.joins(part.get_submodule(path), widths.joins.get(path, {}))
    for path in {*model_calls(part), *widths.calls}:
        undo_log.calls(part.get_submodule(path), widths.calls.get(path, {}))
    put_record(part, widths.record)
    return tuple(f"{name} forgot what it knew of some parameters" for name in dict.fromkeys(forgot))
