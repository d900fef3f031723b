"""Who is dead: criteria, probes, passive windows, monitoring."""

from demp.activity.criteria import Criterion
from demp.activity.deaths import Deaths, LayerActivity, Snapshot
from demp.activity.monitor import NeuronMonitor
from demp.activity.probe import Detection, agreed, alive, probe, ranked
from demp.activity.window import Window

__all__ = [
    "Criterion",
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
