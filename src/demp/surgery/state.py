"""What optimizers remember of parameters, and how each piece of it becomes smaller."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only

from demp.errors import CutError, UsageError
from demp.surgery.factors import is_per_axis, lays_out_anew, shrink_of
from demp.surgery.shrink import Keeps, narrowed

Keep = Mapping[int, Tensor]
FLAT = ("d", "prev_flat_grad", "old_dirs", "old_stps")
"""LBFGS's vectors over all of its parameters in turn."""


PLAIN = (Tensor, torch.nn.Parameter)


@dataclass(frozen=True)
class StateEntry:
    """One piece of an optimizer's state: ``place[key]``."""

    place: MutableMapping[Any, Any]
    key: Any
    parameter: str
    """With whose turn it shrinks."""
    shrink: Callable[[Any], Any]
    note: str = ""
    """What the report has to say of it."""


def state_entries(optimizer: Optimizer, tensors: Mapping[str, Tensor], keeps: Keeps) -> list[StateEntry]:
    """All state that must follow the parameters in ``keeps``; nothing is touched yet.

    What is shaped like its parameter follows in any optimizer, alone or in lists, tuples and dicts; scalars stay.
    Factored second moments, SM3's maxima and LBFGS have adapters.

    Raises:
        CutError: a piece of state is none of these.
    """
    if isinstance(optimizer, LBFGS):
        return list(flat_history(optimizer, tensors, keeps))
    odd = {key: shape for key, shape in odd_state(optimizer).items() if not is_per_axis(key)}
    found = []
    for name in keeps:
        state = optimizer.state.get(tensors[name], {})
        for key in state:
            if key in odd:
                raise unknown_state(optimizer, name, tensors[name], key, odd[key])
        found += entries_of(optimizer, name, tensors[name], keeps[name])
    return found


def entries_of(optimizer: Optimizer, name: str, parameter: Tensor, keep: Keep) -> list[StateEntry]:
    """The state of one parameter that must follow it.

    Raises:
        CutError: a piece of it is laid out in no known way.
    """
    state, kind = optimizer.state.get(parameter, {}), type(optimizer).__name__
    found, per_axis = [], {}
    for key, value in state.items():
        if is_per_axis(key):
            shrink = shrink_of(key, state, parameter.shape, keep)
            if shrink is None:
                raise unknown_state(optimizer, name, parameter, key, str(tuple(getattr(value, "shape", ()))))
            per_axis[key] = shrink
            found.append(StateEntry(state, key, name, shrink))
        elif any(not is_scalar(leaf) for leaf in tree_leaves(value)):
            note = f"{kind} keeps what was cut in full precision" if is_packed(value) else ""
            shrink = partial(narrowed_tree, shape=parameter.shape, keep=keep)
            found.append(StateEntry(state, key, name, shrink, note))
    if lays_out_anew(optimizer, parameter, per_axis, keep):
        note = f"{kind} began anew for tensors of which it keeps other statistics at their new size"
        return [StateEntry(optimizer.state, parameter, name, lambda old: {}, note)]
    return found


def unknown_state(optimizer: Optimizer, name: str, parameter: Tensor, key: Any, shape: str) -> CutError:
    """Nobody knows how to cut it."""
    return CutError(
        f"{type(optimizer).__name__} keeps state {key!r} ({shape}) for {name} {tuple(parameter.shape)}, "
        "and demp does not know how to cut it; use an optimizer whose state is shaped like its parameters, "
        "as in torch.optim"
    )


