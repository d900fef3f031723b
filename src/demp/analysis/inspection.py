"""What would be prunable in a model, before any GPU-hour is spent."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from demp.activity.detector import listed
from demp.analysis.refusals import by_reason
from demp.graph import NeuronGraph, trace
from demp.graph.neurons import numel
from demp.graph.parts import Refusal
from demp.graph.recording import Outputs
from demp.graph.rehearsal import coupled_groups
from demp.parallel import user_module


@dataclass(frozen=True)
class Row:
    """One layer in the table of `demp.inspect`."""

    layer: str
    activation: str
    width: int
    removable: int
    group: str
    """Letter of all layers that share neurons, which are removed together. Empty: the layer shares none."""
    parameters: int
    """Parameters that the layer's neurons own, with those of coupled layers; shown once per group."""
    flops: int
    reason: str
    """Why neurons are refused."""


@dataclass(frozen=True)
class Inspection:
    """Layers, widths, what is coupled, what is refused and why, and how much each layer owns."""

    model: str
    parameters: int
    flops: int
    neurons: int
    removable: int
    owned_parameters: int
    """Parameters that belong to some removable neuron."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """Residual sums that bind both sides, and why."""
    others: tuple[Refusal, ...] = ()
    """Outputs of weights that no activation carries, by the module, and why."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary that can be written as JSON."""
        return asdict(self)

    def render(self) -> str:
        """Return a plain-text table with a row per layer and the totals."""
        head = ("layer", "act", "width", "removable", "group", "params", "FLOPs", "")
        body = [
            (
                r.layer,
                r.activation,
                str(r.width),
                "all" if r.removable == r.width else str(r.removable),
                r.group,
                share(r.parameters, self.parameters),
                share(r.flops, self.flops),
                r.reason,
            )
            for r in self.rows
        ]
        widths = [max(len(line[c]) for line in [head, *body]) for c in range(len(head) - 1)]
        right = {2, 3, 5, 6}

        def line(cells: tuple[str, ...]) -> str:
            padded = [
                c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=False))
            ]
            return "  ".join([*padded, cells[-1]]).rstrip()

        rule = "-" * (sum(widths) + 2 * len(widths))
        total = (
            f"{self.model}: {self.parameters:,} parameters, {human(self.flops)}FLOPs forward, {self.neurons:,} neurons "
            f"in {len(self.rows)} layers; {self.removable:,} removable, owning "
            f"{100 * self.owned_parameters / max(self.parameters, 1):.0f} % of the parameters."
        )
        legend = (
            "Layers with the same letter share their neurons and shrink together. params and FLOPs, shown once per\n"
            "letter, are what goes with all neurons of the row (a weight between two layers counts for both)."
        )
        return "\n".join(
            [total, "", line(head), rule, *(line(b) for b in body), rule, legend, *self._others(), *self.notes]
        )

    def _others(self) -> list[str]:
        """A line per reason for what is no layer of the table."""
        lines = [
            f"  {sum(r.neurons for r in found):,} outputs of {listed([r.name for r in found])}: {reason}"
            for reason, found in by_reason(self.others).items()
        ]
        return ["Not offered, since no activation carries them:", *lines] if lines else []

    def __str__(self) -> str:
        return self.render()


def share(part: int, whole: int) -> str:
    """``part`` of ``whole`` as a percentage; an empty string if either is zero."""
    return f"{100 * part / whole:.1f} %" if part and whole else ""


def human(number: float) -> str:
    """Format a number with three digits and a unit prefix, as in 1.2 G."""
    for unit in ("", "k ", "M ", "G ", "T "):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} P"


