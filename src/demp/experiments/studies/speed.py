"""The claim that training gets faster at no cost in accuracy."""

import statistics
from collections.abc import Sequence

from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import DENSE_LINE, TIE, Point, of, times


def faster(found: Sequence[Point], paper: str) -> Claim:
    """With the largest network loss that keeps the dense accuracy, DemP trains faster than dense training.

    Times are of runs on the same machine at different moments; runs of several machines do not count.
    """
    sentence = (
        "At the largest weight sparsity within a point of dense accuracy, DemP trains faster than dense training."
    )
    texts, best = [], 0.0
    records = [run for point in found for run in point.runs]
    for panel in dict.fromkeys(point.panel for point in found):
        level = of(found, panel, DENSE_LINE)
        keeping = [p for p in of(found, panel, "DemP") if level and p.accuracy >= level[0].accuracy - TIE]
        timed = [(point.weights, ratios) for point in keeping if (ratios := times(point.runs, records))]
        if timed:
            weights, ratios = max(timed)
            speed = 1 / statistics.fmean(ratios)
            best = max(best, speed)
            texts.append(f"{panel} {speed:.2f} times at {100 * weights:.0f} %")
    return Claim(sentence=sentence, paper=paper, ours="; ".join(texts), holds=best > 1 if texts else None)
