"""Gates: how the loss, or the flow of its gradient, answers to a factor ``c`` on every neuron, at ``c = 1``.

The gradient-based methods (SNAP, CroP and their descendants) score a neuron by such a derivative. A gate is not built
into the network: a factor on a neuron's output is a factor on the weights that read it, and one before its norm is a
factor on the weights that make it. So the derivatives are those of one forward with multiplied weights.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from demp.errors import UsageError
from demp.files.checks import check_choices
from demp.graph import GraphState, Slot
from demp.graph.forward import as_inputs, evaluating, first_names, module_stack
from demp.graph.inputs import copied
from demp.graph.joins import SumWatch
from demp.graph.lookup import Seats
from demp.importance.gate_slots import along, gate_slots, layer_weights, output_slots
from demp.parallel import ALONE, Context

Loss = Callable[[Any, Any], Tensor]
"""``loss_fn(output of the model, targets)``: the mean loss of a batch."""

GatePosition = Literal["activation", "norm", "producer"]
"""What `Scoring.at` may be."""
ScoringKind = Literal["sensitivity", "weight-flow", "gate-flow"]
"""What `Scoring.kind` may be."""
FORWARDS: dict[ScoringKind, int] = {"sensitivity": 3, "weight-flow": 12, "gate-flow": 9}
"""Cost of a batch in forwards: a backward is two, a backward through a forward and backward six."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which derivative, with the gate where, over how many batches."""

    kind: ScoringKind = "sensitivity"
    """``sensitivity``: dL/dc, summed over batches. ``weight-flow``: d/dc of <g, dL/dW>, g the gradient of the weights
    summed over batches and held constant. ``gate-flow``: (d2L/dc2 dL/dc), summed over batches."""
    at: GatePosition = "activation"
    """Where the gate multiplies: the neuron's output (``activation``), the output of its ``norm``, or what its
    ``producer`` gives, before the norm. For ReLU the first two are the same; a neuron without norm has the last two in
    common."""
    batches: int = 10
    batch_statistics: bool = False
    """Batch norms use the batch's statistics, as in training, instead of their running ones."""
    as_published: bool = False
    """Flows as the published codes sum them. ``weight-flow``: W are the weights of linear layers and convolutions, not
    all trainable parameters. ``gate-flow``: the outputs of such layers that are no neurons (the classifier's) have
    gates too, which have no scores."""

    def __post_init__(self) -> None:
        check_choices(self, "scoring")
        if self.batches < 1:
            raise UsageError(f"scoring batches is {self.batches}; give at least 1")


@dataclass(frozen=True)
class Scores:
    """One derivative per class, on how many batches and examples, at the cost of how many forwards of an example."""

    values: Tensor
    batches: int
    examples: int
    forwards: int


def scores(
    model: nn.Module,
    state: GraphState,
    scoring: Scoring,
    batches: Iterable[Any],
    loss_fn: Loss,
    context: Context = ALONE,
) -> Scores:
    """The derivative of each class's gate: signed, float64, 0 where a class is removed or carries no neuron.

    ``batches`` are pairs of inputs and targets. Weights, buffers, gradients, modes and random state stay as they are.
    Among several ranks the mean over them, equal on all. Nothing is drawn at random: dropout is off.

    Raises:
        UsageError: no batch, a batch that is no pair, a loss that no gate moves.
    """
    gated = Gated(model, state, scoring)
    derivative = {"sensitivity": sensitivity, "weight-flow": weight_flow, "gate-flow": gate_flow}[scoring.kind]
    with context.together():
        chosen = first(batches, scoring.batches)
    with gated.ready():
        values = derivative(gated, chosen, loss_fn, context)
    values = context.mean(values)
    if not bool(values.isfinite().all()):
        raise UsageError("a score is not finite: the loss on the scoring batches, or its gradient, is not a number")
    examples = int(context.total([sum(size_of(inputs) for inputs, _ in chosen)])[0])
    counted = int(context.total([len(chosen)])[0])
    return Scores(values, counted, examples, examples * FORWARDS[scoring.kind])


