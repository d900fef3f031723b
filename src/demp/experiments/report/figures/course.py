"""What happened when: strength, noise, dead and removed neurons, loss and accuracy on one time axis."""

from collections.abc import Callable
from dataclasses import dataclass

from demp.experiments.report.figures.looks import whole_percent
from demp.experiments.report.runs import ReportedRun
from demp.experiments.report.scales import AxisScale, scale, without_overlap
from demp.experiments.report.svg import Figure, Panel, figure, polyline, stairs, text
from demp.experiments.report.tags import Markup, num, tag, together
from demp.experiments.report.thin import CurvePoint, thinned
from demp.experiments.report.words import digits, plural, short, three

STRIP, GAP, TOP, BOTTOM = 74.0, 34.0, 18.0, 44.0
RIGHT = 12.0
PIXELS = 5
"""Of a stretch of which a line keeps the extremes."""


@dataclass(frozen=True)
class Line:
    """One metric in a strip."""

    metric: str
    words: str
    kind: str
    points: list[CurvePoint]
    steps: bool = False
    """It keeps its value until the next point."""


@dataclass(frozen=True)
class Strip:
    """A part of the figure of a run: lines of one unit, over the same steps as the other parts."""

    title: str
    lines: tuple[Line, ...]
    shown: Callable[[float], str] = three


def strips(run: ReportedRun) -> list[Strip]:
    """What there is to see of a run."""

    def line(metric: str, words: str, kind: str) -> Line:
        return Line(metric, words, kind, run.series.get(metric, []))

    removed = Line("removed", "removed", "s0", removed_share(run), steps=True)
    found = [
        Strip("penalty strength λ", (line("demp/strength", "strength", "s1"),)),
        Strip("noise σ", (line("demp/noise_std", "noise", "s2"),)),
        Strip(
            "neurons removed, and dead",
            (removed, line("dead/share", "dead", "s3")),
            whole_percent,
        ),
        Strip("training loss", (line("train/loss", "loss", "s4"),)),
        Strip(f"{run.outcome.get('split', 'test')} accuracy", (line("eval/top1", "accuracy", "s5"),), whole_percent),
    ]
    kept = [Strip(one.title, tuple(x for x in one.lines if len(x.points) > 1), one.shown) for one in found]
    return [strip for strip in kept if strip.lines and any(p.value for x in strip.lines for p in x.points)]


def removed_share(run: ReportedRun) -> list[CurvePoint]:
    """Neurons removed over the dense network's, after every check."""
    if run.cuts and (dense := run.value("neurons_dense") or run.cuts[0].neurons + run.cuts[0].removed):
        changes = [CurvePoint(cut.step, 1 - cut.neurons / dense) for cut in run.cuts]
        start = [] if changes[0].step == 0 else [CurvePoint(0, 0.0)]
        return [*start, *changes, CurvePoint(max(run.step, changes[-1].step), changes[-1].value)]
    return run.series.get("prune/neuron_sparsity", [])


def course(run: ReportedRun) -> Figure | None:
    """The figure; None where nothing was recorded over time."""
    shown = strips(run)
    if not shown:
        return None
    height = TOP + len(shown) * (STRIP + GAP) - GAP + BOTTOM
    last = max(run.step, run.steps, 1)

    def draw(width: float) -> Markup:
        left = 62.0 if width > 500 else 50.0
        x = AxisScale(0, last, left, width - RIGHT)
        parts, top = [], TOP + 4
        for strip in shown:
            parts.append(strip_at(strip, top, x, width))
            top += STRIP + GAP
        bottom = top - GAP
        ticks = "".join(f"M{num(x(cut.step))} {num(TOP)}V{num(bottom)}" for cut in run.cuts if cut.removed)
        for step in x.ticks(max(3, int(width / 110))):
            parts.append(text(x(step), bottom + 18, short(step), anchor="middle"))
        parts.append(text(width - RIGHT, bottom + 36, "step", kind="l", anchor="end"))
        cuts = tag("path", d=ticks, class_="cutline") if ticks else ""
        cross = tag("path", d=f"M0 {num(TOP)}V{num(bottom)}", class_="cross")
        names = ";".join(f"{line.metric}={line.words}" for strip in shown for line in strip.lines)
        label = f"{run.name}: {', '.join(strip.title for strip in shown)}, against the step"
        place = {"data_left": left, "data_right": width - RIGHT, "data_last": last}
        return figure(
            width,
            height,
            together((cuts, *parts, cross)),
            label,
            class_="course",
            data_run=run.name,
            data_lines=names,
            **place,
        )

    note = "Thin vertical lines: steps at which neurons were removed." if any(cut.removed for cut in run.cuts) else ""
    note += " Removed neurons count as dead." if run.series.get("dead/share") else ""
    return Figure("course", "What happened when?", answer(run), (Panel(draw),), note=note)


def strip_at(strip: Strip, top: float, x: AxisScale, width: float) -> Markup:
    """One strip with its title, two or three heights and its lines."""
    values = [point.value for line in strip.lines for point in line.points]
    zero = min(values) >= 0 and min(values) < 0.5 * max(values)
    y = scale(values, top + STRIP, top, zero=zero, cap=1.0 if strip.shown is whole_percent else None)
    parts = [text(0, top - 11, strip.title, kind="l")]
    for value in y.ticks(2):
        at = y(value)
        parts.append(tag("path", d=f"M{num(x.start)} {num(at)}H{num(x.end)}", class_="grid"))
        parts.append(text(x.start - 6, at + 4, strip.shown(value), anchor="end"))
    ends: list[tuple[float, float]] = []
    for line in strip.lines:
        shown = line.points if line.steps else thinned(line.points, max(20, int(width / PIXELS)))
        places = [(x(point.step), y(point.value)) for point in shown]
        parts.append(polyline(stairs(places) if line.steps else places, f"line {line.kind}"))
        ends.append((places[-1][0], places[-1][1] - 5))
    if len(ends) > 1:
        heights = without_overlap([y for _, y in ends], 13, top + 8, top + STRIP)
        for line, (right, _), height in zip(strip.lines, ends, heights, strict=True):
            parts.append(
                text(min(right, width - RIGHT) - 4, height, line.words, kind=f"t halo {line.kind}", anchor="end")
            )
    return together(parts)


def answer(run: ReportedRun) -> str:
    """When most of the removal happened, in a sentence."""
    dense = run.value("neurons_dense")
    going = [cut for cut in run.cuts if cut.removed > 0]
    if not going or not dense:
        return f"Nothing was removed in {plural(run.step, 'step')}."
    total = sum(cut.removed for cut in going)
    half = next(cut.step for at, cut in enumerate(going) if sum(c.removed for c in going[: at + 1]) >= total / 2)
    first = "before training" if going[0].step == 0 else f"at step {digits(going[0].step, 0)}"
    if len(going) == 1:
        return f"All {digits(total, 0)} neurons were removed at once, {first}."
    return (
        f"{digits(total, 0)} of {digits(dense, 0)} neurons went in {plural(len(going), 'cut')}, the first {first}; "
        f"half of them were removed {f'by step {digits(half, 0)} of {digits(run.steps, 0)}' if half else 'by then'}."
    )
