"""Packages beyond torch are extras: imported when used, their absence is one sentence."""

import importlib
from typing import Any

from demp.errors import UsageError


def need(module: str, extra: str = "train") -> Any:
    """Import ``module``, which the extra ``extra`` of demp brings.

    Raises:
        UsageError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there and broken: not ours to explain
        package = {"sklearn": "scikit-learn", "PIL": "pillow", "tomli_w": "tomli-w"}
        name = package.get(module.split(".")[0], module.split(".")[0])
        raise UsageError(f"this needs the package {name}; install it with: pip install 'demp[{extra}]'") from None
