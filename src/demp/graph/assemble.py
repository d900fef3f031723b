"""From what one forward showed to the neuron graph: classes, layers, refusals."""

from collections import Counter, defaultdict

import torch
from torch import Tensor

from demp.graph.elements import Axis, unique_in_order
from demp.graph.neurons import NeuronGraph
from demp.graph.parts import Contraction, Join, Layer, Read, Refusal, SizedCall, Slot
from demp.graph.recording import CallSeen, Recording, Site
from demp.graph.unoffered import output_axes, unoffered


def assemble(
    recording: Recording, shapes: dict[str, tuple[int, ...]], aliases: dict[str, str], vehicle: str
) -> NeuronGraph:
    """Resolve unions and freezes, number the classes, and describe each activation site as a layer."""
    forget_unread_steps(recording)
    freeze_bare_reads(recording)
    root, reasons = recording.elements.resolve()
    number, classes = number_classes(recording, root)
    frozen = torch.zeros(classes, dtype=torch.bool)
    frozen[0] = True
    frozen[number[list(reasons)]] = True
    class_of = number[root]

    def of(axis: Axis | None) -> Tensor | None:
        return None if axis is None else class_of[axis.ids]

    site_classes = [unique_in_order(class_of[site.ids]) for site in recording.sites]
    reads = tuple(
        Read(
            r.weight,
            r.use,
            r.operand,
            r.axis,
            r.weight_axis,
            class_of[r.neurons.ids],
            positions_by_site(recording, r.neurons),
            call=r.call,
        )
        for r in recording.reads
    )
    sums = tuple(
        Join(
            j.module,
            j.number,
            j.operand,
            j.axis,
            class_of[j.stream.ids],
            class_of[j.branch.ids],
            j.source,
            j.target,
            recording.sums.get(j.module, 0),
        )
        for j in recording.joins
    )
    reads += tuple(
        Read(
            f"{j.module}:sum",
            j.number,
            j.operand,
            j.axis,
            -1,
            class_of[j.stream.ids],
            positions_by_site(recording, j.stream),
            (j.module, j.number),
        )
        for j in recording.joins
    )
    reads = tuple(read for read in reads if read.layers)
    slots = tuple(
        Slot(name, dim, class_of[axis.ids])
        for name, axes in recording.axes.items()
        for dim, axis in enumerate(axes)
        if bool((~frozen[class_of[axis.ids]]).any())
    )
    layers, refused = describe(recording, site_classes, frozen, reasons, root, reads, class_of)
    refused += unoffered(recording, root, number, reasons)
    graph = NeuronGraph(
        layers=layers,
        refused=refused,
        slots=slots,
        reads=reads,
        norms=tuple(recording.norms),
        joins=sums,
        streams=(),
        calls=tuple(sized(recording, seen, root, class_of) for seen in recording.calls),
        contractions=tuple(
            Contraction(
                c.weight.rpartition(".")[0] if c.weight else c.module,
                c.weight,
                c.flops,
                of(c.reads),
                of(c.makes),
                next(iter(output_axes(recording, c)), None),
            )
            for c in recording.contractions
        ),
        shapes=shapes,
        aliases=aliases,
        attributes={key: class_of[ids] for key, ids in recording.attributes.items()},
        heads={path: tuple((class_of[ids], size) for ids, size in seen) for path, seen in recording.heads.items()},
        classes=classes,
        vehicle=vehicle,
        index={layer.name: layer for layer in layers},
    )
    return graph


def sized(recording: Recording, seen: CallSeen, root: Tensor, class_of: Tensor) -> SizedCall:
    """A call that a cut may have to carry out. Parts that are the same neurons in the same order shrink alike."""
    rows = root[seen.source.ids].view(seen.binds, -1) if seen.binds > 1 else None
    balanced = rows is not None and bool((rows == rows[0]).all())
    return SizedCall(
        seen.seat,
        seen.axis,
        seen.ndim,
        class_of[seen.source.ids],
        seen.parts,
        None if seen.out is None else class_of[seen.out.ids],
        seen.out_axis,
        seen.inner,
        seen.needed and not balanced,
        recording.counts.get(seen.seat[:2], 0),
        seen.before,
        seen.grid,
    )


def forget_unread_steps(recording: Recording) -> None:
    """Of an activation in several steps, the layer is the step that a contraction or a join reads."""
    read_by = [read.neurons.sites for read in recording.reads] + [join.stream.sites for join in recording.joins]
    marks = torch.cat(read_by or [torch.zeros(0)]).unique().tolist()
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


def number_classes(recording: Recording, root: Tensor) -> tuple[Tensor, int]:
    """Number the roots that some activation carries 1, 2, …; all others are class 0, which never goes."""
    number = torch.zeros(len(root), dtype=torch.long)
    carried = [root[site.ids] for site in recording.sites]
    roots = torch.cat(carried).unique() if carried else torch.zeros(0, dtype=torch.long)
    number[roots] = torch.arange(1, len(roots) + 1)
    return number, len(roots) + 1


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
    recording: Recording,
    site_classes: list[Tensor],
    frozen: Tensor,
    reasons: dict[int, str],
    root: Tensor,
    reads: tuple[Read, ...],
    class_of: Tensor,
) -> tuple[tuple[Layer, ...], tuple[Refusal, ...]]:
    """Layers in forward order, and why some neurons are refused."""
    names = names_of(recording.sites)
    carriers: dict[int, set[int]] = defaultdict(set)
    for site, classes in enumerate(site_classes):
        for c in classes.tolist():
            carriers[c].add(site)
    makers = producers_by_class(recording, class_of)
    why: dict[int, str] = {}
    for c, reason in zip(class_of[list(reasons)].tolist(), reasons.values(), strict=True):
        why.setdefault(c, reason)
    layers, refused = [], []
    for site, classes in enumerate(site_classes):
        members = classes.tolist()
        removable = ~frozen[classes]
        read_by = tuple((read.weight, read.use) for read in reads if site in read.layers)
        partners = set().union(*(carriers[c] for c in members)) - {site} if members else set()
        if not read_by and not any(is_read(reads, p) for p in partners):
            removable = torch.zeros_like(removable)
            for c in members:
                why.setdefault(c, "no contraction reads this layer, so its death cannot be judged")
        producers = sorted({pair for c in members for pair in makers.get(c, ())})
        layers.append(
            Layer(
                names[site],
                recording.sites[site].kind,
                classes,
                removable,
                tuple(producers),
                read_by,
                tuple(names[p] for p in sorted(partners)),
            )
        )
        for reason, n in Counter(
            why.get(c, "fixed") for c, ok in zip(members, removable.tolist(), strict=True) if not ok
        ).items():
            refused.append(Refusal(names[site], reason, n))
    return tuple(layers), tuple(refused)


def is_read(reads: tuple[Read, ...], site: int) -> bool:
    """Does any contraction read this site's output?"""
    return any(site in read.layers for read in reads)


def producers_by_class(recording: Recording, class_of: Tensor) -> dict[int, list[tuple[str, int]]]:
    """Class -> (weight, axis) of the contractions that write it, from the output axes seen in the forward."""
    makers: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for contraction in recording.contractions:
        for dim in output_axes(recording, contraction):
            assert contraction.weight is not None
            for c in set(class_of[recording.axes[contraction.weight][dim].ids].tolist()) - {0}:
                makers[c].append((contraction.weight, dim))
    return makers
