"""A saved model is built anew: the constructor's dense model takes the tensors, and so the widths, of the file."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from demp.activity.observe import quiet
from demp.artifact.architecture import batch_of, dtype_name
from demp.errors import ArtifactError, UsageError
from demp.graph.attributes import SIZE_ATTRIBUTES
from demp.graph.forward import first_names
from demp.surgery.record import make_inputs

logger = logging.getLogger("demp")
OTHER = "build the model with the arguments it was trained with"


def raise_if_no_constructor(build: object) -> None:
    """Refuse a network in place of what makes one.

    Raises:
        UsageError: ``build`` is a network, or cannot be called.
    """
    if isinstance(build, nn.Module):
        raise UsageError(
            f"build is a {type(build).__name__} that is made already; give what makes the dense network, such as the "
            "class or `lambda: Net(width=64)`. The state dict of a cut network fits one that exists: "
            "demp.load_state_dict(model, state_dict)"
        )
    if not callable(build):
        raise UsageError(f"build is {build!r}; give what makes the dense network: its class, or a function")


def built(build: Callable[[], nn.Module], weights: dict[str, Tensor], architecture: dict[str, Any]) -> nn.Module:
    """The constructor's model with the saved tensors in; on meta first, so that dense weights are never allocated.

    Raises:
        ArtifactError: it makes another network than the saved one.
    """
    try:
        with torch.device("meta"):
            model = build()
        make_lazy(model, architecture)
        put(model, weights, architecture)
        if not any(t.is_meta for t in (*model.parameters(), *model.buffers())):
            return model
    except ArtifactError:
        raise
    except Exception as error:  # a constructor may need values that meta tensors do not have: build it for real
        logger.debug("the constructor does not run on the meta device: %s", error)
    model = build()
    make_lazy(model, architecture)
    put(model, weights, architecture)
    return model


def make_lazy(model: nn.Module, architecture: dict[str, Any]) -> None:
    """Lazy modules take their dense sizes from one forward on inputs like those that the model was cut on.

    Raises:
        ArtifactError: the inputs of no forward are known.
    """
    if not any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        return
    if architecture["probe"] is None:
        raise ArtifactError("the constructor's model has lazy modules; let it run its forward once before it returns")
    args, kwargs = make_inputs(architecture["probe"]["inputs"], seed=0, batch=batch_of(architecture["probe"]))
    with quiet(model):
        model(*args, **kwargs)


def put(model: nn.Module, weights: dict[str, Tensor], architecture: dict[str, Any]) -> None:
    """Every saved tensor into its place, ties kept; sizes that modules remember follow.

    Raises:
        ArtifactError: the constructor's model has other tensors than the saved one.
    """
    tensors, aliases = first_names(model)
    expected = {name for name in tensors if name in model.state_dict(keep_vars=True)}
    if expected != set(weights) or not set(architecture["aliases"]) <= set(aliases):
        odd = sorted(expected ^ set(weights))[:3] or sorted(set(architecture["aliases"]) - set(aliases))[:3]
        raise ArtifactError(f"the constructor's model and the saved one differ in {', '.join(odd)}; {OTHER}")
    names = {first: [first, *(a for a, f in aliases.items() if f == first)] for first in tensors}
    for name, value in {**weights, **unsaved_buffers(tensors, weights, architecture)}.items():
        old = tensors[name]
        raise_if_other_kind(name, old, value, architecture["record"])
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for alias in names[name]:
            owner, _, leaf = alias.rpartition(".")
            module = model.get_submodule(owner)
            place = module._parameters if leaf in module._parameters else module._buffers
            place[leaf] = new  # type: ignore[index]
    for name, sizes in architecture["modules"].items():
        resize(module_at(model, name), sizes, name or "the model")


def resize(module: nn.Module, sizes: dict[str, int], what: str) -> None:
    """Sizes that a module remembers become those that the cuts left, which its weight shows.

    Raises:
        ArtifactError: a size that no cut leaves, or that the weight does not show.
    """
    changed = set()
    for attribute, value in sizes.items():
        old = getattr(module, attribute, None)
        if type(old) is not int or value > old or (value == 0 < old):
            raise ArtifactError(f"{attribute} of {what} is {old} in the constructor's model, saved as {value}; {OTHER}")
        if old != value:
            setattr(module, attribute, value)
            changed.add(attribute)
    known = next((axes for kind, axes in SIZE_ATTRIBUTES.items() if isinstance(module, kind)), ())
    weight: Any = getattr(module, "weight", None)
    for attribute, axis in known if isinstance(weight, Tensor) else ():
        shown = weight.shape[axis] * (getattr(module, "groups", 1) if axis else 1)
        if attribute in changed and sizes[attribute] != shown:
            raise ArtifactError(f"{attribute} of {what} is saved as {sizes[attribute]}, and its weight has {shown}")


def raise_if_other_kind(name: str, old: Tensor, value: Tensor, record: dict[str, Any] | None) -> None:
    """A saved tensor takes the place of one of the same kind, with the shape that the cuts left of it.

    Raises:
        ArtifactError: the constructor's tensor is of another kind or shape.
    """
    if old.dim() != value.dim():
        raise ArtifactError(
            f"{name} has {old.dim()} axes in the constructor's model and {value.dim()} in the saved one"
        )
    if not isinstance(old, nn.Parameter):
        return
    if old.requires_grad and not (value.is_floating_point() or value.is_complex()):
        raise ArtifactError(f"{name} is trained in the constructor's model and holds {dtype_name(value)}; {OTHER}")
    kept = record["kept"] if record is not None else {}
    left = [len(kept.get(f"{name}|{axis}", range(length))) for axis, length in enumerate(old.shape)]
    if list(value.shape) not in (left, list(old.shape)):
        raise ArtifactError(
            f"{name} has the shape {list(old.shape)} in the constructor's model, of which the cuts left {left}, and "
            f"{list(value.shape)} in the saved one; {OTHER}"
        )


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The module that the file means.

    Raises:
        ArtifactError: the constructor's model has none there.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ArtifactError(f"the constructor's model has no module {path!r}; {OTHER}") from None


def unsaved_buffers(
    tensors: dict[str, Tensor], weights: dict[str, Tensor], architecture: dict[str, Any]
) -> dict[str, Tensor]:
    """Buffers that the constructor computes and no file holds, at the widths that the cuts left.

    Raises:
        ArtifactError: the constructor computes one in another shape.
    """
    small: dict[str, Tensor] = {}
    record = architecture["record"]
    for key, kept in (record["kept"] if record is not None else {}).items():
        name, _, axis = key.rpartition("|")
        if name in tensors and name not in weights:
            whole = small.get(name, tensors[name])
            if record is not None and list(tensors[name].shape) != record["dense_shapes"][name]:
                raise ArtifactError(f"{name} has another shape in the constructor's model; {OTHER}")
            small[name] = whole.index_select(int(axis), torch.tensor(kept, device=whole.device))
    return small
