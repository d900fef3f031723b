"""Is it faster? Measured times beside the dense network's, as bars."""

from collections.abc import Sequence
from typing import Any

from demp.experiments.report.groups import Dense, RunGroup
from demp.experiments.report.runs import ReportedRun
from demp.experiments.report.scales import AxisScale
from demp.experiments.report.svg import Figure, Panel, figure, headed, text
from demp.experiments.report.tags import Markup, num, tag, together
from demp.experiments.report.words import plural, short, three, times
from demp.files.reading import number
from demp.files.run import DENSE

ROW, TOP, BOTTOM, RIGHT = 24.0, 26.0, 14.0, 70.0
MOST = 24
"""Bars in one figure."""
Bar = tuple[str, float, str, str]
"""(name, value, words behind it, class)"""


def speed(groups: list[RunGroup], dense: Dense, shown: Sequence[ReportedRun]) -> Figure | None:
    """Training steps of all settings, and latency and throughput of what was exported; None where nothing was timed."""
    steps = step_bars(groups, dense)
    panels = [Panel(lambda width: bars(steps, "training step over dense, measured", width, level=1.0))] if steps else []
    timed = [(run, timing) for run in shown for timing in run.timings if whole(timing)][: MOST // 2]
    if timed:
        latency, rate = timing_bars(timed, len(shown) > 1)
        panels.append(Panel(lambda width: bars(latency, "latency of one call, onnxruntime", width), half=True))
        panels.append(Panel(lambda width: bars(rate, "throughput, images per second", width), half=True))
    if not panels:
        return None
    note = (
        "A step is measured beside the dense network's in turns where the sweep did so, else late in both runs on the "
    )
    note += "same machine. Outlined: the dense network." if timed else "same machine."
    return Figure("speed", "Is it faster?", answer(steps, timed), tuple(panels), note=note)


def step_bars(groups: list[RunGroup], dense: Dense) -> list[Bar]:
    """Return bars of training step times relative to dense, the fastest first."""
    found = []
    for group in groups:
        ratio = group.mean(dense.step_ratio) if group.method != DENSE else None
        if ratio is not None:
            found.append((group.name, ratio, times(ratio), "kept"))
    return sorted(found, key=lambda bar: bar[1])[:MOST]


def whole(timing: dict[str, Any]) -> bool:
    """Return whether the timing has every needed number, each above zero."""
    names = ("batch", "latency_ms", "dense_latency_ms", "latency_ratio", "throughput_ratio")
    return all((number(timing, name) or 0) > 0 for name in names)


def timing_bars(timed: list[tuple[ReportedRun, dict[str, Any]]], several: bool) -> tuple[list[Bar], list[Bar]]:
    """Latency and throughput, each pruned and dense."""
    latency, rate = [], []
    for run, timing in timed:
        batch = int(timing["batch"])
        for kind, name in (("kept", "latency_ms"), ("removed", "dense_latency_ms")):
            pruned = run.name if several else "pruned"
            words = f"batch {batch}, {'dense' if kind == 'removed' else pruned}"
            latency.append((words, timing[name], f"{three(timing[name])}\u202fms", kind))
            per_second = 1000 * batch / timing[name]
            rate.append((words, per_second, short(per_second), kind))
    return latency, rate


def bars(shown: list[Bar], title: str, width: float, level: float | None = None) -> Markup:
    """One bar per row, its value behind it; ``level`` is marked by a line."""
    left = min(max(len(name) for name, *_ in shown) * 7 + 10, 0.46 * width)
    most = max([value for _, value, _, _ in shown] + ([level] if level else []))
    x = AxisScale(0, most, left, width - RIGHT)
    top = TOP + (16 if level else 0)
    parts, values = [text(0, 12, title, kind="l")], []
    for at, (name, value, words, kind) in enumerate(shown):
        y = top + at * ROW
        parts.append(text(left - 8, y + 15, headed(name, int(left / 7)), anchor="end", title=name))
        box = {"x": left, "y": y + 3, "width": max(1.0, x(value) - left), "height": ROW - 6}
        parts.append(tag("rect", **box, class_=kind, data_t=f"{name}\n{words}"))
        values.append(text(x(value) + 6, y + 15, words, kind="t strong"))
    height = top + len(shown) * ROW + BOTTOM
    if level:
        at = x(level)
        parts.append(tag("path", d=f"M{num(at)} {num(top - 4)}V{num(height - BOTTOM)}", class_="level"))
        parts.append(text(at, top - 8, "dense", kind="t soft", anchor="middle"))
    parts += values
    return figure(width, height, together(parts), title)


def answer(steps: list[Bar], timed: list[tuple[ReportedRun, dict[str, Any]]]) -> str:
    """The answer to the section's question in one or two sentences."""
    sentences = []
    if steps:
        faster = sum(value < 1 for _, value, _, _ in steps)
        sentences.append(
            f"A training step of {steps[0][0]} takes {steps[0][2]} of dense's; {faster} of "
            f"{plural(len(steps), 'setting')} {'is' if faster == 1 else 'are'} faster than dense."
        )
    if timed:
        run, best = max(timed, key=lambda one: one[1]["throughput_ratio"])
        sentences.append(
            f"Exported, {run.name} answers {best['throughput_ratio']:.2f}× as many images per second as dense at "
            f"batch {best['batch']:g}."
        )
    return " ".join(sentences)
