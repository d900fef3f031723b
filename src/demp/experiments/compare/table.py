"""The table of a comparison: one row per method and setting, means over seeds, ratios to dense."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demp.experiments.compare.missed import missed, without_budget
from demp.experiments.compare.plan import words
from demp.experiments.sweep import cells
from demp.experiments.sweep.cells import NONE, mean, ratio, share
from demp.experiments.sweep.table import failures, measured_on, split_of
from demp.experiments.sweep.training import SEVERAL
from demp.files.results import DONE, Result, Results
from demp.train.config import DENSE


@dataclass(frozen=True)
class MethodRow:
    """One method at one setting; numbers are means over the seeds that reached the end, None where there is none."""

    method: str
    setting: str
    seeds: int
    failed: int
    accuracy: float | None
    accuracy_std: float | None
    """Sample standard deviation over seeds; None for one seed."""
    neuron_sparsity: float | None
    """Neurons removed over the dense network's."""
    removed: float | None
    """Weights removed over the dense network's."""
    masked: float | None
    """Weights that are there and held at zero, over the dense network's."""
    train_flops: float | None
    """Over those of the dense run, the cost of checks and scorings included."""
    scoring_flops: float | None
    """The part of checks and scorings, over dense training."""
    flops: float | None
    """Of one forward over the dense network's, from the shapes that run."""
    paper_flops: float | None
    """The same in the paper's convention."""
    free_flops: float | None
    """Theoretical: the same if multiplying by zero were free."""
    train_time: float | None
    """Measured, over the dense run of the same seed, machine and threads."""
    step_late: float | None
    """Step at the end of the run, likewise."""
    step_beside: float | None
    """Step of the network that came out, measured beside the dense one's, in turns."""
    fired: str
    """Steps at which neurons were removed."""


def label(record: Result, name: str) -> Any:
    """The method, setting or seed of a run."""
    return record["labels"][name]


def dense_of(records: Results) -> list[Result]:
    """Return the records of the dense runs."""
    return [record for record in records if label(record, "method") == DENSE]


