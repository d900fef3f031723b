"""Two methods in one run: the first removes neurons, the second masks weights of what is left (``demp+rigl``).

Penalty, noise and criterion of death are the first's, masks the second's; both select neurons. Noise never brings a
masked weight back, since weights are held after it. Dead neurons are looked for on the masked network. What a
cut takes from a mask is missing from it, and each tensor keeps the density that it was given on the dense network:
RigL and SET drop and grow what that takes at their next update.
"""

import dataclasses
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from demp.activity import Criterion
from demp.errors import UsageError
from demp.graph import NeuronGraph
from demp.methods.base import Method, MethodConfig, Requirements, Selection, View
from demp.methods.masks import MaskMethod, of_today
from demp.regularization import Shrink
from demp.regularization.noise import Noise
from demp.regularization.penalties import Penalty


class Combination(MaskMethod):
    """Base of all combinations; ``combined`` makes one."""

    parts: ClassVar[tuple[type[Method], type[MaskMethod]]]

    def __init__(self, config: Any, total_steps: int) -> None:
        super().__init__(config, total_steps)
        first, second = self.parts
        self.first, self.second = first(config, total_steps), second(config, total_steps)

    def raise_if_unfit(self, graph: NeuronGraph) -> None:
        """Raise UsageError if either method does not fit the network."""
        self.first.raise_if_unfit(graph)
        self.second.raise_if_unfit(graph)

    def criterion(self) -> Criterion:
        """Return the first method's criterion of death."""
        return self.first.criterion()

    def requirements(self) -> Requirements:
        """Return what the first requires, and what the second does to choose."""
        mine, theirs = self.first.requirements(), self.second.requirements()
        return dataclasses.replace(
            mine,
            constants=mine.constants or theirs.constants,
            max_drift=mine.max_drift,
            scores=mine.scores or theirs.scores,
            zeros=mine.zeros or theirs.zeros,
        )

    def penalty(self, step: int) -> Penalty | None:
        """Return the first method's penalty at this step."""
        return self.first.penalty(step)

    def after_step(self, step: int) -> Noise | None:
        """Return the first method's noise after this step."""
        return self.first.after_step(step)

    def watches(self, step: int) -> bool:
        """Return whether the first method needs the sensitivity at this step."""
        return self.first.watches(step)

    def watch(self, sensitivity: Tensor) -> None:
        """Pass the sensitivity of each class to the first method."""
        self.first.watch(sensitivity)

    def looks(self, step: int) -> bool:
        """Return whether the first method needs the covariances of this step."""
        return self.first.looks(step)

    def shrink(self, step: int) -> Shrink | None:
        """Return how the first method shrinks scales at this step."""
        return self.first.shrink(step)

    def is_due(self, step: int) -> bool:
        """Return whether either method has a selection due at this step."""
        return self.first.is_due(step) or self.second.is_due(step)

    def ready(self, step: int, view: View) -> bool:
        """When one that is due is; each is asked."""
        return any([part.ready(step, view) for part in (self.first, self.second) if part.is_due(step)])

    def unfinished(self, step: int) -> str:
        """What either had still to do."""
        return "; ".join(filter(None, (part.unfinished(step) for part in (self.first, self.second))))

    def nothing_removed(self) -> str:
        """What the method says that removes neurons."""
        return self.first.nothing_removed()

    def again(self, step: int) -> bool:
        """Return whether either of the two methods selects once more at this step."""
        return self.first.again(step) or self.second.again(step)

    def select(self, step: int, view: View) -> Selection:
        """All that those of the two methods choose which are due; at the end, and for a cut that was put off, both."""
        due = [part for part in (self.first, self.second) if part.is_due(step) and not view.final]
        return union(*(part.select(step, view) for part in due or (self.first, self.second)))

    def initial_masks(self, view: View) -> dict[str, Tensor]:
        """Return the second method's masks before the first step."""
        return self.second.initial_masks(view)

    def initial_factors(self, view: View) -> dict[str, float]:
        """Return the second method's factors on initial parameters."""
        return self.second.initial_factors(view)

    def masks_due(self, step: int) -> bool:
        """Return whether the second method changes masks at this step."""
        return self.second.masks_due(step)

    def update_masks(self, step: int, view: View) -> dict[str, Tensor]:
        """Return the second method's masks from this step on."""
        return self.second.update_masks(step, view)

    def skips_updates(self) -> bool:
        """Return whether the optimizer moves nothing while the second method changes masks."""
        return self.second.skips_updates()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both methods as a dictionary."""
        return {"first": self.first.state_dict(), "second": self.second.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both methods from a saved state."""
        self.first.load_state_dict(state["first"])
        self.second.load_state_dict(state["second"])


def union(*selections: Selection) -> Selection:
    """Everyone whom any of them chose; exact if all are."""
    neurons: dict[str, Tensor] = {}
    for one in selections:
        for name, flags in one.neurons.items():
            neurons[name] = neurons[name] | flags if name in neurons else flags
    answers = {one.exact for one in selections}
    exact = False if False in answers else None if None in answers else True
    return Selection(neurons, exact, tuple(note for one in selections for note in one.notes))


@cache
def combined(first: type[Method], second: type[Method]) -> type[Method]:
    """The method that runs both, called ``first+second``, with the settings of both.

    Raises:
        UsageError: the first masks weights, the second does not, or both have a setting of the same name.
    """
    name = f"{first.name}+{second.name}"
    masking = of_today(second)
    if masks_weights(first) or not issubclass(masking, MaskMethod):
        raise UsageError(
            f"{name!r} is not a combination: {first.name} {does(first)} and {second.name} {does(second)}; give a "
            "method that removes neurons, a plus, and a method that masks weights, as in demp+rigl"
        )
    shared = {f.name for f in dataclasses.fields(MethodConfig)}
    theirs = [{f.name for f in dataclasses.fields(part.Config)} - shared for part in (first, second)]
    if both := theirs[0] & theirs[1]:
        raise UsageError(f"{name!r}: both methods have a setting called {', '.join(sorted(both))}")
    body = {
        "__doc__": f"Knobs of {first.name} and of {second.name}.",
        "__reduce__": lambda self: (config_of, (first, second, values_of(self))),
    }
    config = type(f"{first.Config.__name__}With{second.Config.__name__}", (first.Config, second.Config), body)
    answers = {
        "name": name,
        "summary": f"{first.summary}; and {second.summary}",
        "reference": f"{first.reference}; {second.reference}",
        "Config": dataclasses.dataclass(frozen=True, kw_only=True)(config),
        "parts": (first, masking),
        "takes_budget": first.takes_budget,
        "__doc__": f"{first.summary}; and {second.summary}.",
    }
    return type(f"{first.__name__}With{second.__name__}", (Combination,), answers)


def values_of(config: Any) -> dict[str, Any]:
    """Return the values of a config by field name."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def config_of(first: type[Method], second: type[Method], values: dict[str, Any]) -> MethodConfig:
    """The config of a combination from its fields, for pickles: its class has no name in any module."""
    return combined(first, second).Config(**values)


def masks_weights(method: type[Method]) -> bool:
    """Does a method mask single weights?"""
    return issubclass(of_today(method), MaskMethod)


def does(method: type[Method]) -> str:
    """Return in words whether the method masks weights."""
    return "masks weights" if masks_weights(method) else "masks no weights"
