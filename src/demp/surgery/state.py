"""What optimizers remember of parameters, and how each piece of it becomes smaller."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Adafactor, Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only

from demp.errors import CutError, UsageError
from demp.surgery.shrink import Keeps, narrowed

Keep = Mapping[int, Tensor]
FACTORS = {"row_var": "col_var", "col_var": "row_var"}
"""Adafactor's two halves of a second moment: what each is divided by the mean of."""
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
    Adafactor and LBFGS have adapters.

    Raises:
        CutError: a piece of state is none of these.
    """
    if isinstance(optimizer, LBFGS):
        return list(flat_history(optimizer, tensors, keeps))
    factors = FACTORS if isinstance(optimizer, Adafactor) else {}
    odd = {key: shape for key, shape in odd_state(optimizer).items() if key not in factors}
    found = []
    for name, keep in keeps.items():
        parameter = tensors[name]
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if key in odd:
                raise CutError(
                    f"{type(optimizer).__name__} keeps state {key!r} ({odd[key]}) for {name} {tuple(parameter.shape)}, "
                    "and demp does not know how to cut it; use an optimizer whose state is shaped like its parameters, "
                    "as in torch.optim"
                )
            if key in factors:
                shrink = partial(narrowed_factor, other=state[factors[key]], keep=keep, row=key == "row_var")
                found.append(StateEntry(state, key, name, shrink))
            elif any(not is_scalar(leaf) for leaf in tree_leaves(value)):
                note = f"{type(optimizer).__name__} keeps what was cut in full precision" if is_packed(value) else ""
                shrink = partial(narrowed_tree, shape=parameter.shape, keep=keep)
                found.append(StateEntry(state, key, name, shrink, note))
    return found


def refuse_odd_state(
    optimizers: Iterable[Optimizer], tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Nothing is cut yet, but these tensors may become smaller on all of their axes: can their state follow?

    Raises:
        UsageError: a piece of state neither is shaped like its parameter nor can be sliced.
    """
    whole = {name: {axis: torch.arange(n) for axis, n in enumerate(shape)} for name, shape in shapes.items()}
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


def narrowed_factor(value: Tensor, *, other: Tensor, keep: Keep, row: bool) -> Tensor:
    """Half of Adafactor's second moment ``row_var * col_var / mean(row_var)``, (.., n, 1) or (.., 1, m).

    Each half is a mean over the axis that the other one has. The share of that mean which the removed entries have,
    as the factors estimate it, is taken out, and the rest is divided by the entries that stay. The second moment of
    every entry that stays is then exactly what it was; where the removed ones never had a gradient, both halves are
    what a network born at these widths would hold. The step itself also depends on the norm and the size of the whole
    tensor (``eps[1]``, ``d``) and is that of the smaller tensor, not of a dense one with dead entries.
    """
    dims = value.dim()
    own, mean = (dims - 2, dims - 1) if row else (dims - 1, dims - 2)
    small = narrowed(value, {axis: indices for axis, indices in keep.items() if axis != mean})
    if mean not in keep:
        return small
    sliced = {axis: indices for axis, indices in keep.items() if axis not in (own, mean)}
    total = narrowed(other, sliced)
    left = narrowed(total, {mean: keep[mean]})
    share = left.sum(mean, keepdim=True) / total.sum(mean, keepdim=True)
    return small * share.nan_to_num(1.0) * (total.shape[mean] / left.shape[mean])


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
    goes = torch.ones(len(vectors[0]), dtype=torch.bool)
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
        numbers = torch.arange(parameter.numel()).view(parameter.shape)
        stay = narrowed(numbers, keeps.get(names.get(id(parameter), ""), {})).flatten()
        found.append((start + parts * stay[:, None] + torch.arange(parts)).flatten())
        start += parts * parameter.numel()
    return torch.cat(found)