def rows(records: Results) -> list[MethodRow]:
    """Dense first, then in the order in which methods and settings first came."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for record in records:
        groups.setdefault((label(record, "method"), words(label(record, "setting"))), []).append(record)
    order = list(dict.fromkeys(method for method, _ in groups))
    dense = {
        label(record, "seed"): record
        for record in records
        if label(record, "method") == DENSE and record["status"] == DONE
    }
    sorted_keys = sorted(groups, key=lambda key: (key[0] != DENSE, order.index(key[0])))
    return [row(key, groups[key], dense) for key in sorted_keys]


def row(key: tuple[str, str], group: Results, dense: Mapping[int, Result]) -> MethodRow:
    """Return the table row of one method and setting, averaged over seeds."""
    done = [record for record in group if record["status"] == DONE]
    accuracies = [record["eval/top1"] for record in done]

    def of_dense(name: str, dense_name: str = "") -> float | None:
        return mean([record[name] / record[dense_name or f"{name}_dense"] for record in done])

    def measured(name: str) -> float | None:
        pairs = [(record, dense[label(record, "seed")]) for record in done if label(record, "seed") in dense]
        return mean([r[name] / d[name] for r, d in pairs if r["machine"] == d["machine"] != SEVERAL])

    return MethodRow(
        method=key[0],
        setting=key[1],
        seeds=len(done),
        failed=len(group) - len(done),
        accuracy=mean(accuracies),
        accuracy_std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        neuron_sparsity=mean([record["neuron_sparsity"] for record in done]),
        removed=mean([record["weight_sparsity"] for record in done]),
        masked=mean([record["masked_share"] for record in done]),
        train_flops=mean([record["train_flops"] / dense_flops(record, dense) for record in done]),
        scoring_flops=of_dense("scoring_flops", "train_flops_dense"),
        flops=of_dense("flops"),
        paper_flops=of_dense("paper_flops"),
        free_flops=of_dense("flops_if_zeros_were_free", "flops_dense"),
        train_time=measured("train_seconds"),
        step_late=measured("step_ms_at_end"),
        step_beside=mean([record["step_over_dense"] for record in done if "step_over_dense" in record]),
        fired=" / ".join(dict.fromkeys(when(record["cut_steps"]) for record in done)) or NONE,
    )


def dense_flops(record: Result, dense: Mapping[int, Result]) -> float:
    """Training FLOPs of the dense run of the same seed; without it, of a dense network in as many steps."""
    beside = dense.get(label(record, "seed"))
    return record["train_flops_dense"] if beside is None else beside["train_flops"]


def when(steps: Sequence[int]) -> str:
    """Steps of cuts in a few characters."""
    if len(steps) < 2:
        return str(steps[0]) if steps else NONE
    return f"{steps[0]}–{steps[-1]} ({len(steps)})"


def accuracy(one: MethodRow) -> str:
    """Mean and deviation over seeds, in percent."""
    if one.accuracy is None:
        return "failed"
    spread = f" ± {100 * one.accuracy_std:.2f}" if one.accuracy_std is not None else ""
    return f"{100 * one.accuracy:.2f}{spread} %"


def seeds(one: MethodRow) -> str:
    """How many, and how many failed."""
    return f"{one.seeds}, {one.failed} failed" if one.failed else str(one.seeds)


COLUMNS: tuple[tuple[str, Callable[[MethodRow], str], bool], ...] = (
    ("method", lambda r: r.method, True),
    ("setting", lambda r: r.setting or NONE, True),
    ("seeds", seeds, True),
    ("{split} accuracy", accuracy, True),
    ("neurons removed", lambda r: share(r.neuron_sparsity), True),
    ("weights removed", lambda r: share(r.removed), True),
    ("weights masked", lambda r: share(r.masked), True),
    ("training FLOPs", lambda r: ratio(r.train_flops), True),
    ("of it checks, scoring", lambda r: ratio(r.scoring_flops), False),
    ("FLOPs, exact", lambda r: ratio(r.flops), True),
    ("FLOPs, paper-style", lambda r: ratio(r.paper_flops), False),
    ("FLOPs if zeros were free (theory)", lambda r: ratio(r.free_flops), False),
    ("training time", lambda r: ratio(r.train_time), True),
    ("step late in the run", lambda r: ratio(r.step_late), False),
    ("step, side by side", lambda r: ratio(r.step_beside), True),
    ("neurons removed at step", lambda r: r.fired, False),
)
"""Heading, cell, and whether a narrow screen shows it."""

LEGEND = """\
* Accuracy: mean ± standard deviation over seeds, at the end of the run.
* Removed: cut from the network. Masked: there, held at zero, multiplied like any number. Shares of the dense network.
* FLOPs and times are ratios to dense. Training FLOPs: 3 forwards per image, and what checks and scorings cost.
* FLOPs of a forward: exact, from the shapes that run; in the paper's convention (live outputs only); and in theory, as
  they would be if multiplying by zero were free.
* Training time and late step: over the dense run of the same seed on the same machine, at another moment.
* Step, side by side: the network that came out and the dense one in turns, both without pruner.
* Neurons removed at step: the only one, or the first to the last (how many)."""


def markdown(records: Results, base: str = "") -> str:
    """The whole table with its legend, failures and remarks; ``base`` says what all runs share."""
    headings = [heading.format(split=split_of(records)) for heading, _, _ in COLUMNS]
    grid = cells.markdown(headings, [[cell(one) for _, cell, _ in COLUMNS] for one in rows(records)])
    paragraphs = [grid, LEGEND, base]
    paragraphs += [measured_on(records), *remarks(records)]
    return "\n\n".join(text for text in paragraphs if text) + "\n"


def remarks(records: Results) -> list[str]:
    """Failures, notes of cuts, and runs that did not start from the weights of their dense run, as lists."""
    failed = [f"* {text}" for text in failures(records)]
    short = [f"* {text}" for text in (*missed(records), *without_budget(records))]
    records = [record for record in records if record["status"] == DONE]
    notes: dict[str, list[str]] = {}
    for record in records:
        for note in record["notes"]:
            notes.setdefault(note, []).append(record["name"])
    noted = [f"* {note} ({', '.join(names)})" for note, names in notes.items()]
    starts = {
        label(record, "seed"): record["initial_weights"] for record in records if label(record, "method") == DENSE
    }
    others = [f"* {r['name']}" for r in records if starts.get(label(r, "seed")) not in (None, r["initial_weights"])]
    lists = (
        ("Failed:", failed),
        ("Not as asked:", short),
        ("Remarks of the methods:", noted),
        ("Not from the weights of the dense run:", others),
    )
    return [f"{title}\n\n" + "\n".join(lines) for title, lines in lists if lines]
