"""Table 3: ViT-B/16 on ImageNet, noise alone."""

from collections.abc import Sequence
from typing import ClassVar

from demp.experiments.studies import transformer
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import DENSE_LINE, Point, of, percent, points
from demp.experiments.studies.quoted import Quoted, Quoting, dense_of, speed
from demp.experiments.studies.transformer import GELU, PANEL, RELU, STRICT
from demp.experiments.sweep.job import Job
from demp.files.results import Results

CLOSE = 0.015
"""Accuracy that DemP with ReLU may lose: the paper's 1.13 points, rounded up."""


class Table3(Quoting):
    """Dense, DemP, DemP with ReLU in place of GELU."""

    id: ClassVar[str] = "table3"
    title: ClassVar[str] = "ViT-B/16 on ImageNet: neurons of the MLPs removed by noise alone"
    section: ClassVar[str] = "Sec. 4.3, App. G.2"
    remark: ClassVar[str] = (
        "The runs of fig17. With GELU a neuron is dead by the authors' test, a sum of outputs that is not positive; "
        "the last row has demp's own, a peak below 1 % of the layer's. At scale cpu the network has an eighth of its "
        "width."
    )
    panel: ClassVar[str] = PANEL
    rows: ClassVar[tuple[Quoted, ...]] = (
        Quoted(DENSE_LINE, None, 78.75, time=1.0),
        Quoted(GELU, None, 71.38, neurons=90.6, weights=59.4, time=0.77),
        Quoted(RELU, None, 77.62, neurons=43.7, weights=29.6, time=0.93),
    )

    def others(self) -> Sequence[str]:
        """Return the line of DemP with another criterion of death."""
        return (STRICT,)

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Four runs, shared with Fig. 17."""
        return transformer.runs(scale, seed)

    def claims(self, records: Results) -> list[Claim]:
        """Most go with GELU at a price, fewer with ReLU almost for nothing, and training is faster."""
        found = of(points(records), self.panel)
        dense, gelu, relu = dense_of(found), one(found, GELU), one(found, RELU)
        both = [point for point in (gelu, relu) if point]
        seconds = {point.line: speed(point, records) for point in both}
        timed = {name: value for name, value in seconds.items() if value is not None}
        return [
            Claim(
                sentence="Noise alone lets DemP remove most neurons of the MLPs with GELU.",
                paper="90.6 % of the neurons, 59.4 % of the weights",
                ours=f"{percent(gelu.neurons)} of the neurons, {percent(gelu.weights)} of the weights" if gelu else "",
                holds=gelu.neurons > 0.5 if gelu else None,
            ),
            Claim(
                sentence="With ReLU it removes fewer, and accuracy stays within 1.5 points of the dense network with "
                "GELU.",
                paper="43.7 % of the neurons, 77.62 % against 78.75 %",
                ours=f"{percent(relu.neurons)} of the neurons, {percent(relu.accuracy)} against "
                f"{percent(dense.accuracy)}"
                if relu and dense
                else "",
                holds=relu.accuracy >= dense.accuracy - CLOSE and relu.neurons < gelu.neurons
                if relu and dense and gelu
                else None,
            ),
            Claim(
                sentence="Training takes less time than dense training, with GELU and with ReLU.",
                paper="0.77 and 0.93",
                ours=", ".join(f"{name} {value:.2f}" for name, value in timed.items()),
                holds=all(value < 1 for value in timed.values()) if len(timed) == 2 else None,
            ),
        ]


def one(found: Sequence[Point], line: str) -> Point | None:
    """The only point of a line."""
    return next((point for point in found if point.line == line), None)
