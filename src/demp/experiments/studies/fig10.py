"""Fig. 10: width, learning rate and batch size decide how many neurons die."""

from itertools import pairwise
from typing import Any, ClassVar

from demp.experiments.studies.base import NONE, Claim, Study, Table
from demp.experiments.studies.dead import SHARE, final, groups, std, watched
from demp.experiments.studies.drawing import COLOURS, SOFT, band, frame, legend, looks, panels
from demp.experiments.studies.frontier import percent
from demp.experiments.studies.training import base, training
from demp.experiments.sweep.job import Job
from demp.files.results import Result, Results
from demp.train.choices import OptimizerName
from demp.train.config import DENSE, TrainConfig

LINES: tuple[tuple[OptimizerName, float], ...] = (("adamw", 0.05), ("sgdw", 0.3), ("adamw", 0.01), ("sgdw", 0.5))
STEMS = {"smoke": (4, 8), "cpu": (4, 16), "paper": (10, 64, 30, 20, 45)}
"""Channels of the first convolution."""
RATES = {"smoke": (0.01, 0.05), "cpu": (0.01, 0.05, 0.1), "paper": (0.01, 0.025, 0.05, 0.075, 0.1)}
BATCHES = {"smoke": (16, 128), "cpu": (16, 128, 256), "paper": (16, 32, 64, 128, 256)}
BASE_RATE, BASE_BATCH = 0.05, 128
SHORT_STEPS = 15_626
CPU_STEPS = 500
WORDS = {"adamw": "Adam", "sgdw": "SGDM"}
LEFT, RIGHT = "width", "rate and batch"


