"""The table of a sweep: one row per setting, mean and standard deviation over seeds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from demp.experiments.sweep import cells
from demp.experiments.sweep.cells import NONE, mean, percent, ratio, std, text
from demp.experiments.sweep.grid import shortened
from demp.experiments.sweep.timeleft import like
from demp.files.results import DONE, Result, Results

NUMBERS = {
    "accuracy": lambda r: r["eval/top1"],
    "neuron_sparsity": lambda r: r["neuron_sparsity"],
    "weight_sparsity": lambda r: r["weight_sparsity"],
    "masked": lambda r: r["masked_share"],
    "flops": lambda r: r["flops"] / r["flops_dense"],
    "train_flops": lambda r: r["train_flops"] / r["train_flops_dense"],
    "train_seconds": lambda r: r["train_seconds"],
    "step_beside": lambda r: r["step_over_dense"],
}
"""What a row says, from the line of one run."""
LEGEND = """\
* Mean ± standard deviation over seeds, at the end of the run.
* Removed: cut from the network. Masked: there, held at zero, multiplied like any number. Shares of the dense network.
* FLOPs of a forward, from the shapes that run, and of training with its checks and scorings: ratios to dense.
* Step, side by side: the network that came out and the dense one in turns, both without pruner."""
STAR = "\n* A star: no other trial is at least as good in every aim and better in one."


@dataclass(frozen=True)
class SweepRow:
    """One setting; numbers are lists over the seeds that reached the end."""

    method: str
    setting: dict[str, Any]
    failed: int
    numbers: dict[str, list[float]]
    trial: int | None = None
    """Its number in a search."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: each number's mean, and its deviation over seeds as ``NAME_std``."""
        found: dict[str, Any] = {"method": self.method, "setting": self.setting, "seeds": self.seeds}
        found |= {"failed": self.failed} | ({} if self.trial is None else {"trial": self.trial})
        for name, values in self.numbers.items():
            found |= {name: mean(values), f"{name}_std": std(values)}
        return found

    @property
    def seeds(self) -> int:
        """The number of seeds that reached the end."""
        return len(self.numbers["accuracy"])


def rows(records: Results) -> list[SweepRow]:
    """Return the rows ordered by trial, or else by setting, whatever ended first."""
    groups: dict[str, list[Result]] = {}
    for record in records:
        groups.setdefault(like(record["labels"]), []).append(record)
    return sorted((row(group) for group in groups.values()), key=place)


def place(one: SweepRow) -> tuple[Any, ...]:
    """Return the key by which rows are ordered: numbers before texts."""
    values = [
        (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value)) for value in one.setting.values()
    ]
    return (-1 if one.trial is None else one.trial, one.method, *values)


def row(group: Results) -> SweepRow:
    """Return the row of one setting from the records of its seeds."""
    done = [record for record in group if record["status"] == DONE]
    measured = [record for record in done if "step_over_dense" in record]
    numbers = {name: [of(r) for r in (measured if name == "step_beside" else done)] for name, of in NUMBERS.items()}
    labels = group[0]["labels"]
    return SweepRow(labels["method"], dict(labels["setting"]), len(group) - len(done), numbers, labels.get("trial"))


def columns(found: Sequence[SweepRow], split: str, front: Collection[int] = ()) -> list[tuple[str, list[str]]]:
    """Return heading and cells of each column that is not empty. Trials in ``front`` get a star."""
    keys = list(dict.fromkeys(key for one in found for key in one.setting))
    short = shortened(keys)
    table = [("trial", [f"{one.trial}{' *' if one.trial in front else ''}" for one in found])]
    table = table if any(one.trial is not None for one in found) else []
    table += [("method", [one.method for one in found])] if "method.name" not in keys else []
    table += [(short[key], [text(one.setting.get(key, NONE)) for one in found]) for key in keys]
    table.append(("seeds", [f"{one.seeds}, {one.failed} failed" if one.failed else str(one.seeds) for one in found]))
    shares = {"accuracy": f"{split} accuracy"}
    shares |= {"neuron_sparsity": "neurons removed", "weight_sparsity": "weights removed"}
    shares |= {"masked": "weights masked"} if any(any(one.numbers["masked"]) for one in found) else {}
    table += [(heading, [percent(one.numbers[name]) for one in found]) for name, heading in shares.items()]
    ratios = {"flops": "FLOPs", "train_flops": "training FLOPs"}
    ratios |= {"step_beside": "step, side by side"} if any(one.numbers["step_beside"] for one in found) else {}
    table += [(heading, [ratio(mean(one.numbers[name])) for one in found]) for name, heading in ratios.items()]
    return [*table, ("training, s", [seconds(one) for one in found])]


def seconds(one: SweepRow) -> str:
    """Return the mean training time of a row."""
    taken = mean(one.numbers["train_seconds"])
    return NONE if taken is None else f"{taken:.1f}"


def markdown(records: Results, about: str = "", front: Collection[int] = ()) -> str:
    """Return the table with legend, failures and machines; ``about`` says what all runs share."""
    table = columns(rows(records), split_of(records), front)
    grid = cells.markdown([name for name, _ in table], zip(*(column for _, column in table), strict=True))
    failed = [f"* {text}" for text in failures(records)]
    legend = LEGEND + (STAR if front else "")
    paragraphs = [grid, legend, about, measured_on(records)]
    paragraphs.append("Failed:\n\n" + "\n".join(failed) if failed else "")
    return "\n\n".join(text for text in paragraphs if text) + "\n"


def measured_on(records: Results) -> str:
    """Return a sentence on the machines that measured, empty if no run is done."""
    machines = sorted({f"{r['machine']}, torch {r['torch']}" for r in records if r["status"] == DONE})
    return f"Measured on: {'; '.join(machines)}." if machines else ""


def failures(records: Results) -> list[str]:
    """Return a sentence for each run that failed."""
    return [f"{record['name']}: {record['error']}" for record in records if record["status"] != DONE]


def split_of(records: Results) -> str:
    """Return the split that the accuracies are of."""
    return next((record["split"] for record in records if record["status"] == DONE), "test")
