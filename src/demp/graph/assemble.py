"""From what one forward showed to the neuron graph: classes, layers, refusals."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from demp.graph.calls import CallSeat
from demp.graph.class_sets import ClassSets
from demp.graph.elements import Axis, unique_in_order
from demp.graph.linear_neurons import mark_linear
from demp.graph.neurons import NeuronGraph
from demp.graph.numbering import Numbering, numbered, reasons_by_class
from demp.graph.parts import LINEAR, STREAM, Contraction, Join, Layer, Read, Refusal, SizedCall, Slot
from demp.graph.recording import CallSeen, Recording, Site
from demp.graph.stream_channels import added_tensors, layer_norms, mark_streams
from demp.graph.sums import SUM
from demp.graph.unoffered import output_axes, unoffered


def assemble(
    recording: Recording, shapes: dict[str, tuple[int, ...]], aliases: dict[str, str], vehicle: str
) -> NeuronGraph:
    """Resolve unions and freezes, number the classes, and describe each activation site as a layer."""
    mark_streams(recording)
    forget_unread_steps(recording)
    if recording.offer.linear:
        mark_linear(recording)
    freeze_bare_reads(recording)
    numbering = numbered(recording)
    found = (*contraction_reads(recording, numbering), *join_reads(recording, numbering))
    reads = tuple(read for read in found if read.layers)
    layers, refused = describe(recording, numbering, reads)
    refused += unoffered(recording, numbering.root, numbering.number, numbering.reasons)
    return NeuronGraph(
        layers=layers,
        refused=refused,
        slots=slots_of(recording, numbering),
        reads=reads,
        norms=tuple(recording.norms),
        joins=joins_of(recording, numbering),
        streams=(),
        calls=tuple(sized(recording, seen, numbering) for seen in recording.calls),
        contractions=contractions_of(recording, numbering),
        shapes=shapes,
        aliases=aliases,
        attributes={key: numbering.class_of[ids] for key, ids in recording.attributes.items()},
        heads=heads_of(recording, numbering),
        sharing=frozenset(recording.sharing),
        classes=numbering.classes,
        vehicle=vehicle,
        index={layer.name: layer for layer in layers},
    )


def contraction_reads(recording: Recording, numbering: Numbering) -> Iterator[Read]:
    """Where contractions, and sums over neurons, read."""
    for seen in recording.reads:
        yield Read(
            seen.weight,
            seen.use,
            seen.operand,
            seen.axis,
            seen.weight_axis,
            numbering.of(seen.neurons),
            positions_by_site(recording, seen.neurons),
            call=seen.call,
            places=places_of(recording, seen.call),
        )


def places_of(recording: Recording, seat: CallSeat | None) -> tuple[str, ...]:
    """Where a sum or call stands in all forwards that were followed."""
    return () if seat is None else tuple(sorted(recording.places.get(seat, ())))


def join_reads(recording: Recording, numbering: Numbering) -> Iterator[Read]:
    """Where residual sums read their streams."""
    for seen in recording.joins:
        yield Read(
            f"{seen.module}:sum",
            seen.number,
            seen.operand,
            seen.axis,
            -1,
            numbering.of(seen.stream),
            positions_by_site(recording, seen.stream),
            (seen.module, seen.number),
            places=places_of(recording, (seen.module, SUM, seen.number)),
        )


def joins_of(recording: Recording, numbering: Numbering) -> tuple[Join, ...]:
    """The residual sums of two widths."""
    return tuple(
        Join(
            seen.module,
            seen.number,
            seen.operand,
            seen.axis,
            numbering.of(seen.stream),
            numbering.of(seen.branch),
            seen.source,
            seen.target,
            recording.sums.get(seen.module, 0),
            tuple(sorted(recording.training_sums.get(seen.module, ()))),
            places_of(recording, (seen.module, SUM, seen.number)),
        )
        for seen in recording.joins
    )


def slots_of(recording: Recording, numbering: Numbering) -> tuple[Slot, ...]:
    """The axes of parameters and buffers on which something may go."""
    axes = ((name, dim, numbering.of(axis)) for name, one in recording.axes.items() for dim, axis in enumerate(one))
    return tuple(Slot(name, dim, classes) for name, dim, classes in axes if bool((~numbering.frozen[classes]).any()))


def heads_of(recording: Recording, numbering: Numbering) -> dict[str, tuple[tuple[Tensor, int], ...]]:
    """Module path -> the heads of its attention: their classes, one entry each, and the channels of one."""
    return {
        path: tuple((numbering.class_of[ids], size) for ids, size in seen) for path, seen in recording.heads.items()
    }


def contractions_of(recording: Recording, numbering: Numbering) -> tuple[Contraction, ...]:
    """What the forward multiplies, and which classes each of them reads and makes."""
    return tuple(
        Contraction(
            seen.weight.rpartition(".")[0] if seen.weight else seen.module,
            seen.weight,
            seen.flops,
            numbering.of_some(seen.reads),
            numbering.of_some(seen.makes),
            next(iter(output_axes(recording, seen)), None),
        )
        for seen in recording.contractions
    )


def sized(recording: Recording, seen: CallSeen, numbering: Numbering) -> SizedCall:
    """A call that a cut may have to carry out. Parts that are the same neurons in the same order shrink alike."""
    rows = numbering.root[seen.source.ids].view(seen.binds, -1) if seen.binds > 1 else None
    balanced = rows is not None and bool((rows == rows[0]).all())
    return SizedCall(
        seen.seat,
        seen.axis,
        seen.ndim,
        numbering.of(seen.source),
        seen.parts,
        numbering.of_some(seen.out),
        seen.out_axis,
        seen.inner,
        seen.needed and not balanced,
        recording.counts.get(seen.seat[:2], 0),
        seen.before,
        seen.grid,
        tuple(sorted(recording.training_counts.get(seen.seat[:2], ()))),
        seen.block,
        tuple(sorted(recording.places.get(seen.seat, ()))),
    )


def forget_unread_steps(recording: Recording) -> None:
    """Of an activation in several steps, the layer is the step that a contraction or a residual sum reads."""
    read_by = [read.neurons.sites for read in recording.reads] + [join.stream.sites for join in recording.joins]
    marks = torch.cat(read_by or [torch.zeros(0, device="cpu")]).unique().tolist()
    seen = set().union(*(recording.elements.sites_of(int(mark)) for mark in marks))
    kept = [number for number, site in enumerate(recording.sites) if site.certain or number in seen]
    recording.elements.renumber_sites({old: new for new, old in enumerate(kept)})
    recording.sites[:] = [recording.sites[number] for number in kept]


def freeze_bare_reads(recording: Recording) -> None:
    """A neuron that some contraction reads before any activation can be zero there only by accident."""
    for read in recording.reads:
        bare = read.neurons.ids[read.neurons.sites == 0]
        by = (
            read.weight
            if read.call is None
            else f"a {read.call[1]} over neurons at {read.call[0] or 'the model itself'}"
        )
        recording.elements.freeze(bare, f"read before any activation (by {by})")


def positions_by_site(recording: Recording, neurons: Axis) -> dict[int, Tensor]:
    """Site -> positions of a read axis that carry its output."""
    found: dict[int, list[Tensor]] = defaultdict(list)
    for mark in neurons.sites.unique().tolist():
        positions = (neurons.sites == mark).nonzero().flatten()
        for site in recording.elements.sites_of(mark):
            found[site].append(positions)
    return {site: torch.cat(parts).sort().values for site, parts in found.items()}


def names_of(sites: list[Site]) -> list[str]:
    """A name per site; a repeated one gets #2, #3 and so on."""
    count: Counter[str] = Counter()
    names = []
    for site in sites:
        count[site.name] += 1
        names.append(site.name if count[site.name] == 1 else f"{site.name}#{count[site.name]}")
    return names


