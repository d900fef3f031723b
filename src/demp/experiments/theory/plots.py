"""Figures of the two walks: lines are closed forms, points are simulations."""

from collections.abc import Sequence
from typing import Any

from demp.experiments.theory.absorbing import Survivors, absorbing_walks, survival
from demp.experiments.theory.geometric import Noise, TwoPoint, geometric_walks, growth_rate, rate_bound, stable_above
from demp.train.extras import need

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, distinguished with any colour vision."""
FINE = 200
"""Points of a line."""


def draw_survival(axes: Any, walks: Sequence[Survivors]) -> None:
    """Share of walks alive over time, with the curve of Proposition B.1, into matplotlib's ``axes``."""
    for colour, found in zip(_colours(len(walks)), walks, strict=True):
        end = found.times[-1]
        times = [end * (k + 1) / FINE for k in range(FINE)]
        label = f"w0 {found.start:g}, rate {found.rate:g}"
        line = [survival(found.start, found.rate, time, step=found.step) for time in times]
        axes.plot(times, line, color=colour, linewidth=1.2, label=label)
        axes.plot(found.times, found.shares, color=colour, marker="o", markersize=3, linestyle="none")
    axes.set(xlabel="time", ylabel="share alive", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize="small")


def draw_growth(axes: Any, noise: Noise, curvature: float, points: Sequence[tuple[float, float]] = ()) -> None:
    """Growth rate over learning rate, the bound of Eq. 15, and simulated ``points`` (rate, mean log growth a step)."""
    limit = 1 / noise.reach
    rates = [limit * (k + 0.5) / FINE for k in range(FINE)]
    axes.plot(rates, [growth_rate(noise, rate, curvature) for rate in rates], color=COLOURS[0], label="mu")
    bound = [rate_bound(noise, rate, curvature) for rate in rates]
    axes.plot(rates, bound, color=COLOURS[1], linestyle="--", linewidth=1, label="bound, Eq. 15")
    if points:
        axes.plot(*zip(*points, strict=True), color=COLOURS[0], marker="o", markersize=3, linestyle="none")
    stable = stable_above(noise, curvature)
    if stable is not None:
        axes.axvspan(stable, limit, color=COLOURS[2], alpha=0.15, linewidth=0, label="stable")
    axes.axhline(0, color="#6b7280", linewidth=0.8)
    axes.set(xlabel="learning rate", ylabel="growth of log|w| per step", xlim=(0, limit))
    axes.legend(frameon=False, fontsize="small")


def figure(*, walks: int = 100_000, seed: int = 0) -> Any:
    """Both walks side by side as a matplotlib figure, simulated on the spot (needs the extra ``report``)."""
    figure = need("matplotlib.figure", "report").Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    times = [float(time) for time in range(5, 101, 5)]
    begun = ((0.5, 0.1), (1.0, 0.1), (2.0, 0.1), (1.0, 0.5))
    draw_survival(left, [absorbing_walks(start, rate, times, walks=walks, seed=seed) for start, rate in begun])
    noise, curvature, steps = TwoPoint(1.0), -0.1, 100
    rates = [0.05, 0.15, 0.2, 0.25, 0.35, 0.5, 0.65]
    grown = [
        geometric_walks(noise, rate, curvature, [steps], walks=walks, seed=seed)[0].mean().item() for rate in rates
    ]
    draw_growth(right, noise, curvature, [(rate, log / steps) for rate, log in zip(rates, grown, strict=True)])
    return figure


def _colours(count: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(count)]
