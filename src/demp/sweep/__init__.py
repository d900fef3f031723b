"""Many jobs, each done once: grids, seeds, devices, machines."""

from demp.sweep.job import Job, name_of
from demp.sweep.store import Store
from demp.sweep.sweep import Outcome, Sweep
from demp.sweep.training import training

__all__ = ["Job", "Outcome", "Store", "Sweep", "name_of", "training"]
