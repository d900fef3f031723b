"""How much of a network may be left: budgets, what a network spends of them, and what to remove to meet one."""

from demp.budgets.budget import RESOURCES, Budget, as_budget
from demp.budgets.choice import Choice, Question, choose, least
from demp.budgets.meter import Clock, Meter, Sizes, sizes_of

__all__ = [
    "RESOURCES",
    "Budget",
    "Choice",
    "Clock",
    "Meter",
    "Question",
    "Sizes",
    "as_budget",
    "choose",
    "least",
    "sizes_of",
]
