"""Fig. 2: stronger regularisation and stronger noise kill more neurons."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim, Study, Table
from demp.experiments.studies.drawing import band, frame, legend, looks, panels
from demp.experiments.studies.frontier import Point, percent, points
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job
from demp.files.results import Results

LEFT, RIGHT = "regularisers", "noise"
STRENGTHS = {
    "smoke": (0.0, 5e-2),
    "cpu": (0.0, 2e-3, 1e-2),
    "paper": (0.0, 5e-4, 1e-3, 2e-3, 4e-3, 6e-3, 8e-3, 1e-2),
}
"""Of the regularisers: the paper's axis, the same for both optimizers at every scale."""
CPU_STEPS = 1000
SLACK = 0.01
"""A share of dead neurons may fall by this much where the paper says that it rises."""


class Fig2(Study):
    """Share of dead neurons at the end against strength, by regulariser and optimizer, and by noise."""

    id: ClassVar[str] = "fig2"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10: dead neurons against strength of regulariser and noise"
    section: ClassVar[str] = "Sec. 2.2"
    remark: ClassVar[str] = (
        "Regularisers: nothing is removed before the end and no noise is added. Noise: the runs of fig6 (SGDM, with "
        "removal), since the paper does not say which optimizer it shows. At scale cpu SGDM has the same strengths as "
        f"Adam in a run of {CPU_STEPS} steps, so that their pull adds up over far fewer steps than in the paper."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Four regularisers and two optimizers over strengths; then the noise grid of Fig. 6."""
        lines = []
        for optimizer, panel in grids.PANELS.items():
            config = base("resnet18", scale, optimizer, cpu_steps=CPU_STEPS)
            still = {"dynamic": False, "noise_on": "off"}
            for name, penalty in grids.REGULARISERS.items():
                values = STRENGTHS[scale] if name == "Lasso(γ)" else STRENGTHS[scale][1:]
                line = f"{name}, {panel}"
                lines.append(
                    grids.demp_line(config, values, panel=LEFT, line=line, seed=seed, options={**still, **penalty})
                )
        return [*grids.noise_grid(scale, seed, panel=RIGHT), *grids.in_turns(lines)]

    def figure(self, records: Results, scale: str) -> Any:
        """Of the regularisers a panel per optimizer, then the noise."""
        found = points(records)
        left = [(f"{LEFT}, {optimizer}", LEFT, optimizer) for optimizer in grids.PANELS.values()]
        figure, axes = panels(3, share_y=True)
        for here, (title, panel, optimizer) in zip(axes, [*left, (RIGHT, RIGHT, "")], strict=True):
            names = dict.fromkeys(p.line for p in found if p.panel == panel and p.line.endswith(optimizer))
            for name, look in looks(list(names)).items():
                line = along(found, panel, name)
                dead = [[100 * run["neuron_sparsity"] for run in point.runs] for _, point in line]
                band(here, [value for value, _ in line], dead, look, name.removesuffix(f", {optimizer}"))
            frame(here, title, "peak strength λ", "dead neurons, %")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """Return a table with one row per setting."""
        rows = [
            (p.panel, p.line, p.setting, str(len(p.runs)), percent(p.neurons, p.std("neuron_sparsity"), 2))
            for p in points(records)
        ]
        return Table(("panel", "line", "setting", "seeds", "dead neurons"), tuple(rows))

    def claims(self, records: Results) -> list[Claim]:
        """More of either kills more; Adam more than SGDM."""
        found = points(records)
        rising, text = rises(found)
        adam, adam_text = adam_kills_more(found)
        noisy, noisy_text = noise_kills_more(found)
        return [
            Claim(
                sentence="The share of dead neurons rises with the strength of every regulariser, with both "
                "optimizers.",
                paper="from about 0 at strength 0, rising in all eight curves",
                ours=text,
                holds=rising,
            ),
            Claim(
                sentence="At the strongest regularisation more neurons die with Adam than with SGDM, whatever the "
                "regulariser.",
                paper="far more in all four pairs",
                ours=adam_text,
                holds=adam,
            ),
            Claim(
                sentence="At equal strength more neurons die with the strongest noise than with none.",
                paper="more noise, more dead neurons, at every strength",
                ours=noisy_text,
                holds=noisy,
            ),
        ]


def along(found: Sequence[Point], panel: str, line: str) -> list[tuple[float, Point]]:
    """A line by strength. The run without any belongs to every regulariser of its optimizer."""
    optimizer = line.rpartition(", ")[2]
    own = [(strength(point), point) for point in found if (point.panel, point.line) == (panel, line)]
    start = [(0.0, p) for p in found if panel == LEFT == p.panel and p.line.endswith(optimizer) and not strength(p)]
    return sorted({value: point for value, point in (*start, *own)}.items(), key=lambda pair: pair[0])


def strength(point: Point) -> float:
    """The peak strength of the penalty (lambda) of a point."""
    return float(point.runs[0]["labels"]["setting"]["peak_strength"])


def rises(found: Sequence[Point]) -> tuple[bool | None, str]:
    """Does every line of the left panel rise?"""
    lines = {name: along(found, LEFT, name) for name in dict.fromkeys(p.line for p in found if p.panel == LEFT)}
    lines = {name: [point.neurons for _, point in line] for name, line in lines.items() if len(line) > 1}
    text = "; ".join(f"{name} {' → '.join(f'{100 * dead:.0f}' for dead in line)} %" for name, line in lines.items())
    up = [all(b >= a - SLACK for a, b in pairwise(line)) and line[-1] > line[0] for line in lines.values()]
    complete = len(up) == len(grids.REGULARISERS) * len(grids.PANELS)
    return (all(up) if complete else False if False in up else None), text


def adam_kills_more(found: Sequence[Point]) -> tuple[bool | None, str]:
    """At the largest strength that a regulariser has with both optimizers."""
    verdicts, texts = [], []
    for name in grids.REGULARISERS:
        adam, sgdm = (dict(along(found, LEFT, f"{name}, {panel}")) for panel in grids.PANELS.values())
        both = [value for value in adam if value in sgdm and value > 0]
        if both:
            one, other = adam[max(both)].neurons, sgdm[max(both)].neurons
            verdicts.append(one > other)
            texts.append(f"{name} {100 * one:.0f} % against {100 * other:.0f} %")
    complete = len(verdicts) == len(grids.REGULARISERS)
    return (all(verdicts) if complete else False if False in verdicts else None), "; ".join(texts)


def noise_kills_more(found: Sequence[Point]) -> tuple[bool | None, str]:
    """The strongest noise against none, at every strength that both have."""
    names = sorted({p.line for p in found if p.panel == RIGHT}, key=grids.noise_of)
    if len(names) < 2 or grids.noise_of(names[0]) > 0:
        return None, ""
    none, most = (dict(along(found, RIGHT, name)) for name in (names[0], names[-1]))
    both = [value for value in none if value in most]
    texts = [f"λ {v:g}: {100 * most[v].neurons:.0f} % against {100 * none[v].neurons:.0f} %" for v in both]
    return (all(most[v].neurons > none[v].neurons for v in both) if both else None), "; ".join(texts)
