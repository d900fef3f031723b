"""Neurons that fade hand over: what those that stay can say of them moves into the weights that read them.

Where a layer computes ``sum_j W[:, j] a_j`` and neuron j goes, ``W[:, k] += c[k, j] W[:, j]`` for every k that stays,
with the c of `demp.importance.redundancy.stand_in`, loses of it only what the others cannot say. Its mean, less what
these bring of it, moves into the bias: of a convolution as much of it as reaches the output on average, since borders
meet no neuron. It is done in the measure in which the neuron fades: where its factor falls from f to f', the share
f - f' is added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from demp.graph import GraphState, NeuronGraph, Norm, Read
from demp.graph.parts import HEADS, LINEAR, STREAM
from demp.parallel import is_sharded, local_piece


@dataclass(frozen=True)
class Handover:
    """Of the neurons that one weight reads: who goes, who stays, and what these say of those."""

    weight: str
    axis: int
    """Of the weight, along which neurons lie."""
    going: Tensor
    staying: Tensor
    """(positions of one neuron, neurons): places on the axis, dense numbering."""
    coefficients: Tensor
    """(staying, going), float32."""
    means: Tensor
    """(going,), float32: what is left of their means."""
    bias: str = ""
    """The parameter that takes the means; none where a norm takes them out, or where there is none."""
    met: Tensor | None = None
    """Share of the output's positions that each entry of the kernel reaches: see `taps.reach`."""
    late: Tensor | None = None
    """(going,): those that something frozen scales, which do not fade: they hand over at once, when they go."""

    def to_plain(self) -> dict[str, object]:
        """For a checkpoint."""
        return dict(vars(self))


@dataclass(frozen=True)
class Taker:
    """A weight that can take a handover."""

    read: Read
    module: nn.Module
    """Which has the weight."""
    bias: str
    """Beside it; empty: none."""
    centred: bool
    """Is it enough to say how neurons vary about their means? A bias takes these, or a batch norm out."""


def takers(model: nn.Module, state: GraphState) -> list[Taker]:
    """The weights that can take it: in a chain, trained, whole along this axis, and used for nothing else.

    In a chain: the weight reads neurons and makes neurons, and no residual sum passes either by. Not where a weight is
    read twice, makes what it reads (tied embeddings), meets only part of it (grouped convolutions), or is sharded along
    this axis.
    """
    parameters = dict(model.named_parameters())
    asked = [read for read in state.graph.reads if read.seat is None]
    chained = in_chains(state.graph)
    made = {pair for number in chained for pair in state.graph.layers[number].producers}
    normed = {norm.producer for norm in state.graph.norms if takes_means_out(model, norm)}
    found = []
    for read in asked:
        parameter = parameters.get(read.weight)
        if parameter is None or not parameter.requires_grad or not parameter.is_floating_point():
            continue
        once = sum(other.weight == read.weight for other in asked) == 1
        whole = not is_sharded(parameter) or read.weight_axis != 0
        width = len(state.kept(read.classes))
        between = set(read.layers) <= chained and (read.weight, 1 - read.weight_axis) in made
        own = (read.weight, read.weight_axis) not in made
        if between and own and once and whole and fits(parameter, read.weight_axis, width):
            bias = bias_of(parameters, state.graph, read)
            module = model.get_submodule(read.weight.rpartition(".")[0])
            found.append(Taker(read, module, bias, bool(bias) or read.weight in normed))
    return found


def in_chains(graph: NeuronGraph) -> set[int]:
    """Layers of activations that no residual sum passes by."""
    joined = torch.zeros(graph.classes, dtype=torch.bool, device="cpu")
    for join in graph.joins:
        joined[join.stream], joined[join.branch] = True, True
    joined[0] = False
    return {
        number
        for number, layer in enumerate(graph.layers)
        if not layer.coupled
        and layer.activation not in (HEADS, STREAM, LINEAR)
        and not bool(joined[layer.classes].any())
    }


