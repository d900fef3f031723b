"""SNAP, CroPit-S and their early forms by the book: gates as modules; removed neurons are silenced, one at a time."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runs import IMAGE, VECTOR, Mlp, PlainNet, ResidualNet

WIDTHS = {
    PlainNet: {"act1": 6, "act2": 5, "act3": 7},
    ResidualNet: {"stem_act": 6, "act1": 8, "act2": 6},
    Mlp: {"act1": 12, "act2": 10},
}
"""Layers in the order of the network."""


def shape_of(kind: type[nn.Module]) -> tuple[int, ...]:
    return VECTOR if kind is Mlp else IMAGE


class Times(nn.Module):
    """A factor per channel on what goes into a module, or on what comes out."""

    def __init__(self, inner: nn.Module, factor: Tensor, *, after: bool) -> None:
        super().__init__()
        self.inner, self.factor, self.after = inner, factor, after

    def forward(self, x: Tensor) -> Tensor:
        by = self.factor.view([1, -1] + [1] * (x.dim() - 2))
        return self.inner(x) * by if self.after else self.inner(x * by)


class Literal:
    """A network whose neurons can be gated and silenced."""

    def __init__(
        self, model: nn.Module, widths: dict[str, int], gate: str = "activation", as_published: bool = True
    ) -> None:
        self.model, self.widths, self.as_published = copy.deepcopy(model), widths, as_published
        layers = [m for m in self.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.flowing = [m.weight for m in layers] if as_published else self.weights
        self.gates = {name: torch.ones(n, dtype=torch.float64, requires_grad=True) for name, n in widths.items()}
        self.keep = {name: torch.ones(n, dtype=torch.float64) for name, n in widths.items()}
        for name in widths:
            setattr(self.model, name, Times(getattr(self.model, name), self.keep[name], after=True))
            norm = name.replace("act", "norm")
            at = norm if gate == "producer" and hasattr(self.model, norm) else name
            setattr(self.model, at, Times(getattr(self.model, at), self.gates[name], after=gate == "activation"))
        self.on_logits = torch.ones(self.model.head.out_features, dtype=torch.float64, requires_grad=True)
        self.model.head = Times(self.model.head, self.on_logits, after=True)

    def scores(self, kind: str, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """|formula| per neuron."""
        self.model.eval()
        c, w = list(self.gates.values()), self.flowing
        found = [torch.zeros_like(gate) for gate in c]
        flow = [torch.zeros_like(weight) for weight in w]
        for x, y in pairs:
            for total, part in zip(flow, torch.autograd.grad(F.cross_entropy(self.model(x), y), w), strict=True):
                total += part
        for x, y in pairs:
            loss = F.cross_entropy(self.model(x), y)
            if kind == "sensitivity":
                parts = torch.autograd.grad(loss, c)
            elif kind == "weight-flow":
                slopes = torch.autograd.grad(loss, w, create_graph=True)
                parts = torch.autograd.grad(sum((a * b).sum() for a, b in zip(flow, slopes, strict=True)), c)
            else:
                every = [*c, self.on_logits] if self.as_published else c
                slopes = torch.autograd.grad(loss, every, create_graph=True)
                parts = torch.autograd.grad(slopes, c, grad_outputs=[s.detach() for s in slopes])
            for total, part in zip(found, parts, strict=True):
                total += part
        self.model.train()
        return {name: score.abs() for name, score in zip(self.gates, found, strict=True)}

    def silence(self, scores: dict[str, Tensor], target: float) -> None:
        """Until ``target`` of all neurons is silent: the lowest live one, but never the last of its layer."""
        total = sum(self.widths.values())
        ranked = sorted(
            (float(scores[name][i]), at, i)
            for at, name in enumerate(self.widths)
            for i in range(self.widths[name])
            if self.keep[name][i]
        )
        for _, at, i in ranked:
            keep = self.keep[list(self.widths)[at]]
            if sum(int((k == 0).sum()) for k in self.keep.values()) < round(target * total) and keep.sum() > 1:
                keep[i] = 0.0

    def prune(self, kind: str, pairs: list[tuple[Tensor, Tensor]], targets: list[float]) -> None:
        """All rounds, each scored on what the one before has left."""
        for target in targets:
            self.silence(self.scores(kind, pairs), target)

    def kept(self) -> dict[str, list[int]]:
        return {name: keep.nonzero().flatten().tolist() for name, keep in self.keep.items()}


def literal_rounds(rho: float) -> list[float]:
    """The list of the originals, as a loop that halves what is missing."""
    if rho <= 0.5:
        return [rho]
    found, missing = [], rho - 0.5
    for _ in range(6):
        found.append(rho - missing)
        missing /= 2
    return [*found, rho]


def flat(model: nn.Module) -> Tensor:
    """All weights as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).clone()


def paper_rule(epochs: list[Tensor], rho: float) -> int | None:
    """The epoch at which the weights w_0, w_1, ... at epoch ends fire."""
    d = [torch.linalg.vector_norm(w - epochs[0]) for w in epochs]
    for t in range(1, len(epochs)):
        if 0 < abs(d[t] - d[t - 1]) / torch.linalg.vector_norm(epochs[0]) < 1 - rho:
            return t
    return None


def repository_rule(epochs: list[Tensor], rho: float) -> int | None:
    """As in the published code, which keeps the last distance, at first 0, and a bound, at first unknown."""
    reference, last, bound = None, 0.0, None
    for t in range(1, len(epochs)):
        if reference is None:
            reference = epochs[t]
            continue
        r = float(torch.linalg.vector_norm(reference - epochs[t]) / torch.linalg.vector_norm(reference))
        if bound is None:
            bound = r * min(1 - rho - 0.1, 0.99)
        if abs(r - last) < bound:
            return t
        last = r
    return None


RULES: dict[str, Callable[[list[Tensor], float], int | None]] = {"paper": paper_rule, "repository": repository_rule}
