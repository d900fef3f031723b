"""What Tables 1 and 2 share: ResNet-50 on ImageNet, methods near 80 and 90 % weight sparsity, and their claims."""

from collections.abc import Sequence

from demp.studies import grids
from demp.studies.base import Claim, Records
from demp.studies.frontier import Point, of, points
from demp.studies.quoted import against, closest, dense_of, speed, told
from demp.studies.training import base
from demp.sweep.job import Job

TARGETS = {"smoke": (0.5,), "cpu": (0.5, 0.65), "paper": (0.4, 0.5, 0.6, 0.7, 0.25)}
"""Neuron sparsities near which structured methods remove 80 and 90 % of the weights."""
BASELINES = {
    "smoke": ("SNAP",),
    "cpu": ("EarlyCroP-S", "SNAP", "EarlySNAP", "CroPit-S"),
    "paper": ("EarlyCroP-S", "EarlySNAP", "SNAP", "CroPit-S"),
}
FAIR = "SNAP, no scale starts at 0"
"""The paper's network starts the last scale of every branch at 0, where SNAP and CroPit-S see nothing (gap 23)."""
BEFORE = ("SNAP", "CroPit-S")
"""Methods that prune before training."""


def structured(scale: str, optimizer: str, panel: str, ours: str, seed: int) -> list[Job]:
    """Dense, DemP over strengths, the structured methods over targets."""
    config = base("resnet50", scale, optimizer)
    lines = [grids.demp_line(config, grids.strengths(scale, "resnet50", optimizer), panel=panel, line=ours, seed=seed)]
    settings = [{"target_neuron_sparsity": target} for target in TARGETS[scale]]
    for name in BASELINES[scale]:
        method = grids.NEURON_METHODS[name]
        shared = grids.options_of(method, scale)
        lines.append(grids.along(config, method, settings, panel=panel, line=name, seed=seed, options=shared))
    if scale != "smoke":
        fair = config.merged({"model": {"options": {"zero_init_last_scale": False}}})
        lines.append(grids.along(fair, "snap", settings[:2], panel=panel, line=FAIR, seed=seed))
    return [grids.dense(config, panel, seed), *grids.in_turns(lines)]


def claims(records: Records, panel: str, ours: str, margins: dict[float, str], collapse: str) -> list[Claim]:
    """More accurate than every structured method near 80 and 90 %; what prunes before training falls far below."""
    found = of(points(records), panel)
    result = []
    for near, paper in margins.items():
        pair = against(found, ours, list(grids.NEURON_METHODS), near, lambda point: point.accuracy)
        result.append(
            Claim(
                sentence=f"Near {100 * near:.0f} % weight sparsity DemP is more accurate than every other structured "
                f"method.",
                paper=paper,
                ours=f"{told(pair[0])}, {', '.join(map(told, pair[1]))}" if pair else "",
                holds=pair[0].accuracy > pair[1][0].accuracy if pair else None,
            )
        )
    return [*result, fallen(found, collapse), quicker(found, records, ours)]


def fallen(found: Sequence[Point], paper: str) -> Claim:
    """SNAP and CroPit-S."""
    dense = dense_of(found)
    points_before = [point for name in BEFORE if (point := closest(found, name, 0.8))]
    compared = dense is not None and bool(points_before)
    return Claim(
        sentence="SNAP and CroPit-S, which prune before training, reach less than half of the dense accuracy near 80 "
        "%.",
        paper=paper,
        ours=", ".join(map(told, [*([dense] if dense else []), *points_before])) if compared else "",
        holds=all(point.accuracy < dense.accuracy / 2 for point in points_before) if dense and points_before else None,
    )


def quicker(found: Sequence[Point], records: Records, ours: str) -> Claim:
    """Training time near 80 % beside EarlyCroP-S and EarlySNAP."""
    pair = against(found, ours, ("EarlyCroP-S", "EarlySNAP"), 0.8, lambda point: point.accuracy)
    seconds = {point.line: speed(point, records) for point in [pair[0], *pair[1]]} if pair else {}
    timed = bool(seconds) and all(value is not None for value in seconds.values())
    return Claim(
        sentence="Near 80 % weight sparsity DemP trains in less time than EarlyCroP-S and EarlySNAP.",
        paper="0.81 of dense training against 0.94 and 0.95 with Adam, 0.88 against 0.86 and 0.87 with SGDM",
        ours=", ".join(f"{name} {value:.2f}" for name, value in seconds.items()) if timed else "",
        holds=all(seconds[ours] < value for name, value in seconds.items() if name != ours) if timed else None,  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]
    )