class Fig10(Study):
    """Left: share of live neurons against the width. Right: dead neurons against rate and batch size."""

    id: ClassVar[str] = "fig10"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10, not pruned: dead neurons against width, learning rate and batch size"
    section: ClassVar[str] = "App. D.1, D.3"
    remark: ClassVar[str] = (
        "Left: the caption says that wider networks lose a larger share, App. D.3 that the share of live ones grows; "
        "the caption is tested. Right: 15,626 steps with a one-cycle rate, as in the authors' code. At scale cpu "
        f"{CPU_STEPS} steps; widths up to a quarter (left) and a quarter (right)."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Widths of the left panel, then rates and batch sizes of the right one."""
        found = []
        for stem in STEMS[scale]:
            for optimizer, rate in LINES[:2] if scale == "smoke" else LINES:
                config = base("resnet18", scale, optimizer, cpu_steps=CPU_STEPS)
                config = config.merged({"model": {"width": stem / 64}, "optimizer": {"lr": rate}})
                labels = {"panel": LEFT, "line": f"{WORDS[optimizer]}, {rate:g}", "stem": stem}
                found.append(one(config, scale, seed, labels))
        pairs = [(rate, BASE_BATCH) for rate in RATES[scale]] + [(BASE_RATE, batch) for batch in BATCHES[scale]]
        for rate, batch in dict.fromkeys(pairs):
            config = base("resnet18", scale, "adamw", cpu_steps=CPU_STEPS)
            config = config.merged({"schedule": {"name": "one-cycle"}, "optimizer": {"lr": rate}, "batch_size": batch})
            if scale == "paper":
                config = config.merged({"steps": SHORT_STEPS})
            found.append(one(config, scale, seed, {"panel": RIGHT, "rate": rate, "batch": batch}))
        return found

    def figure(self, records: Results, scale: str) -> Any:
        """Three panels: width; and, as ratios to one setting, rate and batch size."""
        figure, axes = panels(3)
        for name, look in looks([f"{WORDS[optimizer]}, {rate:g}" for optimizer, rate in LINES]).items():
            own = widths(records).get(name, {})
            if own:
                live = [[100 * (1 - run["series"][SHARE][-1][1]) for run in runs] for runs in own.values()]
                band(axes[0], list(own), live, look, name)
        frame(axes[0], "width", "channels of the stem", "live neurons, %")
        for here, name, word in ((axes[1], "rate", "learning rate"), (axes[2], "batch", "batch size")):
            bars = {value: ratio for value, ratio in variations(records, name).items() if ratio is not None}
            here.bar([f"{value:g}" for value in bars], list(bars.values()), color=COLOURS[1])
            if bars:
                here.axhline(1.0, color=SOFT, linewidth=1.1, linestyle="--")
            base_words = f"base: rate {BASE_RATE:g}, batch {BASE_BATCH}" if bars else "at the base nobody died"
            frame(here, f"{word}; {base_words}", word, "dead neurons, times the base")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """Return a table with one row per setting."""
        rows = []
        for name, own in widths(records).items():
            rows += [(name, f"stem {stem}", *dead(runs), NONE) for stem, runs in sorted(own.items())]
        for (rate, batch), runs in right(records).items():
            times = over_base(records, runs)
            setting = f"rate {rate:g}, batch {batch}"
            rows.append(("Adam, one-cycle", setting, *dead(runs), NONE if times is None else f"{times:.2f}"))
        last = f"over those at rate {BASE_RATE:g}, batch {BASE_BATCH}"
        return Table(("line", "setting", "seeds", "dead neurons at the end", last), tuple(rows))

    def claims(self, records: Results) -> list[Claim]:
        """Return the claims of the caption on width, rate and batch size."""
        wide = {
            name: [final(runs) for _, runs in sorted(own.items())]
            for name, own in widths(records).items()
            if len(own) > 1
        }
        rates, batches = ([final(runs) for _, runs in sorted(along(records, n).items())] for n in ("rate", "batch"))
        return [
            Claim(
                sentence="A larger share of neurons dies in the widest network than in the narrowest, with both "
                "optimizers and both rates of each.",
                paper="live share falls from 0.8-1.0 to 0.6-0.95",
                ours="; ".join(f"{name} {arrows(shares)}" for name, shares in wide.items()),
                holds=all(shares[-1] > shares[0] for shares in wide.values()) if len(wide) == len(LINES) else None,
            ),
            Claim(
                sentence="More neurons die at a higher learning rate.",
                paper="from about 0 to 2 times the base, rate 0.01 to 0.1",
                ours=shares_text(records, "rate"),
                holds=all(a < b for a, b in pairwise(rates)) if len(rates) > 1 else None,
            ),
            Claim(
                sentence="In equally many steps fewer neurons die with larger batches.",
                paper="from about 2.5 to 0.5 times the base, batch 16 to 256",
                ours=shares_text(records, "batch"),
                holds=all(a > b for a, b in pairwise(batches)) if len(batches) > 1 else None,
            ),
        ]


def one(config: TrainConfig, scale: str, seed: int, labels: dict[str, Any]) -> Job:
    """Return the job of one dense run whose dead neurons are monitored."""
    return training(watched(config, scale, examples=2048), DENSE, seed=seed, labels=labels, series=[SHARE])


def widths(records: Results) -> dict[str, dict[int, list[Result]]]:
    """Line of the left panel -> stem -> seeds."""
    found: dict[str, dict[int, list[Result]]] = {}
    for record in records:
        labels = record["labels"]
        if labels["panel"] == LEFT:
            found.setdefault(labels["line"], {}).setdefault(labels["stem"], []).append(record)
    return {name: dict(sorted(own.items())) for name, own in found.items()}


def right(records: Results) -> dict[tuple[float, int], list[Result]]:
    """Rate and batch size -> seeds."""
    own = [record for record in records if record["labels"]["panel"] == RIGHT]
    return groups(own, lambda labels: (labels["rate"], labels["batch"]))


def along(records: Results, name: str) -> dict[float, list[Result]]:
    """The settings that differ from the base in one thing only, by its value."""
    at = {"rate": 0, "batch": 1}[name]
    rest = {"rate": BASE_BATCH, "batch": BASE_RATE}[name]
    return {key[at]: runs for key, runs in right(records).items() if key[1 - at] == rest}


def over_base(records: Results, runs: list[Result]) -> float | None:
    """Dead neurons over those of the base setting, as the paper has them; None while there are none of these."""
    base_runs = right(records).get((BASE_RATE, BASE_BATCH))
    base_dead = final(base_runs) if base_runs else 0.0
    return final(runs) / base_dead if base_dead else None


def variations(records: Results, name: str) -> dict[float, float | None]:
    """The same for all settings that differ from the base in one thing only, in the order of its value."""
    return {value: over_base(records, runs) for value, runs in sorted(along(records, name).items())}


def shares_text(records: Results, name: str) -> str:
    """Shares, and what they are of the base's, in words."""
    found = sorted(along(records, name).items())
    ratios = [ratio for ratio in variations(records, name).values() if ratio is not None]
    if len(found) < 2:
        return ""
    times = f", {' → '.join(f'{ratio:.2f}' for ratio in ratios)} times the base" if ratios else ""
    return arrows([final(runs) for _, runs in found]) + times


def dead(runs: list[Result]) -> tuple[str, str]:
    """Return two table cells: number of runs, and final share of dead neurons."""
    return str(len(runs)), percent(final(runs), std(runs), 2)


def arrows(shares: list[float]) -> str:
    """Return the shares as percentages joined by arrows."""
    return f"{' → '.join(f'{100 * share:.1f}' for share in shares)} %"
