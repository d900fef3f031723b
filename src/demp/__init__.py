"""demp: train a PyTorch network that gets smaller while it learns.

The catalogue of public names, resolved on first use so that parts which need no torch start without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from demp import renamed

__version__ = "0.2.0"

if TYPE_CHECKING:
    from demp import methods as methods
    from demp import recipes as recipes
    from demp.activity import Criterion as Criterion
    from demp.activity import NeuronMonitor as NeuronMonitor
    from demp.activity import alive as alive
    from demp.analysis.costs import Cost as Cost
    from demp.analysis.costs import cost as cost
    from demp.analysis.inspection import inspect as inspect
    from demp.artifact import load as load
    from demp.artifact import save as save
    from demp.budgets import Budget as Budget
    from demp.errors import ArtifactError as ArtifactError
    from demp.errors import CutError as CutError
    from demp.errors import DempError as DempError
    from demp.errors import ExportError as ExportError
    from demp.errors import TraceError as TraceError
    from demp.errors import UsageError as UsageError
    from demp.experiments import theory as theory
    from demp.exports import ExportReport as ExportReport
    from demp.exports import export as export
    from demp.exports import plain as plain
    from demp.graph import NeuronGraph as NeuronGraph
    from demp.graph import trace as trace
    from demp.methods.demp_config import DemPConfig as DemPConfig
    from demp.pruner import Pruner as Pruner
    from demp.pruner.factory import DemP as DemP
    from demp.pruner.loading import LoadReport as LoadReport
    from demp.pruner.loading import load_state_dict as load_state_dict
    from demp.regularization import schedules as schedules
    from demp.surgery import CutReport as CutReport
    from demp.surgery import Limits as Limits
    from demp.surgery import cut as cut

_HOME = {
    "methods": "demp.methods",
    "recipes": "demp.recipes",
    "schedules": "demp.regularization.schedules",
    "theory": "demp.experiments.theory",
    "Criterion": "demp.activity",
    "NeuronMonitor": "demp.activity",
    "alive": "demp.activity",
    "load": "demp.artifact",
    "save": "demp.artifact",
    "Budget": "demp.budgets",
    "Cost": "demp.analysis.costs",
    "cost": "demp.analysis.costs",
    "ArtifactError": "demp.errors",
    "CutError": "demp.errors",
    "DempError": "demp.errors",
    "ExportError": "demp.errors",
    "TraceError": "demp.errors",
    "UsageError": "demp.errors",
    "ExportReport": "demp.exports",
    "export": "demp.exports",
    "plain": "demp.exports",
    "NeuronGraph": "demp.graph",
    "trace": "demp.graph",
    "inspect": "demp.analysis.inspection",
    "LoadReport": "demp.pruner.loading",
    "load_state_dict": "demp.pruner.loading",
    "DemPConfig": "demp.methods.demp_config",
    "DemP": "demp.pruner.factory",
    "Pruner": "demp.pruner",
    "CutReport": "demp.surgery",
    "Limits": "demp.surgery",
    "cut": "demp.surgery",
}

_ROOMS = ("methods", "recipes", "schedules", "theory")
"""Names that are modules."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'demp' has no attribute {name!r}")
    home = importlib.import_module(_HOME[name])
    value = home if name in _ROOMS else getattr(home, name)
    globals()[name] = value
    return value


renamed.install()


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
