"""Survival: neurons that remain, by setting; and of one run, whether the dead stay dead."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from demp.experiments.report.figures.looks import Looks, whole_percent
from demp.experiments.report.groups import RunGroup
from demp.experiments.report.runs import ReportedRun, before
from demp.experiments.report.scales import AxisScale, evenly, scale, without_overlap
from demp.experiments.report.svg import (
    HALF,
    NARROW,
    SERIES,
    WIDE,
    Figure,
    Frame,
    Panel,
    clipped,
    figure,
    headed,
    polyline,
    stairs,
    text,
)
from demp.experiments.report.tags import Markup, together
from demp.experiments.report.thin import CurvePoint
from demp.experiments.report.words import digits, percent, short
from demp.files.run import DENSE

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300.0, 52.0, 14.0, 30.0, 46.0
GRID = 80
"""Places in time at which seeds are averaged."""
LETTER, ROOM = 7.4, 0.42
"""Pixels of a letter of a name; how much of a figure's width names may take."""
MOST = 60
"""Settings that are shown."""
SHARES = (
    ("dead/share", "dead, of all neurons", "s3"),
    ("dead/overlap", "overlap with all that were ever dead", "s0"),
    ("dead/still", "still dead, of all that were ever dead", "s2"),
)
"""What a monitor says at each look; neurons that were removed count as dead. Overlap: the dead now that were dead at an
earlier look, over the smaller of the two sets (App. C)."""
REVIVED = "dead/revived"
"""How many neurons that were dead at the look before are alive now."""


def alive_share(run: ReportedRun) -> list[CurvePoint]:
    """Neurons left over the dense network's, over time."""
    dense, points = run.value("neurons_dense"), run.series.get("prune/neurons_alive", [])
    if run.cuts:
        end = max(run.step, run.cuts[-1].step)
        points = [*(CurvePoint(cut.step, cut.neurons) for cut in run.cuts), CurvePoint(end, run.cuts[-1].neurons)]
    elif points and 0 in listed(run.outcome.get("cut_steps")):
        points = [CurvePoint(0, points[0].value), *points]
    return [CurvePoint(step, value / dense) for step, value in points] if dense else []


def listed(value: Any) -> list[Any]:
    """A list, or an empty one."""
    return value if isinstance(value, list) else []


def averaged(curves: Sequence[list[CurvePoint]], last: float) -> list[tuple[float, float]]:
    """The mean of stairs on a grid; each begins at one."""
    places = [last * at / GRID for at in range(GRID + 1)]
    return [(at, statistics.fmean(1.0 if (v := before(c, at)) is None else v for c in curves)) for at in places]


def survival(groups: list[RunGroup], looks: Looks) -> Figure | None:
    """Neurons that remain over time, a line for every setting; None where that is not known."""
    known = [
        (g, curves) for g in groups if g.method != DENSE and (curves := [c for r in g.runs if (c := alive_share(r))])
    ]
    if not known:
        return None
    shown = known[:MOST]
    last = max(curve[-1].step for _, curves in shown for curve in curves)
    means = [(group, averaged(curves, last)) for group, curves in shown]
    lowest = min(value for _, mean in means for _, value in mean)
    parts = evenly(means, SERIES)
    panels = tuple(Panel(partial(remaining, part, lowest, last, looks), half=len(parts) > 1) for part in parts)

    fewest, mean = min(means, key=lambda one: one[1][-1][1])
    kept = mean[-1][1]
    half = next((at for at, value in mean if 1 - value >= (1 - kept) / 2), last)
    when = f"after {percent(half / last, 0)} of the run" if half and last else "before training"
    more = f" The first {MOST} of {len(known)} settings are shown." if len(known) > MOST else ""
    answer = f"{fewest.name} keeps fewest, {percent(kept, 0)}; half of what it removes has left {when}.{more}"
    widths = (NARROW, HALF if len(parts) > 1 else WIDE)
    named = all(short_names(part, width) for part in parts for width in widths)
    legend = () if named else looks.legend([group.method for group, _ in means])
    note = "Means over seeds; dense is at 100 %."
    return Figure("survival", "When do neurons go?", answer, panels, legend, note)


Mean = tuple[RunGroup, list[tuple[float, float]]]


