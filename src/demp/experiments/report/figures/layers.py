"""What is left of each layer: its width over time as a heat map, and in the end as kept and removed."""

from demp.experiments.report.runs import ReportedRun
from demp.experiments.report.scales import AxisScale
from demp.experiments.report.svg import Figure, Panel, clipped, figure, text
from demp.experiments.report.tags import Markup, num, tag, together
from demp.experiments.report.words import digits, listed, percent, short

TOP, BOTTOM, RIGHT = 26.0, 44.0, 62.0
TALL, LOW = 20.0, 11.0
"""Heights of a row, of few layers and of many."""
MANY = 32
CELL = 0.92
"""How much of its row a cell fills."""


def layers(run: ReportedRun) -> Figure | None:
    """The figure; None where no cut was recorded."""
    last = final_widths(run)
    if not last:
        return None
    panels = (Panel(lambda width: heat(run, width), half=True), Panel(lambda width: bars(run, width), half=True))
    note = (
        "Over time: the stronger the colour, the more of the layer is left. In the end: kept filled, removed outlined."
    )
    return Figure("layers", "What is left of each layer?", answer(run, last), panels, note=note)


def final_widths(run: ReportedRun) -> dict[str, int]:
    """Layer -> width at the end."""
    found = dict(run.widths)
    for cut in run.cuts:
        found |= cut.kept
    return found


def answer(run: ReportedRun, last: dict[str, int]) -> str:
    """Which layers lost most and which nothing."""
    shares = {name: last[name] / dense for name, dense in run.widths.items() if dense}
    if not shares or min(shares.values()) == 1:
        return "Every layer has its full width."
    thin = min(shares, key=lambda name: shares[name])
    whole = [name for name, share in shares.items() if share == 1]
    tail = f"; {listed(whole, 2)} kept all" if whole else ""
    removed = 1 - sum(last.values()) / sum(run.widths.values())
    return (
        f"{percent(removed, 0)} of the neurons are removed; {thin} lost most ({digits(last[thin], 0)} of "
        f"{digits(run.widths[thin], 0)} left){tail}."
    )


def row_height(run: ReportedRun) -> float:
    """Return the height of one layer's row in the figure."""
    return TALL if len(run.widths) <= MANY else LOW


def names(run: ReportedRun, width: float, left: float) -> Markup:
    """The layers, from top to bottom."""
    height = row_height(run)
    most = int(left / 6.1)
    return together(
        text(left - 8, TOP + (at + 0.5) * height + 4, clipped(name, most), kind="m", anchor="end", title=name)
        for at, name in enumerate(run.widths)
    )


def margin(run: ReportedRun, width: float) -> float:
    """Return the width reserved for layer names, at most 32 % of ``width``."""
    longest = max(len(name) for name in run.widths)
    return min(longest * 6.4 + 12, 0.32 * width)


def stretches(run: ReportedRun, layer: str, end: float) -> list[tuple[float, float, int]]:
    """(from step, to step, width), each as long as the width stays."""
    found = [(0.0, run.widths[layer])]
    for cut in run.cuts:
        if layer in cut.kept and cut.kept[layer] != found[-1][1]:
            found.append((cut.step, cut.kept[layer]))
    ends = [step for step, _ in found[1:]] + [end]
    return [(step, until, width) for (step, width), until in zip(found, ends, strict=True) if until > step]


def heat(run: ReportedRun, width: float) -> Markup:
    """Width of every layer over time."""
    left, height = margin(run, width), row_height(run)
    end = max(run.step, run.cuts[-1].step, 1)
    x = AxisScale(0, end, left, width - RIGHT)
    parts, bottom = [text(0, 12, "width of each layer over time", kind="l"), names(run, width, left)], 0.0
    for at, (layer, dense) in enumerate(run.widths.items()):
        y = TOP + at * height
        for step, until, now in stretches(run, layer, end):
            label = f"{layer}\nsteps {digits(step, 0)} to {digits(until, 0)}: {now} of {dense} neurons"
            cell = {"x": x(step), "y": y, "width": max(0.5, x(until) - x(step)), "height": CELL * height}
            shade = 0.07 + 0.93 * now / dense if dense else 0.0
            parts.append(tag("rect", **cell, class_="heat", fill_opacity=f"{shade:.2f}", data_t=label))
        now = stretches(run, layer, end)[-1][2] if end else dense
        parts.append(text(width, y + height / 2 + 4, f"{now}/{dense}", anchor="end"))
        bottom = y + height
    for step in x.ticks(4 if width > 400 else 3):
        parts.append(text(x(step), bottom + 18, short(step), anchor="middle"))
    parts.append(text(width - RIGHT, bottom + 36, "step", kind="l", anchor="end"))
    return figure(width, bottom + BOTTOM, together(parts), f"{run.name}: width of each layer over time")


def bars(run: ReportedRun, width: float) -> Markup:
    """Kept and removed neurons of every layer in the end."""
    left, height, last = margin(run, width), row_height(run), final_widths(run)
    x = AxisScale(0, max(*run.widths.values(), 1), left, width - RIGHT)
    parts, bottom = [text(0, 12, "neurons kept and removed in the end", kind="l"), names(run, width, left)], 0.0
    for at, (layer, dense) in enumerate(run.widths.items()):
        y, now = TOP + at * height, last[layer]
        label = f"{layer}\n{now} kept, {dense - now} removed of {dense}"
        cell = {"y": y, "height": CELL * height}
        kept = tag("rect", x=left, width=x(now) - left, class_="kept", **cell)
        outline = tag("rect", x=x(now), width=x(dense) - x(now), class_="removed", **cell) if now < dense else ""
        parts.append(tag("g", kept, outline, data_t=label))
        words = percent(now / dense, 0) if dense else ""
        parts.append(text(x(dense) + 6, y + height / 2 + 4, words))
        bottom = y + height
    for value in x.ticks(3):
        parts.append(text(x(value), bottom + 18, num(value), anchor="middle"))
    parts.append(text(width - RIGHT, bottom + 36, "neurons", kind="l", anchor="end"))
    return figure(width, bottom + BOTTOM, together(parts), f"{run.name}: neurons kept and removed in every layer")