def describe(
    recording: Recording, numbering: Numbering, reads: tuple[Read, ...]
) -> tuple[tuple[Layer, ...], tuple[Refusal, ...]]:
    """Layers in forward order, and why some neurons are refused."""
    names = names_of(recording.sites)
    site_classes = [unique_in_order(numbering.class_of[site.ids]) for site in recording.sites]
    carriers = ClassSets(numbering.classes)
    for site, classes in enumerate(site_classes):
        carriers.add(classes, site)
    makers = producers_by_class(recording, numbering)
    why = reasons_by_class(numbering)
    layers, refused = [], []
    for site, classes in enumerate(site_classes):
        members = classes.tolist()
        removable = ~numbering.frozen[classes]
        read_by = tuple((read.weight, read.use) for read in reads if site in read.layers)
        partners = carriers.of(classes) - {site}
        if not read_by and not any(is_read(reads, p) for p in partners):
            removable = torch.zeros_like(removable)
            for c in members:
                why.setdefault(c, "no contraction reads this layer, so whether its neurons are dead cannot be seen")
        made_by = makers.of(classes[classes > 0])
        if recording.sites[site].kind in (STREAM, LINEAR):
            made_by |= set(added_tensors(recording, numbering, classes))
        made_by |= set(layer_norms(recording, numbering, classes))
        producers = tuple(sorted(made_by))
        coupled = tuple(names[p] for p in sorted(partners))
        layers.append(Layer(names[site], recording.sites[site].kind, classes, removable, producers, read_by, coupled))
        stuck = [c for c, ok in zip(members, removable.tolist(), strict=True) if not ok]
        counts = Counter(why.get(c, "fixed") for c in stuck)
        refused += [Refusal(names[site], reason, n) for reason, n in counts.items()]
    return tuple(layers), tuple(refused)


def is_read(reads: tuple[Read, ...], site: int) -> bool:
    """Does any contraction read this site's output?"""
    return any(site in read.layers for read in reads)


def producers_by_class(recording: Recording, numbering: Numbering) -> ClassSets:
    """For every class, weight and axis of the contractions that write it, from the output axes of the forward."""
    makers = ClassSets(numbering.classes)
    for contraction in recording.contractions:
        for dim in output_axes(recording, contraction):
            assert contraction.weight is not None
            makers.add(numbering.of(recording.axes[contraction.weight][dim]), (contraction.weight, dim))
    return makers