def inspect(
    model: nn.Module,
    example_inputs: Any,
    *,
    joins: bool = True,
    streams: bool = False,
    linear: bool = False,
    outputs: Outputs = None,
) -> Inspection:
    """Trace ``model`` and say what demp could remove from it, layer by layer; printed, a table. Nothing is changed.

    Each row has the layer's width, how many of its neurons may be removed and why others may not, the layers that it
    shares neurons with, and the parameters and FLOPs that belong to its neurons. FLOPs are those of one forward on the
    whole of ``example_inputs``. ``joins``, ``streams``, ``linear`` and ``outputs`` as in `demp.trace`.

    Raises:
        TraceError: the model does not run on the example inputs.
    """
    model = user_module(model)
    graph = trace(model, example_inputs, joins=joins, streams=streams, linear=linear, outputs=outputs)
    names = {name for name, _ in model.named_parameters()}
    total = sum(p.numel() for p in model.parameters())
    removable = torch.zeros(graph.classes, dtype=torch.bool, device="cpu")
    for layer in graph.layers:
        removable[layer.classes[layer.removable]] = True
    return Inspection(
        type(model).__name__,
        total,
        graph.dense.flops(),
        graph.dense.neurons,
        sum(int(layer.removable.sum()) for layer in graph.layers),
        total - graph.at(removable).parameters(names),
        rows_of(graph, names),
        graph.notes,
        tuple(refusal for refusal in graph.refused if refusal.name not in graph.index),
    )


def rows_of(graph: NeuronGraph, names: set[str]) -> tuple[Row, ...]:
    """A row per layer; what belongs to neurons of several layers is counted in the first. ``names``: parameters."""
    letters = {name: letter(i) for i, group in enumerate(g for g in groups(graph) if len(g) > 1) for name in group}
    why: dict[str, list[str]] = {}
    for refusal in graph.refused:
        why.setdefault(refusal.name, []).append(f"{refusal.neurons} refused: {refusal.reason}")
    sizes, first = owned_by(graph, names), first_rows(graph)
    saved = saved_flops(graph, first)
    rows = []
    for number, layer in enumerate(graph.layers):
        own = layer.classes[layer.removable]
        row = Row(
            layer.name,
            layer.activation,
            layer.width,
            len(own),
            letters.get(layer.name, ""),
            int(sizes[own[first[own] == number]].sum()),
            round(float(saved[number])),
            "; ".join(why.get(layer.name, [])),
        )
        rows.append(row)
    return tuple(rows)


def first_rows(graph: NeuronGraph) -> Tensor:
    """Per class: the first layer whose removable neurons it is of; -1 for those that stay."""
    first = torch.full((graph.classes,), -1, device="cpu")
    for number in reversed(range(len(graph.layers))):
        layer = graph.layers[number]
        first[layer.classes[layer.removable]] = number
    return first


def saved_flops(graph: NeuronGraph, owner: Tensor) -> Tensor:
    """Per layer: the FLOPs of a forward that go with all classes that are its own, and with them alone."""
    many = len(graph.layers)
    saved = torch.zeros(many, dtype=torch.float64, device="cpu")
    for operation in graph.contractions:
        left = torch.ones(many, dtype=torch.float64, device="cpu")
        for classes in (operation.outputs, operation.inputs):
            if classes is not None and len(classes):
                mine = owner[classes]
                left *= 1 - torch.bincount(mine[mine >= 0], minlength=many) / len(classes)
        saved += operation.flops * (1 - left)
    return saved


def groups(graph: NeuronGraph) -> list[list[str]]:
    """Names of layers that share neurons, one list per group, in forward order."""
    order = {layer.name: i for i, layer in enumerate(graph.layers)}
    return [sorted(group, key=order.__getitem__) for group in coupled_groups(graph)]


def owned_by(graph: NeuronGraph, names: set[str]) -> Tensor:
    """Parameters that each class owns on the dense model (a weight between two neurons counts for both)."""
    sizes = torch.zeros(graph.classes, dtype=torch.long, device="cpu")
    for slot in graph.slots:
        if slot.tensor in names:
            each = numel(graph.shapes[slot.tensor]) // len(slot.classes)
            sizes.index_add_(0, slot.classes, torch.full((len(slot.classes),), each, device="cpu"))
    sizes[0] = 0
    return sizes


def letter(index: int) -> str:
    """Letters A to Z, then A1 and so on."""
    return chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")
