"""What the page carries as data: for its own hovering, and for whoever wants the numbers."""

import json
from typing import Any

from demp import __version__
from demp.experiments.report.groups import accuracy, setting_of, sparsity
from demp.experiments.report.runs import ReportedRun
from demp.experiments.report.sources import Material
from demp.experiments.report.tags import Markup
from demp.experiments.report.thin import CurvePoint
from demp.files.run import Cut

COLUMNS = (
    *("neurons", "neurons_dense", "parameters", "parameters_dense", "flops", "flops_dense", "paper_flops"),
    *("paper_flops_dense", "neuron_sparsity", "weight_sparsity", "masked_share", "train_flops", "train_flops_dense"),
    *("scoring_flops", "train_seconds", "step_ms_at_end", "step_over_dense", "images_per_s_at_end", "file_bytes"),
    *("eval/loss", "steps"),
)
"""Of summary.json."""
SHARES = ("parameters", "flops", "train_flops")
"""What is also given over the dense network's."""
ABOUT = ("name", "method", "setting", "seed", "status", "accuracy")


def data(material: Material) -> dict[str, Any]:
    """JSON-ready: a row for every run, and what the shown ones did over time."""
    shown = material.shown
    columns = [*ABOUT, *(f"{name}_share" for name in SHARES), "sparsity", *COLUMNS, "machine", "error"]
    return {
        "demp": __version__,
        "runs": {"columns": columns, "rows": [row(run) for run in material.runs]},
        "series": {run.name: {name: pairs(points) for name, points in run.series.items()} for run in shown},
        "tests": {run.name: [[rounded(value) for value in test] for test in run.tests] for run in shown},
        "cuts": {run.name: [cut_row(cut) for cut in run.cuts if cut.removed] for run in shown},
        "claims": [vars(claim) for study in material.studies for claim in study.claims],
        "skipped": [vars(fault) for fault in material.skipped],
    }


def pairs(points: list[CurvePoint]) -> list[list[Any]]:
    """Return the points of a series as rounded [step, value] pairs."""
    return [[rounded(step), rounded(value)] for step, value in points]


def cut_row(cut: Cut) -> list[Any]:
    """Step, neurons removed, and what is left: neurons, parameters, FLOPs."""
    return [rounded(value) for value in (cut.step, cut.removed, cut.neurons, cut.parameters, cut.flops)]


def row(run: ReportedRun) -> list[Any]:
    """Return the values of one run as a list for the page's data."""
    shares = [rounded(run.share(name)) for name in SHARES]
    rest = [rounded(run.value(name)) for name in COLUMNS]
    about = [run.name, run.method, setting_of(run), run.seed, run.status, rounded(accuracy(run))]
    return [*about, *shares, rounded(sparsity(run)), *rest, run.machine, run.error]


def rounded(value: float | None) -> float | int | None:
    """Six significant digits; whole numbers stay."""
    if value is None:
        return None
    return int(value) if value == int(value) and abs(value) < 2**53 else float(f"{value:.6g}")


def embedded(values: dict[str, Any]) -> Markup:
    """As the content of a script element: no text in it can end the element."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
