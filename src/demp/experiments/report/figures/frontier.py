"""What does a smaller network, or a shorter training, cost in accuracy? Settings as marks, seeds as points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from demp.experiments.report.figures.looks import Looks, whole_percent
from demp.experiments.report.groups import Dense, RunGroup, Value, accuracy
from demp.experiments.report.runs import ReportedRun
from demp.experiments.report.scales import floor_of, scale
from demp.experiments.report.svg import Frame, figure, mark, polyline
from demp.experiments.report.tags import Markup, num, tag, together
from demp.experiments.report.words import percent
from demp.files.run import DENSE

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 330.0, 52.0, 14.0, 30.0, 46.0
Path = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Against:
    """What accuracy is drawn against: the value of a run, and how the figure names it."""

    x: Value
    label: str
    column: str
    """Of the page's data, for values on hover."""
    words: Callable[[float], str] = whole_percent
    hollow: Value = lambda run: None
    """Where it is not zero, the mark is hollow."""
    paths: tuple[tuple[str, Path], ...] = field(default=())
    """(method, how it got there), as lines behind the marks."""


def scatter(
    groups: list[RunGroup], dense: Dense, looks: Looks, against: Against, index: dict[int, int], split: str
) -> Callable[[float], Markup]:
    """A function that draws the figure at a given width."""
    points = [(g, [(r, against.x(r), accuracy(r)) for r in g.done]) for g in groups]
    shown = [(g, [(r, x, y) for r, x, y in runs if x is not None and y is not None]) for g, runs in points]
    ends = [y for _, runs in shown for _, _, y in runs]
    alone = sum(len(runs) for _, runs in shown) < 2
    xs = [x for _, runs in shown for _, x, _ in runs] + [x for _, path in against.paths for x, _ in path]
    ys = [*ends, *dense.accuracies] + [y for _, path in against.paths for _, y in path if alone]
    floor = None if alone else floor_of(ends)
    below = [y for y in ends if floor is not None and y < floor]

    def draw(width: float) -> Markup:
        across = scale(
            xs, LEFT, width - RIGHT, zero=bool(against.paths), cap=1.0 if against.words is whole_percent else None
        )
        up = scale([y for y in ys if floor is None or y >= floor], HEIGHT - BOTTOM, TOP, cap=1.0)
        frame = Frame(width, HEIGHT, across, up)
        parts = [
            frame.axes(against.words, whole_percent, against.label, f"{split} accuracy"),
            band(frame, dense, at_end=against.column == "sparsity"),
        ]
        name = f"clip{looks.key}-{against.column}-{num(width)}-{looks.first(group.method for group in groups)}"
        box = tag("rect", x=LEFT, y=TOP - 6, width=width - LEFT, height=HEIGHT - BOTTOM - TOP + 6)
        parts.append(tag("clipPath", box, id=name))
        paths = [
            polyline([(frame.x(x), frame.y(y)) for x, y in path], f"way {looks.kind(method)}", data_m=method)
            for method, path in against.paths
        ]
        parts.append(tag("g", *paths, clip_path=f"url(#{name})"))
        for method in dict.fromkeys(group.method for group, _ in shown):
            parts.append(series(frame, [one for one in shown if one[0].method == method], looks, against, index))
        if below:
            where = f"{len(below)} of {len(ends)} lie below: {percent(min(below))} at the lowest"
            parts.append(tag("text", where, x=LEFT + 6, y=HEIGHT - BOTTOM - 8, class_="t"))
        label = f"{split} accuracy against {against.label}"
        return figure(width, HEIGHT, together(parts), label, class_="points", data_x=against.column)

    return draw


def band(frame: Frame, dense: Dense, *, at_end: bool) -> Markup:
    """Dense training: a line at the mean, a band from its lowest to its highest seed, its name beside it."""
    if dense.accuracy is None:
        return Markup()
    left, right = frame.x.start, frame.x.end
    low, high = (min(frame.y(value), frame.y.start) for value in (min(dense.accuracies), max(dense.accuracies)))
    y = min(frame.y(dense.accuracy), frame.y.start)
    area = tag("rect", x=left, y=high, width=right - left, height=max(0.0, low - high), class_="band")
    line = tag("path", d=f"M{num(left)} {num(y)}H{num(right)}", class_="level")
    words = tag(
        "text",
        "dense",
        x=right - 4 if at_end else left + 4,
        y=y - 6,
        class_="t halo",
        text_anchor="end" if at_end else None,
    )
    return together((area, line, words))


Shown = tuple[RunGroup, list[tuple[ReportedRun, float, float]]]


def series(frame: Frame, shown: list[Shown], looks: Looks, against: Against, index: dict[int, int]) -> Markup:
    """One method: its settings joined from left to right, each seed a small point."""
    method = shown[0][0].method
    means: list[tuple[tuple[float, float], bool, str]] = []
    dots: list[str] = []
    for group, runs in shown:
        if not runs:
            continue
        x, y = fmean(x for _, x, _ in runs), fmean(y for _, _, y in runs)
        hollow = any(against.hollow(run) for run, _, _ in runs)
        place = (frame.x(x), min(frame.y(y), frame.y.start))
        spread = f" ± {percent(std, 2)}" if (std := group.std(accuracy)) is not None else ""
        label = f"{group.name}\n{percent(y, 2)}{spread} accuracy\n{against.words(x)} {against.label}"
        means.append((place, hollow, label))
        if len(runs) > 1:
            dots += [
                tag("circle", cx=frame.x(x), cy=frame.y(y), data_i=index[id(run)])
                for run, x, y in runs
                if frame.y(y) <= frame.y.start and id(run) in index
            ]
    means.sort(key=lambda one: one[0])
    joined = len(means) > 1 and method != DENSE and not against.paths
    line = polyline([place for place, _, _ in means], "join") if joined else ""
    shape = 0 if method == DENSE else looks.shape(method)
    marks = [mark(x, y, shape, "hollow" if hollow else "", data_t=label) for (x, y), hollow, label in means]
    return tag("g", line, *dots, *marks, class_=f"series {looks.kind(method)}", data_m=method)
