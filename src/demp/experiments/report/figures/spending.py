"""Accuracy against what stays (inference FLOPs, weights) and against what was spent (training FLOPs, time)."""

from collections.abc import Sequence
from dataclasses import replace

from demp.experiments.report.figures.frontier import Against, scatter
from demp.experiments.report.figures.looks import Looks
from demp.experiments.report.groups import POINT, Dense, RunGroup, accuracy, plain, share, sparsity, tested
from demp.experiments.report.runs import ReportedRun
from demp.experiments.report.scales import evenly
from demp.experiments.report.svg import SERIES, Figure, Panel
from demp.experiments.report.words import listed, percent, plural, points, three, time_unit, times
from demp.files.run import DENSE

MIXED = "Times are of different machines and do not compare: "


def size(groups: list[RunGroup], dense: Dense, looks: Looks, index: dict[int, int], split: str) -> Figure | None:
    """Accuracy against inference FLOPs and weight sparsity; None with fewer than two settings."""
    if sum(bool(group.values(accuracy)) for group in groups) < 2:
        return None
    flops = Against(share("flops"), "inference FLOPs, of dense", "flops_share")
    weights = Against(sparsity, "weights removed or masked", "sparsity", hollow=plain("masked_share"))
    panels = panels_of((flops, weights), groups, dense, looks, index, split)
    if not panels:
        return None
    seeds = max(len(group.done) for group in groups)
    note = f"Marks: means over {'seeds; points: single seeds' if seeds > 1 else 'one seed'}."
    if any(run.value("masked_share") for group in groups for run in group.done):
        note += " Hollow: some or all of these weights are masked, there and held at zero, not removed."
    methods = [group.method for group in groups if group.values(accuracy)]
    title = "What does a smaller network cost in accuracy?"
    return Figure("size", title, size_answer(groups, dense), panels, looks.legend(methods), note)


def cost(
    groups: list[RunGroup], dense: Dense, looks: Looks, index: dict[int, int], split: str, shown: Sequence[ReportedRun]
):
    """Accuracy against training FLOPs and wall-clock: ends of runs, and how the shown ones got there."""
    runs = [run for group in groups for run in group.done]
    ways = ways_of(runs, shown)
    if not ways and len(runs) < 2:
        return None
    longest = max((run.value("train_seconds") or 0.0 for run in [*runs, *shown]), default=0.0)
    flops, clock = flops_spent(ways), time_spent(ways, longest)
    panels = panels_of((flops, clock), groups, dense, looks, index, split)
    if not panels:
        return None
    note = "Training FLOPs: three forwards per image, and what checks and scorings cost."
    if flops.paths or clock.paths:
        note += f" Thin lines: tests of {listed([run.name for run in ways])} on the way."
    note += machines_note(runs)
    methods = [group.method for group in groups if group.values(accuracy)]
    return Figure("cost", "What does training cost?", cost_answer(groups, dense), panels, looks.legend(methods), note)


def ways_of(runs: Sequence[ReportedRun], shown: Sequence[ReportedRun]) -> list[ReportedRun]:
    """The runs whose tests on the way are drawn: one that is shown, and the dense ones."""
    done = {id(run) for run in runs}
    ways = [run for run in shown if len(run.tests) > 1 and (len(runs) < 2 or id(run) in done)]
    return ways[:1] + [run for run in ways[1:] if run.method == DENSE]


def flops_spent(ways: Sequence[ReportedRun]) -> Against:
    """Training FLOPs, with how these runs got there."""
    paths = ((run.method, by_flops(run)) for run in ways)
    return Against(
        share("train_flops"),
        "training FLOPs spent, of dense's whole training",
        "train_flops_share",
        paths=tuple((method, path) for method, path in paths if len(path) > 1),
    )


