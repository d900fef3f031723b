"""Refused neurons: those with the same reason together, wherever in the model it is."""

import re
from collections.abc import Iterable

from demp.activity.detector import listed
from demp.graph.parts import Refusal

PLACE = re.compile(r"(.* \((?:[^()]* )?at )([^()]+)\)")
"""A reason that ends with its place, as in ``layer_norm over the neuron axis mixes neurons (at blocks.0.norm)``."""


def by_reason(refusals: Iterable[Refusal]) -> dict[str, list[Refusal]]:
    """Reason -> its refusals. Reasons that differ by their place alone are one, which names the first place."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    found: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in refusals:
        match = PLACE.fullmatch(refusal.reason)
        key = (match[1], ")") if match else (refusal.reason, "")
        places.setdefault(key, {})[match[2] if match else ""] = None
        found.setdefault(key, []).append(refusal)
    return {f"{key[0]}{listed(list(places[key]), most=1)}{key[1]}": group for key, group in found.items()}
