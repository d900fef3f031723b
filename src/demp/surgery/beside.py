"""What the state dict of a cut model says beside its tensors: enough to give a dense model the same widths.

``model.state_dict()`` has metadata per module, which ``torch.save`` keeps and ``load_state_dict`` ignores. A hook puts
the record of the cuts there, with planned residual sums and the sizes that modules remember. Names and tensors stay as
they are, so that loops over them (averages, filters, strict loading) see nothing new.
"""

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import nn

from demp.graph.attributes import COUNTS, SIZE_ATTRIBUTES
from demp.graph.calls import calls_to_plain
from demp.graph.joins import joins_to_plain

RECORD = "demp_record"
"""Attribute of a cut model: its record as plain data."""
KEY = "demp"
"""In the metadata of a module."""


class Hooks(OrderedDict[Any, Any]):
    """Hooks on the state dict of a cut model. A pickle has only those of others, so that it loads without demp."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter([(key, hook) for key, hook in self.items() if key != KEY])

    def __deepcopy__(self, memo: dict[int, Any]) -> "Hooks":
        return Hooks((key, deepcopy(hook, memo)) for key, hook in self.items())


def announce(model: nn.Module, on: bool) -> None:
    """From now on the state dicts of this model have the record of its cuts beside them, or no longer do."""
    hooks: dict[Any, Any] = dict(model._state_dict_hooks)
    if on and KEY not in hooks:
        vars(model)["_state_dict_hooks"] = Hooks({**hooks, KEY: put_beside})
    elif not on and KEY in hooks:
        del hooks[KEY]
        vars(model)["_state_dict_hooks"] = OrderedDict(hooks)


def put_beside(module: nn.Module, state_dict: Any, prefix: str, metadata: dict[str, Any]) -> None:
    """Write the record of cuts into a state dict's metadata, as a hook."""
    record = vars(module).get(RECORD)
    if isinstance(record, dict):
        metadata[KEY] = {
            "record": record,
            "joins": joins_to_plain(module),
            "calls": calls_to_plain(module),
            "modules": module_sizes(module),
        }


def beside(state_dict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Path of each cut module whose tensors are in a state dict -> what stands beside them."""
    metadata = getattr(state_dict, "_metadata", None) or {}
    return {path: found[KEY] for path, found in metadata.items() if isinstance(found, Mapping) and KEY in found}


def module_sizes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Sizes that modules remember, by path."""
    sizes: dict[str, dict[str, int]] = {}
    for path, module in model.named_modules():
        known = next((v for kind, v in SIZE_ATTRIBUTES.items() if isinstance(module, kind)), ())
        found = {attribute: getattr(module, attribute) for attribute, _ in known}
        found |= {name: vars(module)[name] for name in COUNTS if isinstance(vars(module).get(name), int)}
        if found:
            sizes[path] = found
    return sizes
