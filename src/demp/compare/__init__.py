"""Several methods on one budget: a dense run beside them, one table, one picture."""

from demp.compare.comparison import Comparison, Outcome
from demp.compare.plan import Planned, plan

__all__ = ["Comparison", "Outcome", "Planned", "plan"]
