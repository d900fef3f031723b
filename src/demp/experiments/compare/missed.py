"""Where a comparison says less than it seems: targets that were not reached, methods that no budget binds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from demp.experiments.compare.plan import BUDGET, NO_BUDGET, words
from demp.files.results import DONE

TOLERANCE = {"target_neuron_sparsity": 0.005, "weight_sparsity": 0.05}
"""By how much a share may fall short; masks spare biases and norms, so that of all weights a little less goes."""
WHAT = {"target_neuron_sparsity": "neurons", "weight_sparsity": "weights"}


def reached(record: Mapping[str, Any], target: str) -> float:
    """The share that is removed, or for weights removed or masked."""
    if target == "target_neuron_sparsity":
        return record["neuron_sparsity"]
    return record["weight_sparsity"] + record["masked_share"]


def missed(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each method and setting whose mean over seeds falls short of its target."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["status"] == DONE:
            groups.setdefault((record["labels"]["method"], words(record["labels"]["setting"])), []).append(record)
    found = []
    for (method, setting), group in groups.items():
        for target, tolerance in TOLERANCE.items():
            aim = group[0]["labels"]["setting"].get(target)
            mean = statistics.mean(reached(record, target) for record in group)
            if aim is not None and mean < aim - tolerance:
                found.append(
                    f"{method} at {setting} has missed its target: {mean:.1%} of the {WHAT[target]} instead of "
                    f"{aim:.1%}; compare it with others at what it reached, or let it train longer or press harder"
                )
    return found


def without_budget(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each method that a comparison on a budget ran without one."""
    names = {r["labels"]["method"] for r in records if r["labels"]["setting"].get(BUDGET) == NO_BUDGET}
    return [no_budget(name) for name in sorted(names)]


def no_budget(name: str) -> str:
    """Why a row has no budget."""
    return f"{name} has no target, so it cannot land on a budget: it runs with its own options, as without a budget"