def short_names(means: Sequence[Mean], width: float) -> list[str]:
    """What stands beside the lines of a figure: beginnings or ends of names; nothing where they would be the same."""
    most = int((ROOM * width - 14) / LETTER)
    for cut in (headed, clipped):
        found = [cut(group.name, most) for group, _ in means]
        if len(set(found)) == len(found):
            return found
    return []


def remaining(means: Sequence[Mean], lowest: float, last: float, looks: Looks, width: float) -> Markup:
    """A line for every setting, its name at its end."""
    names = short_names(means, width)
    right = 14 + LETTER * max(map(len, names)) if names else RIGHT
    x = AxisScale(0, last or 1, LEFT, width - right)
    frame = Frame(width, HEIGHT, x, scale([lowest, 1.0], HEIGHT - BOTTOM, TOP, pad=0.03))
    parts = [frame.axes(short, whole_percent, "step", "neurons that remain")]
    ends = without_overlap([frame.y(mean[-1][1]) + 4 for _, mean in means], 14, TOP, HEIGHT - BOTTOM)
    for (group, _), name, y in zip(means, names, ends, strict=False):
        parts.append(text(x.end + 6, y, name, kind=f"t {looks.kind(group.method)}", title=group.name))
    for group, mean in means:
        places = [(frame.x(at), frame.y(value)) for at, value in mean]
        sentence = f"{group.name}\n{percent(mean[-1][1])} of the neurons remain"
        parts.append(polyline(stairs(places), f"line {looks.kind(group.method)}", data_m=group.method, data_t=sentence))
    return figure(width, HEIGHT, together(parts), "Neurons that remain against the step")


def revival(run: ReportedRun) -> Figure | None:
    """Do dead neurons stay dead? None where the run had no monitor."""
    known = [(words, kind, points) for name, words, kind in SHARES if len(points := run.series.get(name, [])) > 1]
    back = run.series.get(REVIVED, [])
    if len(back) < 2 and not run.series.get("dead/overlap"):
        return None
    panels, legend = [], tuple((f"{kind} 4", words) for words, kind, _ in known)
    if known:
        panels.append(Panel(lambda width: lines(known, width, "share of neurons", whole_percent), half=True))
    if len(back) > 1:
        counted = [("alive again", "s1", back)]
        panels.append(
            Panel(lambda width: lines(counted, width, "neurons dead at the look before, alive now"), half=True)
        )
    return Figure("revival", "Do the dead stay dead?", revived(run), tuple(panels), legend)


Known = Sequence[tuple[str, str, list[CurvePoint]]]


def lines(known: Known, width: float, y_label: str, y_words: Callable[[float], str] = short) -> Markup:
    """Series of a monitor, from zero."""
    last = max(points[-1].step for _, _, points in known)
    values = [point.value for _, _, points in known for point in points]
    x = AxisScale(0, last or 1, LEFT, width - RIGHT)
    frame = Frame(width, HEIGHT, x, scale([0.0, *values], HEIGHT - BOTTOM, TOP, zero=True))
    parts = [frame.axes(short, y_words, "step", y_label)]
    for words, kind, points in known:
        sentence = f"{words}\n{y_words(points[-1].value)} at step {digits(points[-1].step, 0)}"
        places = [(frame.x(step), frame.y(value)) for step, value in points]
        parts.append(polyline(places, f"line {kind}", data_t=sentence))
    return figure(width, HEIGHT, together(parts), f"{y_label} against the step")


def revived(run: ReportedRun) -> str:
    """Return sentences on how many dead neurons came back to life."""
    sentences, back = [], run.series.get(REVIVED, [])
    still, overlap = run.series.get("dead/still", []), run.series.get("dead/overlap", [])
    if still:
        sentences.append(f"{percent(still[-1].value, 0)} of the neurons that were ever dead are dead in the end.")
    elif overlap:
        sentences.append(
            f"The dead in the end overlap by {percent(overlap[-1].value, 0)} with all that were dead before."
        )
    if back and max(point.value for point in back) == 0:
        sentences.append("No dead neuron came back to life between two looks.")
    elif back:
        worst = max(back, key=lambda point: point.value)
        sentences.append(
            f"{digits(statistics.fmean(point.value for point in back))} neurons came back to life between two looks "
            f"on average, at most {digits(worst.value, 0)} (by step {digits(worst.step, 0)})."
        )
    return " ".join(sentences)
