"""Copies of the model that are cut with it: what is the copy in what the user gave, and does it fit?"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from demp.errors import CutError, UsageError
from demp.graph.forward import first_names
from demp.graph.joins import plain_kind
from demp.parallel import original

Content = nn.Module | Mapping[str, Tensor]
"""A copy of the model: a module like it, or tensors by its names."""
LISTS = ("shadow_params",)
"""Where objects that average a list of parameters keep it (torch_ema, diffusers)."""


@dataclass(frozen=True)
class Copy:
    """A copy of the model, and what it is called in reports: the class of what the user gave."""

    name: str
    content: Content
    given: Any = None
    """What the user gave; the same again is no second copy."""

    @property
    def module(self) -> nn.Module | None:
        """The copy, if it can run."""
        return self.content if isinstance(self.content, nn.Module) else None

    @property
    def is_masks(self) -> bool:
        """Is it no copy, but masks that are laid out like one?"""
        return self.module is None and all(t.dtype == torch.bool for t in tensors_of(self.content).values())


class Listed(Mapping[str, Tensor]):
    """A list of tensors by the names of the parameters that they are copies of. The list may become another one."""

    def __init__(self, listed: Callable[[], Sequence[Tensor]], names: Sequence[str]) -> None:
        self._listed, self._names = listed, tuple(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._listed()[self._names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def as_copies(given: Iterable[Any], model: nn.Module) -> list[Copy]:
    """What the user gave as copies of the model, each once."""
    copies: list[Copy] = []
    for one in given:
        copies = with_copy(copies, one, model)
    return copies


def with_copy(copies: Sequence[Copy], given: Any, model: nn.Module) -> list[Copy]:
    """The same copies and one more, which has a name of its own."""
    content = unwrapped(given, model)
    if any(copied.given is given or copied.content is content for copied in copies):
        return list(copies)
    kind = (plain_kind(type(given)) or type(given)).__name__
    same = Counter(copied.name.split(" ")[0] for copied in copies)[kind]
    return [*copies, Copy(f"{kind} {same + 1}" if same else kind, content, given)]


def unwrapped(given: Any, model: nn.Module) -> Content:
    """The copy of the model in a module, an averaging wrapper, a mapping, a list of tensors, or an object with one.

    A module that holds no copy is returned as it is; that it does not fit is found when it is compared.

    Raises:
        UsageError: there is no copy in it.
    """
    if isinstance(given, nn.Module):
        return copy_inside(given, model) or copy_inside(given, model, by_name=True) or original(given)
    if isinstance(given, Mapping):
        raise_if_several_copies(given)
        return given
    if isinstance(given, (list, tuple)):
        return Listed(lambda: given, names_of_list(given, model, type(given).__name__))
    held = getattr(given, "__dict__", {})
    listed = next((name for name in LISTS if isinstance(held.get(name), (list, tuple))), None)
    if listed is not None:
        return Listed(lambda: getattr(given, listed), names_of_list(held[listed], model, type(given).__name__))
    modules = [value for value in held.values() if isinstance(value, nn.Module)]
    found = [inside for module in modules if (inside := copy_inside(module, model)) is not None]
    if found:
        return found[0]
    raise UsageError(
        f"a {type(given).__name__} was given as a copy of the model, but holds none: give a module with the model's "
        "parameters, a wrapper around one, a dict of tensors by the model's names, or a list of tensors in the order "
        "of model.parameters()"
    )


def raise_if_several_copies(given: Mapping[str, Any]) -> None:
    """Several copies in one dict (weights of before and how much each counts, as EWC keeps them).

    Raises:
        UsageError: it holds dicts, lists or modules, and no tensor.
    """
    inside = [name for name, value in given.items() if isinstance(value, (Mapping, list, tuple, nn.Module))]
    if inside and not any(isinstance(value, Tensor) for value in given.values()):
        names = ", ".join(f"copy[{name!r}]" for name in inside)
        raise UsageError(
            f"a {type(given).__name__} of copies was given as one copy of the model; give each of them by itself: "
            f"{names}"
        )


def copy_inside(module: nn.Module, model: nn.Module, *, by_name: bool = False) -> nn.Module | None:
    """The outermost module in it, other than the model itself, whose parameters have the model's names and shapes.

    ``by_name``: whatever the shapes.
    """
    wanted = shapes_of(model)
    for part in module.modules():
        found = shapes_of(part) if part is not model and "_orig_mod" not in part._modules else {}
        if found == wanted or (by_name and found.keys() == wanted.keys()):
            return part
    return None


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Name -> shape of every parameter that has one; none of a module that was never built."""
    if "_parameters" not in vars(module):
        return {}
    return {name: p.shape for name, p in module.named_parameters(remove_duplicate=False) if not is_lazy(p)}


