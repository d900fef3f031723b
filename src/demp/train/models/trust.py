"""Which models a file may ask for: those whose construction runs no code but demp's and the model libraries'."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.train.models.names import BUILT_IN, LIBRARIES

TEXTS = (
    *("activation", "act_layer", "norm_layer", "global_pool", "position_embedding_type", "model_type", "layer_type"),
    *("hidden_act", "hidden_activation", "activation_function", "ff_activation", "mlp_activation"),
)
"""Options of library models that may be words: each is looked up in a table of the library's own."""
IMPLEMENTATIONS = {
    "attn_implementation": ("eager", "sdpa"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}
"""Options whose other values are fetched from the network and run."""
FETCHES = ("pretrained", "checkpoint_path", "weights", "remote", "auto_map", "kernel_config", "quantization")
"""Options with these in their name read or fetch files, or import what they name."""

DEEPEST = 8
"""Of options within options."""


def is_foreign(name: str) -> bool:
    """Does this name stand for a function of some module, rather than a model that demp or a library has?"""
    source, colon, _ = name.partition(":")
    return bool(colon) and source not in LIBRARIES


def raise_if_untrusted(model: Any, file: str | Path) -> None:
    """Refuse to build what ``file`` asks for where that would run code of its choosing.

    ``model`` is what `build` would be called with. Built-in and library models pass, with numbers, switches and lists
    of them as options, and words where they are looked up in a table.

    Raises:
        UsageError: another model, or another option.
    """
    if not isinstance(model, Mapping) or not isinstance(name := model.get("name"), str):
        raise UsageError(f"{file} does not name its model; write the file again")
    remedy = "; if you know where the file comes from, allow that with --trust (in Python: trust=True)"
    if is_foreign(name):
        raise UsageError(f"{file} asks for the model {name!r}, which would import and run that code{remedy}")
    known = name in BUILT_IN or ":" in name
    options = {key: value for key, value in model.items() if key != "name"}
    for key, value in options.items() if known else ():
        if not harmless(key, value):
            raise UsageError(f"{file} asks for the model {name!r} with {key}={value!r}, which may run code{remedy}")


def harmless(key: Any, value: Any, deep: int = 0) -> bool:
    """Can this option do no more than choose sizes, switches, and names from a library's own table?"""
    if not isinstance(key, str) or any(part in key for part in FETCHES) or deep > DEEPEST:
        return False
    if value is None or isinstance(value, bool | int | float):
        return True
    if isinstance(value, str):
        return value in IMPLEMENTATIONS.get(key.lstrip("_"), ()) or key in TEXTS
    if isinstance(value, Mapping):
        return all(harmless(inner, one, deep + 1) for inner, one in value.items())
    return isinstance(value, list | tuple) and all(harmless("", one, deep + 1) for one in value)
