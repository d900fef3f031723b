"""Many jobs, each done once: grids, seeds, devices, machines."""

from demp.experiments.sweep.job import Job, name_of
from demp.experiments.sweep.store import Store
from demp.experiments.sweep.sweep import Outcome, Sweep
from demp.experiments.sweep.training import training

__all__ = ["Job", "Outcome", "Store", "Sweep", "name_of", "training"]
