"""Which neurons are dead: criteria, probes, passive windows, monitoring."""

import warnings
from typing import Any

from demp.activity.criteria import Criterion, CriterionKind
from demp.activity.deaths import Deaths, LayerActivity, Snapshot
from demp.activity.monitor import NeuronMonitor
from demp.activity.probe import Detection, agreed, alive, probe, ranked
from demp.activity.window import Window

__all__ = [
    "Criterion",
    "CriterionKind",
    "Deaths",
    "LayerActivity",
    "NeuronMonitor",
    "Snapshot",
    "Detection",
    "Window",
    "agreed",
    "alive",
    "probe",
    "ranked",
]


def __getattr__(name: str) -> Any:
    """Return what version 0.1 called ``Verdict``, with a DeprecationWarning."""
    if name == "Verdict":
        warnings.warn("demp.activity.Verdict is now demp.activity.Detection", DeprecationWarning, stacklevel=2)
        return Detection
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
