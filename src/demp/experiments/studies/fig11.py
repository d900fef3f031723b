"""Fig. 11: a larger epsilon of Adam keeps neurons alive."""

from itertools import pairwise
from typing import Any, ClassVar

from demp.experiments.studies.base import Claim, Study, Table
from demp.experiments.studies.dead import CPU_STEPS, SHARE, final, groups, std, watched
from demp.experiments.studies.drawing import band, frame, legend, looks, panels
from demp.experiments.studies.frontier import percent
from demp.experiments.studies.training import base, training
from demp.experiments.sweep.job import Job
from demp.files.results import Result, Results
from demp.train.config import DENSE

EPSILONS = {"smoke": (1e-10, 1e-4), "cpu": (1e-10, 1e-4, 1e-8), "paper": (1e-10, 1e-4, 1e-8, 1e-6, 1e-9)}
RATES = (0.01, 0.005)
SLACK = 0.005
"""A share may rise by this much where the paper says that it falls."""


class Fig11(Study):
    """Dead neurons at the end of dense training against Adam's epsilon, at two learning rates."""

    id: ClassVar[str] = "fig11"
    title: ClassVar[str] = "ResNet-18 on CIFAR-10, not pruned: dead neurons against Adam's epsilon"
    section: ClassVar[str] = "App. E"
    remark: ClassVar[str] = f"At scale cpu a quarter of the width, {CPU_STEPS} steps and three epsilons."

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Dense training, examined at its end on 2,048 images."""
        found = []
        for eps in EPSILONS[scale]:
            for rate in RATES:
                config = base("resnet18", scale, "adamw", cpu_steps=CPU_STEPS)
                config = config.merged({"optimizer": {"lr": rate, "eps": eps}})
                config = watched(config, scale, examples=2048)
                found.append(training(config, DENSE, seed=seed, labels={"eps": eps, "rate": rate}, series=[SHARE]))
        return found

    def figure(self, records: Results, scale: str) -> Any:
        """Draw dead neurons against Adam's epsilon, one line per learning rate."""
        figure, (axes,) = panels(1)
        for name, look in looks([f"rate {rate:g}" for rate in RATES]).items():
            own = {eps: runs for (eps, rate), runs in settings(records).items() if f"rate {rate:g}" == name}
            if own:
                dead = [[100 * run["series"][SHARE][-1][1] for run in runs] for runs in own.values()]
                band(axes, list(own), dead, look, name)
        axes.set_xscale("log")
        frame(axes, "Dense training with Adam", "epsilon", "dead neurons, %")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """Return a table with one row per epsilon and learning rate."""
        rows = [
            (f"{eps:g}", f"{rate:g}", str(len(runs)), percent(final(runs), std(runs), 2))
            for (eps, rate), runs in sorted(settings(records).items())
        ]
        return Table(("epsilon", "rate", "seeds", "dead neurons at the end"), tuple(rows))

    def claims(self, records: Results) -> list[Claim]:
        """Falling in epsilon, rising in the rate."""
        lines = {
            rate: [(eps, final(runs)) for (eps, other), runs in sorted(settings(records).items()) if other == rate]
            for rate in RATES
        }
        whole = all(len(values) > 1 for values in lines.values())
        text = "; ".join(
            f"{' → '.join(f'{100 * share:.2f}' for _, share in values)} % at rate {rate:g}"
            for rate, values in lines.items()
            if values
        )
        first = {rate: dict(values).get(EPSILONS["paper"][0]) for rate, values in lines.items()}
        high, low = first[RATES[0]], first[RATES[1]]
        return [
            Claim(
                sentence="The share of dead neurons falls as Adam's epsilon grows from 1e-10 to 1e-4, at both rates.",
                paper="5.07 → 0 % at rate 0.005, 12.6 → 0.47 % at rate 0.01",
                ours=text,
                holds=all(falls([share for _, share in values]) for values in lines.values()) if whole else None,
            ),
            Claim(
                sentence="At epsilon 1e-10 more neurons die at rate 0.01 than at 0.005.",
                paper="12.6 % against 5.07 %",
                ours="" if high is None or low is None else f"{percent(high, None, 2)} against {percent(low, None, 2)}",
                holds=None if high is None or low is None else high > low,
            ),
        ]


def settings(records: Results) -> dict[tuple[float, float], list[Result]]:
    """The seeds of each epsilon and rate."""
    return groups(records, lambda labels: (labels["eps"], labels["rate"]))


def falls(shares: list[float]) -> bool:
    """From first to last, and nowhere up by more than the slack."""
    return shares[-1] < shares[0] and all(later <= earlier + SLACK for earlier, later in pairwise(shares))
