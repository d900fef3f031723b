"""When may a neuron go? Criteria on the values that its readers see (paper, Sec. 2, App. A, F.3 and F.7)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from demp.activity.reductions import reduced, rows
from demp.errors import UsageError
from demp.files.checks import check_choices
from demp.graph.parts import LINEAR

CriterionKind = Literal["auto", "paper", "exact", "saturated", "negative-only", "epsilon", "sum"]
"""What `Criterion.kind` may be."""
SATURATES_AT_ZERO = ("relu", "relu6")
NEGATIVE_TAIL = ("leaky_relu", "elu")
DEFAULT_EPS = {"saturated": 0.1, "epsilon": 0.01, "sum": 0.0}


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Decides which neurons are dead or saturated; a neuron must be so in every batch and for every consumer."""

    kind: CriterionKind = "auto"
    """``exact``: zero everywhere. ``saturated``: a constant, zero or not: its deviation over all examples and positions
    is at most eps times the mean deviation of its layer's neurons, or 0; such a neuron leaves with its constant.
    ``negative-only``: never positive (App. F.7). ``epsilon``: ``|a| < eps``, or zero. ``sum``: the sum over positions
    and examples is at most eps (the authors' code). ``auto``: exact for ReLU, negative-only for LeakyReLU and ELU,
    saturated for the others. ``paper``: the same, but epsilon for the others. Linear neurons, which may be below zero
    and alive, are dead for ``negative-only`` and ``sum`` where they are for ``exact``."""
    eps: float | None = None
    """Threshold of ``saturated`` (default 0.1), ``epsilon`` (0.01, the paper's Fig. 1) and ``sum`` (0)."""
    relative: bool = True
    """``epsilon`` is measured in units of the layer's mean peak ``|a|``; False: in absolute units."""

    def __post_init__(self) -> None:
        check_choices(self, "criterion")
        if self.eps is not None and not self.eps >= 0:
            raise UsageError(f"criterion eps is {self.eps}; give a number >= 0")

    def resolve(self, activation: str) -> str:
        """Return the kind of criterion that applies to an activation: ``auto`` and ``paper`` depend on it."""
        if activation == LINEAR and self.kind in ("negative-only", "sum"):
            return "exact"
        if self.kind not in ("auto", "paper"):
            return self.kind
        if activation in SATURATES_AT_ZERO:
            return "exact"
        if activation in NEGATIVE_TAIL:
            return "negative-only"
        return "saturated" if self.kind == "auto" else "epsilon"

    def of_moments(self, activation: str) -> bool:
        """Return whether mean and deviation over all batches decide, rather than each batch on its own."""
        return self.resolve(activation) == "saturated"

    def is_exact(self, activation: str) -> bool:
        """Return whether removal leaves the outputs on the examples looked at unchanged."""
        return self.resolve(activation) == "exact"

    def flat(self, deviation: Tensor) -> Tensor:
        """Return, per neuron, whether it is saturated; ``deviation`` is in units of its layer's mean, of (width,)."""
        return deviation <= (DEFAULT_EPS["saturated"] if self.eps is None else self.eps)

    def alone(self, activation: str) -> bool:
        """Return whether a neuron's own outputs decide, without those of the rest of its layer."""
        return not (self.relative and self.resolve(activation) == "epsilon")

    def dead(self, activation: str, values: "Peaks") -> Tensor:
        """Return, per neuron, whether it is dead in this batch, of shape (width,). A neuron with a nan is alive."""
        kind = self.resolve(activation)
        assert kind != "saturated", "decided by its moments"
        if kind == "exact":
            return (values.top == 0) & (values.bottom == 0)
        if kind == "negative-only":
            return values.top <= 0
        eps = DEFAULT_EPS[kind] if self.eps is None else self.eps
        if kind == "sum":
            return values.total <= eps
        peak = torch.maximum(values.top, -values.bottom)
        scale = peak[peak.isfinite()].mean() if self.relative else 1.0
        return (peak < eps * scale) | (peak == 0)


@dataclass(frozen=True)
class Peaks:
    """Per neuron over one batch: highest value, lowest value, sum."""

    top: Tensor
    bottom: Tensor
    total: Tensor

    @classmethod
    def along(cls, values: Tensor, axis: int, needs_total: bool) -> "Peaks":
        """Reduce an activation over all axes but one.

        Raises:
            UsageError: the batch is empty.
        """
        if values.numel() == 0 and values.shape[axis]:
            raise UsageError("cannot look for dead neurons on an empty batch")
        top, bottom = reduced(values, axis, torch.amax), reduced(values, axis, torch.amin)
        wide = torch.promote_types(values.dtype, torch.float32)
        return cls(top, bottom, rows(values, axis).sum(1, dtype=wide) if needs_total else top)

    def gather(self, positions: Tensor, neuron: Tensor, width: int) -> "Peaks":
        """Peaks per neuron from peaks per position; several positions may belong to one neuron (flatten)."""

        def reduce(values: Tensor, how: str, start: float) -> Tensor:
            out = torch.full((width,), start, dtype=values.dtype, device=values.device)
            if how == "sum":
                return out.index_add(0, neuron, values[positions])
            return out.scatter_reduce(0, neuron, values[positions], how, include_self=False)

        return Peaks(reduce(self.top, "amax", 0.0), reduce(self.bottom, "amin", 0.0), reduce(self.total, "sum", 0.0))
