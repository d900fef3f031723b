"""Why noise kills neurons: the two walks of Appendix B in closed form, simulated, and drawn.

>>> from demp.experiments import theory
>>> round(theory.survival(start=1.0, rate=0.1, time=50), 4)
0.3453
>>> theory.absorbing_walks(1.0, 0.1, [50], walks=100_000, seed=0).shares
(0.3438,)
"""

import warnings
from typing import Any

from demp.experiments.theory.absorbing import Survivors, absorbing_walks, deviation, survival
from demp.experiments.theory.geometric import (
    Noise,
    TwoPoint,
    Uniform,
    geometric_walks,
    growth_rate,
    growth_spread,
    rate_bound,
    settled_after,
    stability_range,
    stable_above,
)
from demp.experiments.theory.plots import draw_growth, draw_survival, figure

__all__ = [
    "Noise",
    "Survivors",
    "TwoPoint",
    "Uniform",
    "absorbing_walks",
    "deviation",
    "draw_growth",
    "draw_survival",
    "figure",
    "geometric_walks",
    "growth_rate",
    "growth_spread",
    "rate_bound",
    "settled_after",
    "stability_range",
    "stable_above",
    "survival",
]


def __getattr__(name: str) -> Any:
    if name == "picture":
        warnings.warn("demp.theory.picture is now demp.theory.figure", DeprecationWarning, stacklevel=2)
        return figure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