def time_spent(ways: Sequence[ReportedRun], longest: float) -> Against:
    """Training time, in the unit that fits the ``longest`` in seconds, with how these runs got there."""
    seconds, unit = time_unit(longest)
    paths = ((run.method, [(t.seconds / seconds, t.accuracy) for t in run.tests if t.seconds]) for run in ways)
    return Against(
        lambda run: None if (taken := run.value("train_seconds")) is None else taken / seconds,
        f"training time, {unit}",
        "train_seconds",
        words=three,
        paths=tuple((method, path) for method, path in paths if len(path) > 1),
    )


def machines_note(runs: Sequence[ReportedRun]) -> str:
    """Where times were measured; a sentence behind others, or nothing."""
    machines = sorted({run.machine for run in runs if run.machine})
    if len(machines) > 1:
        return f" {MIXED}{listed(machines)}."
    return f" Times measured on {machines[0]}." if machines else ""


def panels_of(
    against: Sequence[Against], groups: list[RunGroup], dense: Dense, looks: Looks, index: dict[int, int], split: str
):
    """Panels for each that has something to show, of at most six methods."""
    panels = []
    for methods in evenly(looks.order, SERIES) or [()]:
        own = [group for group in groups if group.method in (*methods, DENSE)]
        for one in against:
            here = replace(one, paths=tuple(path for path in one.paths if path[0] in (*methods, DENSE)))
            if here.paths or any(group.values(one.x) and group.values(accuracy) for group in own):
                panels.append(Panel(scatter(own, dense, looks, here, index, split), half=True))
    return tuple(panels)


def by_flops(run: ReportedRun) -> list[tuple[float, float]]:
    """Its tests against the share of dense training's FLOPs."""
    whole = run.value("train_flops_dense")
    return [(test.flops / whole, test.accuracy) for test in run.tests if test.flops is not None] if whole else []


def size_answer(groups: list[RunGroup], dense: Dense) -> str:
    """Which setting needs the fewest FLOPs within a point of dense, and which is most accurate."""
    scored = [g for g in groups if g.method != DENSE and g.values(accuracy) and g.values(share("flops"))]
    if not scored:
        return "No pruned run has ended yet."
    top = max(scored, key=lambda group: group.mean(accuracy) or 0)
    if dense.accuracy is None:
        return f"{top.name} is the most accurate with {percent(top.mean(accuracy))}; there is no dense run beside it."
    good = [group for group in scored if (group.mean(accuracy) or 0) >= dense.accuracy - POINT]
    if not good:
        loss = points((top.mean(accuracy) or 0) - dense.accuracy, tested(top))
        return (
            f"No setting comes within one point of dense ({percent(dense.accuracy)}); {top.name} is closest ({loss})."
        )
    least = min(good, key=lambda group: group.mean(share("flops")) or 1)
    flops, gain = least.mean(share("flops")), points((least.mean(accuracy) or 0) - dense.accuracy, tested(least))
    return (
        f"Within one point of dense ({percent(dense.accuracy)}), {least.name} needs the fewest FLOPs: "
        f"{percent(flops, 0)} of dense's, {gain}; {len(good)} of {plural(len(scored), 'setting')} "
        f"{'stays' if len(good) == 1 else 'stay'} within it."
    )


def cost_answer(groups: list[RunGroup], dense: Dense) -> str:
    """Which setting spends least, in FLOPs and in time."""
    scored = [g for g in groups if g.method != DENSE and g.values(share("train_flops")) and g.values(accuracy)]
    if not scored:
        return "No pruned run has ended yet."
    least = min(scored, key=lambda group: group.mean(share("train_flops")) or 1)
    spent = least.mean(share("train_flops"))
    sentence = f"{least.name} spends {percent(spent, 0)} of dense training's FLOPs"
    taken = least.mean(lambda run: dense.over(run, "train_seconds"))
    sentence += f" and {times(taken)} its time" if taken is not None else ""
    sentence += f", for {percent(least.mean(accuracy))} accuracy"
    return f"{sentence}; least of {plural(len(scored), 'setting')}." if len(scored) > 1 else f"{sentence}."
