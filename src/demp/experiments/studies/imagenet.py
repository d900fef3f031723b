"""What Tables 1 and 2 share: ResNet-50 on ImageNet, methods near 80 and 90 % weight sparsity, and their claims."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from demp.experiments.studies import grids
from demp.experiments.studies.base import Claim
from demp.experiments.studies.frontier import Point, of, points
from demp.experiments.studies.quoted import against, closest, dense_of, point_text, speed, standing_for
from demp.experiments.studies.training import base
from demp.experiments.sweep.job import Job
from demp.files.results import Results
from demp.train.choices import OptimizerName

TARGETS = {"smoke": (0.5,), "cpu": (0.5, 0.37, 0.65), "paper": (0.4, 0.5, 0.6, 0.7, 0.25)}
"""Neuron sparsities near which structured methods remove 80 and 90 % of the weights."""
BASELINES = {
    "smoke": ("SNAP",),
    "cpu": ("EarlyCroP-S", "SNAP", "EarlySNAP", "CroPit-S"),
    "paper": ("EarlyCroP-S", "EarlySNAP", "SNAP", "CroPit-S", *grids.GATE_FLOW),
}
FAIR = "SNAP, no scale starts at 0"
"""The paper's network starts the last scale of every branch at 0, where SNAP and CroPit-S see nothing (gap 23)."""
BEFORE = ("SNAP", "CroPit-S")
"""Methods that prune before training."""
EARLY = ("EarlyCroP-S", "EarlySNAP")
"""Methods that prune early in training, and keep their accuracy."""


def structured(scale: str, optimizer: OptimizerName, panel: str, ours: str, seed: int) -> list[Job]:
    """Dense, DemP over strengths, the structured methods over targets."""
    config = base("resnet50", scale, optimizer)
    lines = [grids.demp_line(config, grids.strengths(scale, "resnet50", optimizer), panel=panel, line=ours, seed=seed)]
    lines += [grids.targeted(config, name, TARGETS[scale], scale, panel=panel, seed=seed) for name in BASELINES[scale]]
    if scale != "smoke":
        fair = config.merged({"model": {"options": {"zero_init_last_scale": False}}})
        settings = [{"target_neuron_sparsity": target} for target in TARGETS[scale][:2]]
        lines.append(grids.along(fair, "snap", settings, panel=panel, line=FAIR, seed=seed))
    return [grids.dense(config, panel, seed), *grids.in_turns(lines)]


@dataclass(frozen=True, kw_only=True)
class Cheaper:
    """A cost that the paper's row has lower for DemP than for some of the methods that prune early."""

    cost: str
    """``time``, ``train_flops`` or ``flops``, as in a row of the table."""
    near: float
    """The weight sparsity of the row."""
    paper: str
    than: tuple[str, ...] = EARLY


def claims(
    records: Results, panel: str, ours: str, margins: dict[float, str], collapse: str, cheaper: Sequence[Cheaper]
) -> list[Claim]:
    """More accurate near 80 and 90 % than every structured method, and cheaper; what prunes before training falls."""
    found = of(points(records), panel)
    result = []
    for near, paper in margins.items():
        pair = against(found, ours, grids.baselines(found), near, lambda point: point.accuracy)
        result.append(
            Claim(
                sentence=f"Near {100 * near:.0f} % weight sparsity DemP is more accurate than every other structured "
                f"method.",
                paper=paper,
                ours=f"{point_text(pair[0])}, {', '.join(map(point_text, pair[1]))}" if pair else "",
                holds=pair[0].accuracy > pair[1][0].accuracy if pair else None,
            )
        )
    return [*result, fallen(found, collapse), *(costs_less(found, records, ours, one) for one in cheaper)]


def fallen(found: Sequence[Point], paper: str) -> Claim:
    """Return the claim that SNAP and CroPit-S lose half the dense accuracy."""
    dense = dense_of(found)
    points_before = [point for name in BEFORE if (point := closest(found, name, 0.8))]
    compared = dense is not None and bool(points_before)
    return Claim(
        sentence="SNAP and CroPit-S, which prune before training, reach less than half of the dense accuracy near 80 "
        "%.",
        paper=paper,
        ours=", ".join(map(point_text, [*([dense] if dense else []), *points_before])) if compared else "",
        holds=all(point.accuracy < dense.accuracy / 2 for point in points_before) if dense and points_before else None,
    )


SENTENCES = {
    "time": "DemP trains in less time than {}",
    "train_flops": "DemP trains with fewer FLOPs than {}",
    "flops": "DemP's network takes fewer FLOPs than {}, counted as the paper does",
}


def costs_less(found: Sequence[Point], records: Results, ours: str, claimed: Cheaper) -> Claim:
    """A cost of DemP beside that of others, as ratios to dense training; no answer unless each can be compared."""
    points = {name: standing_for(found, name, claimed.near) for name in (ours, *claimed.than)}
    costs = {name: point and cost_of(point, records, claimed.cost) for name, point in points.items()}
    ratios = {name: cost for name, cost in costs.items() if cost is not None}
    what = SENTENCES[claimed.cost].format(" and ".join(claimed.than))
    return Claim(
        sentence=f"Near {100 * claimed.near:.0f} % weight sparsity {what}.",
        paper=claimed.paper,
        ours=", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()) if len(ratios) == len(points) else "",
        holds=all(ratios[ours] < ratios[name] for name in claimed.than) if len(ratios) == len(points) else None,
    )


def cost_of(point: Point, records: Results, cost: str) -> float | None:
    """Over that of dense training, mean over seeds; None for a time without a dense run on the same machine."""
    if cost == "time":
        return speed(point, records)
    if cost == "train_flops":
        return statistics.fmean(run["train_flops"] / run["train_flops_dense"] for run in point.runs)
    return statistics.fmean(run["paper_flops"] / run["paper_flops_dense"] for run in point.runs)