def raise_if_odd_state(
    optimizers: Iterable[Optimizer], tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Nothing is cut yet, but these tensors may become smaller on all of their axes: can their state follow?

    Raises:
        UsageError: a piece of state neither is shaped like its parameter nor can be sliced.
    """
    whole = {
        name: {axis: torch.arange(n, device="cpu") for axis, n in enumerate(shape)} for name, shape in shapes.items()
    }
    for optimizer in optimizers:
        if isinstance(optimizer, LBFGS):
            continue
        try:
            entries = state_entries(optimizer, tensors, whole)
        except CutError as error:
            raise UsageError(f"{error}") from None
        for kind, entry in {kind_of(e.place[e.key]): e for e in reversed(entries)}.items():
            if kind in PLAIN:
                continue
            try:
                entry.shrink(entry.place[entry.key])
            except Exception as error:  # a tensor of the user's own class may refuse in any way
                raise UsageError(
                    f"{type(optimizer).__name__} keeps state {entry.key!r} for {entry.parameter} in a {kind.__name__}, "
                    f"which cannot be sliced ({error}); use an optimizer whose state is in ordinary tensors"
                ) from error


def kind_of(value: Any) -> type:
    """The class of the tensors of a piece of state: of the first that is not an ordinary one."""
    kinds = [type(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return next((kind for kind in kinds if kind not in PLAIN), Tensor)


def odd_state(optimizer: Optimizer) -> dict[Any, str]:
    """Keys under which some parameter holds what is neither a scalar nor shaped like it, and an example.

    All parameters are asked: a square preconditioner looks like its parameter where that is square too.
    """
    odd = {}
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, Tensor) and isinstance(state, Mapping):
            for key, value in state.items():
                for leaf in tree_leaves(value):
                    if not is_scalar(leaf) and not (isinstance(leaf, Tensor) and leaf.shape == parameter.shape):
                        odd.setdefault(key, str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__)
    return odd


def is_scalar(leaf: Any) -> bool:
    """Something without axes: it stays as it is."""
    return leaf.numel() <= 1 if isinstance(leaf, Tensor) else leaf is None or isinstance(leaf, (bool, int, float, str))


def narrowed_tree(value: Any, *, shape: torch.Size, keep: Keep) -> Any:
    """The same tree with every tensor of ``shape`` narrowed."""
    return tree_map_only(Tensor, lambda t: narrowed(unpacked(t), keep) if t.shape == shape else t, value)


def is_packed(value: Any) -> bool:
    """Is any of it in few bits, in a tensor class of its own that says what it stands for (``dequantize``)?"""
    return any(isinstance(leaf, Tensor) and packs(type(leaf)) for leaf in tree_leaves(value))


def packs(kind: type) -> bool:
    """Does a tensor class of its own say what its tensors stand for?"""
    return any("dequantize" in vars(base) for base in kind.__mro__[: kind.__mro__.index(Tensor)])


def unpacked(tensor: Tensor) -> Tensor:
    """The ordinary tensor that a packed one stands for; any other is itself."""
    return tensor.dequantize() if packs(type(tensor)) else tensor


def flat_history(optimizer: LBFGS, tensors: Mapping[str, Tensor], keeps: Keeps) -> Iterator[StateEntry]:
    """LBFGS's history, sliced where that is exact, else forgotten.

    Its scalars are products of whole vectors. They stay true only if all that goes was zero throughout; otherwise the
    optimizer starts a new history, and the report says so.
    """
    parameters = optimizer.param_groups[0]["params"]
    mine = {id(p) for p in parameters}
    turn = next((name for name in keeps if id(tensors[name]) in mine), None)
    if turn is None:
        return
    yield StateEntry(vars(optimizer), "_numel_cache", turn, lambda old: None)
    first = parameters[0]
    state = optimizer.state.get(first, {})
    vectors = [leaf for key in FLAT for leaf in tree_leaves(state.get(key)) if isinstance(leaf, Tensor)]
    if not vectors:
        return
    stay = flat_indices(parameters, tensors, keeps)
    goes = torch.ones(len(vectors[0]), dtype=torch.bool, device="cpu")
    goes[stay] = False
    if any(bool(vector[goes.to(vector.device)].any()) for vector in vectors):
        note = "LBFGS began a new history: the old one held steps of the removed neurons"
        yield StateEntry(optimizer.state, first, turn, lambda old: {}, note)
        return
    for key in FLAT:
        if key in state:
            yield StateEntry(state, key, turn, partial(narrowed_tree, shape=vectors[0].shape, keep={0: stay}))


def flat_indices(parameters: list[Tensor], tensors: Mapping[str, Tensor], keeps: Keeps) -> Tensor:
    """Positions that stay in the concatenation of all parameters."""
    names = {id(tensors[name]): name for name in keeps}
    found, start = [], 0
    for parameter in parameters:
        parts = 2 if parameter.is_complex() else 1  # LBFGS sees a complex number as two
        numbers = torch.arange(parameter.numel(), device="cpu").view(parameter.shape)
        stay = narrowed(numbers, keeps.get(names.get(id(parameter), ""), {})).flatten()
        found.append((start + parts * stay[:, None] + torch.arange(parts, device="cpu")).flatten())
        start += parts * parameter.numel()
    return torch.cat(found)
