"""Where the constants of removed neurons go: into biases and running means, or into a neuron that stays and carries."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from demp.activity.tally import Key, key_of
from demp.graph import NeuronGraph
from demp.surgery.groups import UseGroup, carried, carried_positions, every, grouped, homes_of, steadiness
from demp.surgery.plan import Plan
from demp.surgery.readers import Readers, Use

STEADY = 0.1
"""A neuron that carries the constants of others deviates by at most this share of its own mean."""
ROUNDING = 1e-6
"""Two means of one neuron that differ by less, relative to their size, are the same constant."""
NO_PLACE = "what {weight} makes has no bias or norm that could take their constant, and no steady neuron to carry it"
NO_SHIFT = "nothing in the branch of {weight} could take their constant"
NOT_SEEN = "{weight} did not run on the examples, so that their constant is not known there"
SUMMED = "{weight} has no bias or norm that could take their constant"
UNEQUAL = "{weight} is used several times and reads another constant each time"


@dataclass(frozen=True)
class Shift:
    """What a tensor gains, at present widths."""

    tensor: str
    values: Tensor
    exact: bool
    """False: the constant of a padded reader, right on average but not at the borders."""


@dataclass(frozen=True)
class Seen:
    """What a consumer sees without the removed neurons: position i becomes ``factor * position source + offset``."""

    source: Tensor
    factor: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Moves:
    """A cut, what it adds to tensors, and what readers see afterwards: see `Seen`."""

    plan: Plan
    shifts: tuple[Shift, ...]
    seen: dict[Key, Seen]
    saturated: Tensor
    """Per class: goes, and is a constant other than zero."""
    into: Counter[str]
    """Readers by how their constant was moved: ``bias``, ``norm``, ``carrier``, ``border``."""


def plan_moves(plan: Plan, readers: Readers, *, required: bool, carry_borders: bool, masked: set[str]) -> Moves:
    """Find a place for every constant of a cut.

    With ``required`` a neuron whose constant finds none stays; without, it goes as if it were zero, and no neuron
    carries it. ``carry_borders``: readers whose bias would be wrong at borders have their constants carried instead.
    ``masked`` weights may not change.
    """
    graph, going = plan.before.graph, plan.removes
    constant = going & nonzero(graph, readers)
    groups = [fitting(group, constant) for group in grouped(readers, masked)]
    ways = {id(group): way(group, constant, required, carry_borders) for group in groups}
    held: dict[int, str] = {}
    if required:
        held |= unknown(graph, readers, constant) | unequal(groups, constant) | summed_up(readers, constant)
        for group in (g for g in groups if ways[id(g)] == "none"):
            mine = group.classes[constant[group.classes]].tolist()
            held |= {c: NO_PLACE.format(weight=group.weight) for c in mine}
    while True:
        stay = dict(held)
        carriers = chosen_carriers([g for g in groups if ways[id(g)] == "carrier"], constant, stay)
        shorter = plan.without(stay) if stay else plan
        going = shorter.removes
        homeless = unplaced_sums(readers, going & constant, shorter) if required else {}
        if not homeless:
            break
        held |= homeless
    left = going & constant
    shifts, seen, into = [], {}, Counter()
    for group in groups:
        if bool(going[group.classes].any()):
            how = ways[id(group)] if bool(left[group.classes].any()) else "none"
            how = "border" if how == "carrier" and id(group) not in carriers else how
            more, what = moved(group, readers, going, left, how, carriers)
            shifts += more
            seen |= {key_of(use.read): what for use in group.uses}
            into[how] += how != "none"
    for use in sums(readers):
        seen[key_of(use.read)], more = moved_sum(readers, use, shorter, left)
        shifts += more
        into["bias"] += len(more)
    return Moves(shorter, tuple(shifts), seen, left, +into)


def nonzero(graph: NeuronGraph, readers: Readers) -> Tensor:
    """Per class: is it anything but zero for some consumer?"""
    found = graph.none_removed()
    for use in every(readers):
        nonzero = (use.moments.mean != 0) | (use.moments.squares != 0)
        found[use.read.classes[use.here][nonzero]] = True
    return found


def sums(readers: Readers) -> Iterator[Use]:
    """The uses that are residual sums."""
    return (use for use in every(readers) if use.read.seat is not None)


def fitting(group: UseGroup, constant: Tensor) -> UseGroup:
    """The same group without homes of another number of channels than its readers make."""
    sizes = {home.channels for home in group.homes if home.tensor is not None}
    if not sizes or not bool(constant[group.classes].any()) or sizes == {len(group.made_of(constant)[0])}:
        return group
    return replace(group, homes=())


def way(group: UseGroup, constant: Tensor, required: bool, carry_borders: bool) -> str:
    """How the constants of a group move: ``bias``, ``norm``, ``carrier``, ``border`` (about right) or ``none``."""
    if not bool(constant[group.classes].any()):
        return "none"
    able = required and group.carriable
    if not group.homes:
        return "carrier" if able else "none"
    if group.made_of(constant)[1]:
        return "bias" if any(home.sign > 0 for home in group.homes) else "norm"
    return "carrier" if able and carry_borders else "border"


def unknown(graph: NeuronGraph, readers: Readers, constant: Tensor) -> dict[int, str]:
    """Classes with a consumer that did not run."""
    return {
        c: NOT_SEEN.format(weight=read.weight)
        for read in graph.reads
        if key_of(read) not in readers.uses
        for c in read.classes[constant[read.classes]].tolist()
    }


def summed_up(readers: Readers, constant: Tensor) -> dict[int, str]:
    """Classes that are not zero where a sum over neurons or the like, or a fused recurrent layer, reads them."""
    found = {}
    for use in (use for use in every(readers) if use.call is None and use.read.seat is None):
        mine = use.read.classes[use.here]
        found |= {c: SUMMED.format(weight=use.read.weight) for c in mine[constant[mine]].tolist()}
    return found


def unequal(groups: list[UseGroup], constant: Tensor) -> dict[int, str]:
    """Classes that the uses of one weight read as different constants."""
    found = {}
    for group in (g for g in groups if len(g.uses) > 1):
        pooled = group.moments.mean
        for use in group.uses:
            slack = torch.maximum(use.moments.deviation, ROUNDING * pooled.abs())
            off = ((use.moments.mean - pooled).abs() > slack) & constant[group.classes]
            found |= {c: UNEQUAL.format(weight=group.weight) for c in group.classes[off].tolist()}
    return found


def chosen_carriers(groups: list[UseGroup], constant: Tensor, stay: dict[int, str]) -> dict[int, int]:
    """Group -> the class that carries for it; carriers, and those that none can carry, are added to ``stay``.

    One that carries elsewhere already is taken again; else the steadiest of those that were to go. A group without one
    whose constant has another place is left to that.
    """
    found: dict[int, int] = {}
    carrying: list[int] = []
    for group in groups:
        mine = [c for c in group.classes[constant[group.classes]].unique().tolist() if c not in stay]
        unsteady = {c: steadiness(group, c) for c in (*carrying, *mine)}
        able = [c for c, value in unsteady.items() if value <= STEADY]
        again = [c for c in able if c in carrying]
        nowhere = NO_PLACE.format(weight=group.weight)
        if not able or (len(mine) == 1 and not again):
            stay |= {} if group.homes else dict.fromkeys(mine, nowhere)
            continue
        carrier = min(again or able, key=lambda c: (unsteady[c], c))
        found[id(group)] = carrier
        if not again:
            carrying.append(carrier)
            stay[carrier] = f"it carries the constants of others for {group.weight}"
        size = int((group.classes == carrier).sum())
        stay |= {c: nowhere for c in mine if c != carrier and int((group.classes == c).sum()) != size}
    return found


def moved(
    group: UseGroup, readers: Readers, going: Tensor, left: Tensor, how: str, carriers: dict[int, int]
) -> tuple[list[Shift], Seen]:
    """What tensors gain for one group, and what its uses see."""
    size = len(group.classes)
    seen = Seen(
        torch.arange(size, device="cpu"),
        (~going[group.classes]).double(),
        torch.zeros(size, dtype=torch.float64, device="cpu"),
    )
    if how in ("bias", "norm", "border"):
        values, _ = group.made_of(left)
        exact = how != "border"
        shifts = [Shift(h.tensor, h.sign * values, exact) for h in group.homes if h.tensor is not None]
        return shifts, Seen(seen.source, seen.factor, group.constants(left)) if exact else seen
    if how != "carrier":
        return [], seen
    goes, carries = carried_positions(group, left, carriers[id(group)])
    share = group.moments.mean[goes] / group.moments.mean[carries]
    seen.source[goes], seen.factor[goes] = carries, share
    return [Shift(group.weight, carried(group.uses[0], readers, goes, carries, share), True)], seen


def unplaced_sums(readers: Readers, constant: Tensor, plan: Plan) -> dict[int, str]:
    """Classes of streams whose constant a residual sum would lose."""
    found = {}
    for use in sums(readers):
        meets = meeting(use, plan)
        home = homes_of([use], readers)
        width = len(readers.tensors[home[0].tensor]) if home and home[0].tensor else -1
        if width == len(meets):
            continue
        here = meets[meets >= 0]
        stream = use.read.classes[use.here][here]
        found |= {c: NO_SHIFT.format(weight=use.read.weight) for c in stream[constant[stream]].tolist()}
    return found


def meeting(use: Use, plan: Plan) -> Tensor:
    """Per channel of the branch: the position of the stream that it meets; -1 if none, or if the channel goes."""
    state = plan.before
    join = next(j for j in state.graph.joins if (j.module, j.number) == use.read.seat)
    planned = state.residual_adds[join.module][join.number]
    meets = torch.full((planned.widths[0],), -1, device="cpu")
    target, source = planned.indices()
    meets[target] = source
    classes = state.present(join.branch)
    meets[plan.after.removed[classes]] = -1
    return meets


def moved_sum(readers: Readers, use: Use, plan: Plan, left: Tensor) -> tuple[Seen, list[Shift]]:
    """What a residual sum sees, and what the shift or bias of its branch gains."""
    classes = use.read.classes[use.here]
    constants = torch.where(left[classes], use.moments.mean, 0.0)
    seen = Seen(torch.arange(len(classes), device="cpu"), (~plan.removes[classes]).double(), constants)
    meets = meeting(use, plan)
    values = (
        torch.where(meets >= 0, constants[meets.clamp(min=0)], 0.0)
        if len(constants)
        else torch.zeros(len(meets), device="cpu")
    )
    home = homes_of([use], readers)
    if not home or home[0].tensor is None or len(readers.tensors[home[0].tensor]) != len(values):
        offset = torch.zeros_like(constants)
        return Seen(seen.source, seen.factor, offset), []
    return seen, [Shift(home[0].tensor, values, True)] if bool(values.any()) else []