def first(batches: Iterable[Any], count: int) -> list[tuple[Any, Any]]:
    """The first batches, as pairs of inputs and targets.

    Raises:
        UsageError: there is no batch, or one is no pair.
    """
    chosen = []
    for batch in batches:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise UsageError(
                f"a scoring batch is a {type(batch).__name__}; each must be a pair (inputs, targets), as a DataLoader "
                "of labelled examples gives them"
            )
        chosen.append((batch[0], batch[1]))
        if len(chosen) == count:
            break
    if not chosen:
        raise UsageError(
            "there is no batch to score on; pass batches=..., pairs (inputs, targets) of training examples"
        )
    return chosen


def size_of(inputs: Any) -> int:
    """Return the number of examples in a batch, 0 if unknown."""
    args, kwargs = as_inputs(inputs)
    tensors = (t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim())
    return next((len(t) for t in tensors), 0)


class Gated:
    """A model as a function of its gates."""

    def __init__(self, model: nn.Module, state: GraphState, scoring: Scoring) -> None:
        graph = state.graph
        self.model, self.state, self.graph, self.scoring = model, state, graph, scoring
        self.tensors, _ = first_names(model)
        self.slots = gate_slots(graph, scoring.at)
        self.flowing = layer_weights(model, self.tensors) if scoring.as_published else set(self.tensors)
        on_outputs = scoring.as_published and scoring.kind == "gate-flow"
        self.outputs = output_slots(model, graph, self.tensors) if on_outputs else []
        self.count = max([graph.classes, *(int(slot.classes.max()) + 1 for slot in self.outputs)])
        self.sums = {read.seat: read for read in graph.reads if read.seat is not None and scoring.at == "activation"}
        parameters = [p for p in self.tensors.values() if isinstance(p, nn.Parameter)]
        self.device = parameters[0].device if parameters else torch.device("cpu")
        wide = any(p.dtype == torch.float64 for p in parameters)
        self.dtype = torch.float64 if wide else torch.float32

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Evaluation mode (or the batch's statistics), gradients, no autocast, arithmetic with second derivatives."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        cuda = [self.device] if self.device.type == "cuda" else []
        with (
            evaluating(self.model),
            torch.enable_grad(),
            torch.random.fork_rng(devices=cuda),
            torch.autocast(self.device.type, enabled=False),
            sdpa_kernel(SDPBackend.MATH),
        ):
            for norm in norms:
                norm.training = self.scoring.batch_statistics
            yield

    def gates(self) -> Tensor:
        """All gates open: one per class, then one per output that is no neuron where these have some."""
        count = self.count
        return torch.ones(count, dtype=self.dtype, device=self.device, requires_grad=True)

    def of_classes(self, found: Tensor) -> Tensor:
        """The derivatives by the gates of classes."""
        return found[: self.graph.classes].double().cpu()

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters through which the gradient flows, as leaves of their own."""
        named = {name: p for name, p in self.tensors.items() if isinstance(p, nn.Parameter) and p.requires_grad}
        chosen = named.keys() & self.flowing or named.keys()  # a model may hold all its weights as bare parameters
        return {name: p.detach().requires_grad_() for name, p in named.items() if name in chosen}

    def loss(
        self, c: Tensor, batch: tuple[Any, Any], loss_fn: Loss, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Loss of one batch with the gates ``c``, as a function of them and of ``weights``.

        Raises:
            UsageError: ``loss_fn`` returns anything but one number.
        """
        tensors = {name: t.detach() for name, t in self.tensors.items()} | dict(weights or {})
        if self.scoring.batch_statistics:
            tensors |= {
                name: t.clone() for name, t in tensors.items() if not isinstance(self.tensors[name], nn.Parameter)
            }
        c = torch.cat((torch.ones_like(c[:1]), c[1:]))  # class 0 is everything that is no neuron, and has no gate
        for slot in self.slots:
            tensors[slot.tensor] = tensors[slot.tensor] * self.factor(c, slot, tensors[slot.tensor])
        for slot in self.outputs:
            gates = c[slot.classes.to(c.device)]
            tensors[slot.tensor] = tensors[slot.tensor] * along(gates, slot, tensors[slot.tensor])
        args, kwargs = copied(as_inputs(batch[0]))
        with self.gated_sums(c):
            out = functional_call(self.model, tensors, args, kwargs)
        loss = loss_fn(out, batch[1])
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UsageError("loss_fn(output, targets) must return the mean loss of the batch, a tensor of one number")
        return loss

    def factor(self, c: Tensor, slot: Slot, tensor: Tensor) -> Tensor:
        """The gates along one axis of a tensor, in the order in which its neurons lie."""
        return along(c[self.state.present(slot.classes).to(c.device)], slot, tensor)

    @contextmanager
    def gated_sums(self, c: Tensor) -> Iterator[None]:
        """Residual sums read the neurons of their stream through the gates, too."""
        if not self.sums:
            yield
            return
        path: list[str] = []

        def on_sum(seat: tuple[str, int], func: Any, args: tuple[Any, ...]) -> Tensor | None:
            read = self.sums.get(seat)
            if read is None:
                return None
            stream = args[read.operand]
            through = stream * self.factor(c, Slot(read.weight, read.axis, read.classes), stream)
            return func(*args[: read.operand], through, *args[read.operand + 1 :])

        seats = Seats(self.graph.reads, ran := Counter[str]())
        with module_stack(self.model, path, ran), SumWatch(path, on_sum, seats=seats):
            yield


def of_gates(value: Tensor, c: Tensor, *, higher: bool = False) -> Tensor:
    """The derivative of a number with respect to the gates."""
    if not value.requires_grad:
        raise_no_path()
    (found,) = torch.autograd.grad(value, c, create_graph=higher, allow_unused=True)
    if found is None:
        raise_no_path()
    return found


def raise_no_path() -> None:
    """Say that there is no score, since no path leads from a gate to the loss.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        "the loss does not depend on any gate: its gradient is cut off (no_grad, detach, frozen second derivatives) "
        "in the model or in loss_fn; score another way, for example with method 'random' or 'apoz'"
    )


def sensitivity(gated: Gated, batches: list[tuple[Any, Any]], loss_fn: Loss, context: Context) -> Tensor:
    """Return the derivative dL/dc of each class, summed over batches."""
    total = torch.zeros(gated.graph.classes, dtype=torch.float64, device="cpu")
    for batch in batches:
        c = gated.gates()
        total += gated.of_classes(of_gates(gated.loss(c, batch, loss_fn), c))
    return total


def gate_flow(gated: Gated, batches: list[tuple[Any, Any]], loss_fn: Loss, context: Context) -> Tensor:
    """Hessian of the loss in the gates times its gradient in the gates, summed over batches."""
    total = torch.zeros(gated.graph.classes, dtype=torch.float64, device="cpu")
    for batch in batches:
        c = gated.gates()
        slope = of_gates(gated.loss(c, batch, loss_fn), c, higher=True)
        total += gated.of_classes(of_gates((slope * slope.detach()).sum(), c))
    return total


def weight_flow(gated: Gated, batches: list[tuple[Any, Any]], loss_fn: Loss, context: Context) -> Tensor:
    """d/dc of <g, dL/dW>, summed over batches; g is dL/dW summed over all batches (of all ranks), a constant."""
    weights = gated.weights()
    names = list(weights)
    constant: list[Tensor | None] = [None] * len(names)
    for batch in batches:
        loss = gated.loss(torch.ones_like(gated.gates()), batch, loss_fn, weights)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        constant = [b if a is None else a if b is None else a + b for a, b in zip(constant, found, strict=True)]
    known = {name: context.mean(g) for name, g in zip(names, constant, strict=True) if g is not None}
    total = torch.zeros(gated.graph.classes, dtype=torch.float64, device="cpu")
    for batch in batches:
        c = gated.gates()
        loss = gated.loss(c, batch, loss_fn, weights)
        if not loss.requires_grad:
            raise_no_path()
        slopes = torch.autograd.grad(loss, [weights[name] for name in known], create_graph=True)
        flow = torch.stack([(g * s).sum().to(gated.dtype) for g, s in zip(known.values(), slopes, strict=True)]).sum()
        total += gated.of_classes(of_gates(flow, c))
    return total