def takes_means_out(model: nn.Module, norm: Norm) -> bool:
    """Does the norm subtract the mean of what it sees? A batch norm in training mode does."""
    path, _, leaf = (norm.scale or "").rpartition(".")
    module = model.get_submodule(path) if leaf else None
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)


def bias_of(parameters: Mapping[str, Tensor], graph: NeuronGraph, read: Read) -> str:
    """The bias beside a weight, if it is trained, has one entry per output and is added nowhere else; else nothing."""
    name = read.weight.removesuffix("weight") + "bias"
    weight, bias = parameters[read.weight], parameters.get(name)
    if not read.weight.endswith("weight") or bias is None or not bias.requires_grad:
        return ""
    once = [norm.producer for norm in graph.norms if norm.shift == name] == [read.weight]
    return name if once and bias.shape == weight.shape[1 - read.weight_axis :][:1] else ""


def fits(parameter: Tensor, axis: int, width: int) -> bool:
    """Does the weight meet every neuron with entries of its own?"""
    return axis < parameter.dim() and parameter.shape[axis] == width


def still_trained(handovers: Sequence[Handover], parameters: Mapping[str, Tensor]) -> list[Handover]:
    """Those to weights that are not frozen by now, and of frozen biases without these."""
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    return [one if one.bias in trained else replace(one, bias="") for one in handovers if one.weight in trained]


@torch.no_grad()
def hand_over(
    parameters: Mapping[str, Tensor],
    state: GraphState,
    handovers: Sequence[Handover],
    share: float,
    copies: Sequence[Mapping[str, Tensor]] = (),
    *,
    last: bool = False,
) -> None:
    """Carry out a share of every handover, in the model and in the copies that are cut with it; ``last``: they go."""
    reads = {read.weight: read for read in state.graph.reads if read.seat is None}
    for one in handovers:
        own, classes = parameters[one.weight], reads[one.weight].classes
        kept = state.kept(classes)
        if not fits(own, one.axis, len(kept)):
            continue
        now = torch.full_like(classes, -1)
        now[kept] = torch.arange(len(kept), device="cpu")  # kept places need not lie in the dense order
        going, staying = now[one.going], now[one.staying]
        left, right = (going >= 0).all(0), (staying >= 0).all(0)
        late = torch.zeros(len(left), dtype=torch.bool, device="cpu") if one.late is None else one.late
        shares = torch.where(late, float(last), share)[left]
        coefficients = shares * one.coefficients[right][:, left]
        places = going[:, left], staying[:, right]
        theirs = [copied for copied in copies if copied.get(one.weight, own) is not own]
        for tensors in (parameters, *theirs):
            weight, bias = tensors[one.weight], tensors.get(one.bias)
            from_going = taken(local_piece(weight.detach()), one.axis, places[0])
            if bias is not None:
                means = (shares * one.means[left]).to(from_going)
                met = from_going if one.met is None else from_going * one.met.to(from_going)[..., None, None]
                moved = (met.flatten(1, -3).sum(1) if met.dim() > 3 else met) @ means
                place = local_piece(bias.detach())
                place += moved.sum(-1).to(place.dtype)
            add(local_piece(weight.detach()), one.axis, places[1], from_going @ coefficients.to(from_going).T)


def taken(weight: Tensor, axis: int, places: Tensor) -> Tensor:
    """Entries of the weight at some places of an axis, as (..., positions, neurons), in float32 or wider."""
    found = weight.index_select(axis, places.flatten().to(weight.device)).movedim(axis, -1)
    return found.to(torch.promote_types(weight.dtype, torch.float32)).unflatten(-1, places.shape)


def add(weight: Tensor, axis: int, places: Tensor, change: Tensor) -> None:
    """Add to the entries at some places of an axis what comes as ``taken`` gives it."""
    weight.index_add_(axis, places.flatten().to(weight.device), change.flatten(-2).movedim(-1, axis).to(weight.dtype))
