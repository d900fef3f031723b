"""Several methods on one budget: a dense run beside them, one table, one figure."""

from demp.experiments.compare.comparison import Comparison
from demp.experiments.compare.plan import Planned, plan

__all__ = ["Comparison", "Planned", "plan"]
