"""Models by name: built in, from a model library, or the user's own function."""

import importlib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from demp.errors import UsageError
from demp.files.suggestion import suggestion
from demp.train.models import libraries
from demp.train.models.mlp import mlp
from demp.train.models.resnet import resnet18, resnet50
from demp.train.models.vgg import vgg16
from demp.train.models.vit import vit_b_16

BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "resnet18": resnet18,
    "vgg16": vgg16,
    "resnet50": resnet50,
    "vit_b_16": vit_b_16,
}
LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "timm": libraries.timm,
    "torchvision": libraries.torchvision,
    "transformers": libraries.transformers,
}
UNSET = {"width": (1.0,), "activation": (None, "relu")}
"""Values of the standard arguments that ask for nothing special, so any model may ignore them."""


CIFAR_FORM = ("mlp", "resnet18", "vgg16")
"""Built-in models whose usual images are small; the others are of ImageNet."""


def names() -> list[str]:
    """Return the names of the built-in models."""
    return list(BUILT_IN)


def usual_images(name: str) -> tuple[int, int]:
    """Side of the images and number of classes that a model is usually built for."""
    return (32, 10) if name in CIFAR_FORM else (224, 1000)


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    width: float = 1.0,
    activation: str | None = "relu",
    **options: Any,
) -> nn.Module:
    """A model with random weights; an image model maps (N, C, H, W) to logits (N, num_classes).

    ``name`` is one of

    - a built-in model (``names()``); ``activation=None`` is what its builder prefers, GELU for the
      ViT and ReLU elsewhere;
    - ``timm:NAME``, ``torchvision:NAME``: an architecture of that library; ``options`` go to its
      builder;
    - ``transformers:TYPE``: a configuration type such as ``vit`` or ``bert``; ``options`` are its
      fields. The head is the first that the type has: image classification (wrapped to return
      plain logits), sequence classification, audio classification, none;
    - ``package.module:function``: called with those standard arguments that its signature accepts,
      and with all ``options``.

    Models that are not built in have their own activations and widths: there, the defaults of
    ``width`` and ``activation`` mean nothing, and other values are an error unless accepted.

    >>> sum(p.numel() for p in build("resnet18", num_classes=10, width=0.25).parameters())
    701466
    >>> build("torch.nn:Linear", num_classes=10, in_features=64, out_features=10)
    Linear(in_features=64, out_features=10, bias=True)

    Raises:
        UsageError: An unknown name, an option that the model does not have, a missing package.
    """
    standard = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "width": width,
        "activation": activation,
    }
    source, colon, rest = name.partition(":")
    if colon and source in LIBRARIES:
        _raise_if_unused(name, standard, accepted=())
        return LIBRARIES[source](rest, num_classes, in_channels, image_size, options)
    builder = _import_function(source, rest) if source and colon else _built_in(name)
    return _call(name, builder, standard, options)


def _built_in(name: str) -> Callable[..., nn.Module]:
    if name not in BUILT_IN:
        hint = suggestion(name, BUILT_IN) or f"; built in are {', '.join(BUILT_IN)}"
        raise UsageError(
            f"unknown model {name!r}{hint} (other models: timm:NAME, torchvision:NAME, "
            "transformers:TYPE, package.module:function)"
        )
    return BUILT_IN[name]


def _import_function(module_name: str, function_name: str) -> Callable[..., Any]:
    where = f"model '{module_name}:{function_name}'"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, and misses another one
        hint = suggestion(module_name, LIBRARIES) or "; install it, or call demp in its folder"
        raise UsageError(f"{where}: there is no module {error.name!r}{hint}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = suggestion(function_name, vars(module)) or "; define it there"
        raise UsageError(f"{where}: module {module_name!r} has no function {function_name!r}{hint}")
    foreign = not issubclass(function, nn.Module) if isinstance(function, type) else inspect.isbuiltin(function)
    if foreign:
        raise UsageError(f"{where} is no model; name a torch.nn.Module class, or a function that returns a module")
    return function


def _call(name: str, builder: Callable[..., Any], standard: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    """Call ``builder`` with the standard arguments that it accepts, and with all options."""
    signature = inspect.signature(builder)
    kinds = {key: parameter.kind for key, parameter in signature.parameters.items()}
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds.values()
    accepted = {*kinds, *standard} if open_ended else kinds.keys()
    _raise_if_unused(name, standard, accepted)
    arguments = {key: value for key, value in standard.items() if key in accepted and value is not None}
    try:
        signature.bind(**arguments, **options)
    except TypeError as error:
        own = ", ".join(key for key in kinds if key not in standard) or "none"
        raise UsageError(f"model {name!r} {error}; its own options are: {own}") from error
    model = builder(**arguments, **options)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned {type(model).__name__}; return a torch.nn.Module")
    return model


def _raise_if_unused(name: str, standard: dict[str, Any], accepted: Collection[str]) -> None:
    """No setting is ignored in silence."""
    for key, unset in UNSET.items():
        if key not in accepted and standard[key] not in unset:
            raise UsageError(
                f"model {name!r} has no option {key!r}, but {key} is {standard[key]!r}; leave it "
                f"at {unset[-1]!r} and set the model's own options"
            )