def names_of_list(listed: Sequence[Any], model: nn.Module, what: str) -> list[str]:
    """Names of the parameters of which these are copies: all of the model, or those that are trained.

    Raises:
        UsageError: neither fits.
    """
    everything = list(model.named_parameters())
    for named in (everything, [(name, p) for name, p in everything if p.requires_grad]):
        if [getattr(t, "shape", None) for t in listed] == [p.shape for _, p in named]:
            return [name for name, _ in named]
    raise UsageError(
        f"the {what} that was given as a copy has {len(listed)} tensors, which are not shaped like the "
        f"{len(everything)} of model.parameters(); give copies of the model as it is now"
    )


def tensors_of(content: Content) -> dict[str, Tensor]:
    """The tensors of a copy by their first names."""
    return first_names(content)[0] if isinstance(content, nn.Module) else dict(content)


def fitting_tensors(copied: Copy, tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of a copy by the model's names, of those that are to be cut.

    Raises:
        CutError: the copy lacks a tensor or has it in another shape.
    """
    found, mine = tensors_of(copied.content), {}
    for name in names:
        if name not in found and copied.module is None:
            continue  # a dict of averages may hold parameters only
        if name not in found or found[name].shape != tensors[name].shape:
            has = f" (it has {tuple(found[name].shape)})" if name in found else ""
            raise CutError(
                f"the copy {copied.name} has no {name} of shape {tuple(tensors[name].shape)}{has}; give "
                "copies of the model as it is now"
            )
        mine[name] = found[name]
    return mine


def raise_if_misfit(copied: Copy, model: nn.Module, shapes: Mapping[str, tuple[int, ...]], cut: bool) -> None:
    """A copy must have the tensors that a cut changes, in the model's shapes of now; ``cut``: were there others before?

    Raises:
        UsageError: it has not.
    """
    try:
        mine = fitting_tensors(copied, first_names(model)[0], shapes)
    except CutError as error:
        before = " If it was made before the model was cut, make it anew: copy.deepcopy(model)." if cut else ""
        raise UsageError(f"{error}.{before}") from None
    if not mine:
        raise UsageError(f"the {copied.name} that was given as a copy holds none of the model's tensors by name")


# Copies that nobody gave --------------------------------------------------------------------------------


def look_alikes(model: nn.Module, known: Iterable[Any]) -> list[str]:
    """Living modules of the model's class, with its parameters' names and shapes, not ``known`` and in no optimizer.

    Averages and teachers are like this. They are described by their class and the module that holds them, and counted.
    """
    objects = gc.get_objects()
    mine = {id(m) for m in model.modules()} | set(map(id, known))
    alike = [o for o in objects if type(o) is type(model) and id(o) not in mine]
    wanted = shapes_of(model)
    alike = [o for o in alike if shapes_of(o) == wanted]
    if not alike:
        return []
    kinds = {kind for kind in map(type, objects) if isinstance(kind, type)}
    optimizers = tuple(kind for kind in kinds if issubclass(kind, torch.optim.Optimizer))
    modules = tuple(kind for kind in kinds if issubclass(kind, nn.Module))
    trained = {id(p) for o in objects if type(o) in optimizers for g in o.param_groups for p in g["params"]}
    found = []
    for one in alike:
        if not any(id(p) in trained for p in one.parameters()):
            parents = (
                o for o in objects if type(o) in modules and id(one) in map(id, vars(o).get("_modules", {}).values())
            )
            around = next(parents, None)
            found.append(type(around).__name__ if around is not None else "")
    kind = (plain_kind(type(model)) or type(model)).__name__
    return [
        (f"another {kind}" if n == 1 else f"{n} others of class {kind}") + (f" (in {parent})" if parent else "")
        for parent, n in Counter(found).items()
    ]
