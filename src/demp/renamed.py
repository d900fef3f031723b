"""Modules of earlier versions under their old names: they are the new modules, with one warning each."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "admission": "pruner.validation",
    "architecture": "artifact.architecture",
    "attachment": "pruner.attachment",
    "compare": "experiments.compare",
    "compare.picture": "experiments.compare.figure",
    "compiled": "parallel.compiled",
    "costs": "analysis.costs",
    "creation": "pruner.factory",
    "densities": "masking.distributions",
    "gate_slots": "importance.gate_slots",
    "gates": "importance.gates",
    "hooks": "parallel.hooks",
    "initialization": "pruner.initialization",
    "inspection": "analysis.inspection",
    "latency": "pruner.latency",
    "loading": "pruner.loading",
    "masks": "masking.masks",
    "methods.checks": "files.checks",
    "noise": "regularization.noise",
    "options": "pruner.options",
    "penalties": "regularization.penalties",
    "proof": "artifact.proof",
    "ranking": "importance.ranking",
    "ranks": "parallel.ranks",
    "records": "files.results",
    "report": "experiments.report",
    "report.pictures": "experiments.report.figures",
    "schedules": "regularization.schedules",
    "shards": "parallel.shards",
    "shrinking": "pruner.model",
    "studies": "experiments.studies",
    "sweep": "experiments.sweep",
    "targets": "regularization.targets",
    "theory": "experiments.theory",
    "train.pictures": "train.images",
    "view": "pruner.view",
    "wrappers": "parallel.wrappers",
}
"""Old name in the package: new name."""


def renamed(name: str) -> str | None:
    """The present full name of a module of this package that has moved; None of any other."""
    package, _, rest = name.partition(".")
    for old in sorted(MOVED, key=len, reverse=True) if package == "demp" else ():
        if rest == old or rest.startswith(f"{old}."):
            return f"{package}.{MOVED[old]}{rest.removeprefix(old)}"
    return None


class Renamed(MetaPathFinder, Loader):
    """Imports an old name as the module that it is now."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """The specification of a module under an old name; None for other names."""
        return ModuleSpec(fullname, self) if renamed(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module under its present name."""
        name = renamed(spec.name)
        assert name is not None
        if spec.name.removeprefix("demp.") in MOVED:
            warnings.warn(f"{spec.name} is now {name}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it has run; only its own specification comes back."""
        alias = module.__spec__
        assert alias is not None
        module.__spec__ = alias.loader_state


def install() -> None:
    """Let old names be imported from now on."""
    if not any(isinstance(finder, Renamed) for finder in sys.meta_path):
        sys.meta_path.insert(0, Renamed())
