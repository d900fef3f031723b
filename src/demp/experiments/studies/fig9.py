"""Fig. 9: which kind of noise kills neurons, in a small network on MNIST."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from demp.experiments.studies.base import NONE, Claim, Study, Table, job
from demp.experiments.studies.costs import StudyCost
from demp.experiments.studies.drawing import COLOURS, SOFT, frame, legend, panels
from demp.experiments.studies.small_mlp import WORK, Regime, Walk
from demp.experiments.sweep.job import Job
from demp.files.results import Result, Results

RATES = (0.01, 0.025, 0.05, 0.075, 0.1)
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"data": "digits", "pictures": 256, "hidden": (16, 24), "full": 64, "steps": 60, "count_every": 20},
    "cpu": {"full": 64},
    "paper": {},
}
NAMES: dict[Regime, str] = {
    "sgd-noise": "noise of minibatches alone",
    "gaussian-asymmetric": "Gaussian noise, live weights only",
    "gaussian-symmetric": "Gaussian noise, all weights",
    "sgd": "SGD",
}
MS_PER_STEP = {"sgd": 0.2, "sgd-noise": 0.4, "gaussian-asymmetric": 1.0, "gaussian-symmetric": 0.01}
MS_PER_IMAGE, COUNT_SECONDS = 0.0135, 0.065
"""Of an image behind the mean gradient, and of a count on 10,000 images."""
BASIS = "time per step of each kind of noise, measured on one core"


class Fig9(Study):
    """Dead neurons over steps of four walks at five learning rates."""

    id: ClassVar[str] = "fig9"
    title: ClassVar[str] = "An MLP on 10,000 MNIST images: dead neurons under minibatch noise, Gaussian noise and SGD"
    section: ClassVar[str] = "Sec. 2.2, App. D.1"
    remark: ClassVar[str] = (
        "Scale cpu is the paper's in all but one thing: the mean gradient that is taken off is that of 64 images "
        "drawn anew each step rather than of all 10,000, which would take an hour a run on one core. The noise keeps "
        "mean zero, and its covariance grows by 1.6 percent. Weights begin as Haiku's do, images lie "
        "between 0 and 1, the Gaussian noise has the authors' deviation, rate^1.5. A walk whose weights overflow ends."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Every walk at every rate, the fastest rates first."""
        return [one(regime, rate, scale, seed) for rate in reversed(RATES) for regime in NAMES]

    def cost(self, jobs: Sequence[Job], scale: str) -> StudyCost:
        """From measured times; they are those of a CPU, for small networks do not fill a GPU."""
        walks = [Walk(**job.arguments) for job in jobs]
        seconds = sum(walk.steps * 1e-3 * per_step(walk) + counting(walk) for walk in walks)
        flops = sum(6.0 * walk.steps * weights(walk) * (walk.batch + behind(walk)) for walk in walks)
        return StudyCost(len(walks), sum(walk.steps for walk in walks), flops, seconds, BASIS)

    def figure(self, records: Results, scale: str) -> Any:
        """A panel per kind of noise; a line per rate, a cross where a walk diverged."""
        figure, axes = panels(2, 2)
        for here, (regime, name) in zip(axes, NAMES.items(), strict=True):
            draw(here, records, regime)
            frame(here, name, "step", "dead neurons")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """Dead neurons at the end, of each layer; accuracy on the images."""
        headings = (
            "noise",
            "rate",
            "seeds",
            "dead",
            "first layer",
            "second layer",
            "of",
            "accuracy",
            "diverged at step",
        )
        rows = [cells(regime, rate, found) for (regime, rate), found in grouped(records).items()]
        return Table(headings, tuple(rows), ("Of a walk that diverged: at its last count before.",))

    def claims(self, records: Results) -> list[Claim]:
        """Claims of Sec. 2.2 and of the caption of Fig. 9."""
        return [
            noise_kills(records),
            asymmetric(records),
            comparable(records),
            with_the_rate(records),
            plateau(records),
        ]


def one(regime: Regime, rate: float, scale: str, seed: int) -> Job:
    """The job of one walk, with its labels."""
    walk = Walk(regime=regime, rate=rate, seed=seed, **(SIZES[scale] if regime == "sgd-noise" else without_full(scale)))
    return job(WORK, walk.arguments(), {"regime": regime, "rate": rate, "seed": seed}, f"{regime}-{rate:g}-s{seed}")


def without_full(scale: str) -> dict[str, Any]:
    """The sizes of walks that take no mean gradient off."""
    return {name: value for name, value in SIZES[scale].items() if name != "full"}


def per_step(walk: Walk) -> float:
    """Return the expected milliseconds per step on one CPU core."""
    return MS_PER_STEP[walk.regime] + MS_PER_IMAGE * behind(walk)


def counting(walk: Walk) -> float:
    """Return the expected seconds for all counts of dead neurons."""
    return COUNT_SECONDS * walk.pictures / 10_000 * (1 + walk.steps / walk.count_every)


def behind(walk: Walk) -> int:
    """How many images the mean gradient that is subtracted is computed on."""
    return (walk.full or walk.pictures) if walk.regime == "sgd-noise" else 0


def weights(walk: Walk) -> int:
    """Return the number of weights of the walk's network."""
    widths = (64 if walk.data == "digits" else 784, *walk.hidden, 10)
    return sum(a * b for a, b in pairwise(widths))


def grouped(records: Results) -> dict[tuple[Regime, float], list[Result]]:
    """The seeds of each walk at each rate, in the order of the panels."""
    found: dict[tuple[Regime, float], list[Result]] = {(regime, rate): [] for regime in NAMES for rate in RATES}
    for record in records:
        found[record["labels"]["regime"], record["labels"]["rate"]].append(record)
    return {key: runs for key, runs in found.items() if runs}


def draw(axes: Any, records: Results, regime: str) -> None:
    """The lines of one kind of noise: means over the seeds that are still going, a cross where one ends early."""
    for (name, rate), runs in grouped(records).items():
        if name != regime:
            continue
        colour = COLOURS[RATES.index(rate)]
        over: dict[int, list[float]] = {}
        for step, value in (point for run in runs for point in run["series"]["dead"]):
            over.setdefault(step, []).append(value)
        lines = sorted((step, statistics.fmean(values)) for step, values in over.items())
        axes.plot(*zip(*lines, strict=True), linewidth=1.2, label=f"rate {rate:g}", color=colour)
        ends = [run["series"]["dead"][-1] for run in runs if run["diverged_at"] is not None]
        if ends:
            axes.plot(*zip(*ends, strict=True), marker="x", linestyle="none", color=SOFT, label="diverged")


def cells(regime: Regime, rate: float, runs: Sequence[Result]) -> tuple[str, ...]:
    """The cells of one row of the table: one regime at one rate."""
    dead = [run["dead"] for run in runs]
    spread = f" ± {statistics.stdev(dead):.1f}" if len(dead) > 1 else ""
    ended = [str(run["diverged_at"]) for run in runs if run["diverged_at"] is not None]
    layers = (f"{mean(runs, f'dead/{layer}'):.1f}" for layer in (1, 2))
    return (
        NAMES[regime],
        f"{rate:g}",
        str(len(runs)),
        f"{statistics.fmean(dead):.1f}{spread}",
        *layers,
        str(sum(runs[0]["arguments"]["hidden"])),
        f"{100 * mean(runs, 'accuracy'):.1f} %",
        ", ".join(ended) or NONE,
    )


def mean(runs: Sequence[Result], name: str) -> float:
    """Return the mean of a recorded number over seeds."""
    return statistics.fmean(run[name] for run in runs)


def ends(records: Results, regime: str) -> dict[float, float]:
    """Rate -> dead neurons at the end, mean over seeds."""
    return {rate: mean(runs, "dead") for (name, rate), runs in grouped(records).items() if name == regime}


def second_half(records: Results, regime: str) -> dict[float, float]:
    """Rate -> dead neurons over the second half of the steps, mean over counts and seeds."""
    found = {}
    for (name, rate), runs in grouped(records).items():
        points = [point for run in runs for point in run["series"]["dead"] if 2 * point[0] >= run["arguments"]["steps"]]
        if name == regime and points:
            found[rate] = statistics.fmean(value for _, value in points)
    return found


def counts_text(dead: Mapping[float, float], digits: int = 0) -> str:
    """Return in words how many neurons are dead at each rate."""
    return ", ".join(f"{count:.{digits}f} at {rate:g}" for rate, count in dead.items())


def noise_kills(records: Results) -> Claim:
    """The claim that the noise of minibatches alone kills neurons."""
    dead, early = ends(records, "sgd-noise"), diverged(records, "sgd-noise")
    return Claim(
        sentence="The noise of minibatches alone kills neurons of a network that begins with none dead, at every rate.",
        paper="up to about 300 of 400 after 30,000 steps",
        ours=f"{counts_text(dead)}{early}" if dead else "",
        holds=all(count > 0 for count in dead.values()) if len(dead) == len(RATES) else None,
    )


def diverged(records: Results, regime: str) -> str:
    """How many walks did not reach the end."""
    runs = [record for record in records if record["labels"]["regime"] == regime]
    early = sum(run["diverged_at"] is not None for run in runs)
    return f" ({early} of {len(runs)} walks diverged, counted before)" if early else ""


def asymmetric(records: Results) -> Claim:
    """Return the claim that Gaussian noise on live weights alone kills more."""
    live, everywhere = (second_half(records, f"gaussian-{kind}") for kind in ("asymmetric", "symmetric"))
    both = len(live) == len(everywhere) == len(RATES)
    return Claim(
        sentence="Gaussian noise on live weights alone kills more than on all weights, at the two highest rates "
        "(mean over the second half of the steps).",
        paper="about 20 against fewer than 10 at rate 0.1",
        ours=f"live only: {counts_text(live, 1)}; all: {counts_text(everywhere, 1)}" if live and everywhere else "",
        holds=all(live[rate] > everywhere[rate] for rate in RATES[-2:]) if both else None,
    )


def comparable(records: Results) -> Claim:
    """Sec. 2.2: like SGD, unlike Gaussian noise."""
    noise, sgd = ends(records, "sgd-noise"), ends(records, "sgd")
    gauss = {**ends(records, "gaussian-asymmetric")}
    most = [max(found.values(), default=0.0) for found in (noise, sgd, gauss)]
    full = all(len(found) == len(RATES) for found in (noise, sgd, gauss))
    return Claim(
        sentence="The noise of minibatches alone kills at most about as many as SGD (within a factor of two), "
        "and Gaussian noise far fewer (less than half of either).",
        paper="about 300, 400 and 20",
        ours=f"{most[0]:.0f}, {most[1]:.0f} and {most[2]:.0f}" if full else "",
        holds=(0.5 <= most[0] / max(most[1], 1) <= 2 and most[2] < min(most[:2]) / 2) if full else None,
    )


def with_the_rate(records: Results) -> Claim:
    """Return the claim that SGD kills more neurons at higher learning rates."""
    dead = ends(records, "sgd")
    rates = [rate for rate in RATES if rate in dead]
    return Claim(
        sentence="With SGD a higher learning rate kills more neurons.",
        paper="few at 0.01, up to about 400 at 0.1",
        ours=counts_text(dead),
        holds=all(dead[a] < dead[b] for a, b in pairwise(rates)) if len(rates) == 5 else None,
    )


def plateau(records: Results) -> Claim:
    """Return the claim that the number of dead neurons settles with SGD."""
    late = {}
    for (regime, rate), runs in grouped(records).items():
        if regime == "sgd":
            late[rate] = statistics.fmean(run["dead"] - at_share(run, 2 / 3) for run in runs)
    dead = ends(records, "sgd")
    return Claim(
        sentence="With SGD the dead accumulate quickly, then their number settles: a tenth of them at most in the last "
        "third of the steps, at every rate.",
        paper="plateaus when the network converges",
        ours="; ".join(f"{late[rate]:+.0f} of {dead[rate]:.0f} at {rate:g}" for rate in late),
        holds=all(abs(late[rate]) <= max(1.0, dead[rate] / 10) for rate in late) if len(late) == len(RATES) else None,
    )


def at_share(run: Result, share: float) -> float:
    """Dead neurons at the count nearest to this share of the walk."""
    points = run["series"]["dead"]
    return min(points, key=lambda point: abs(point[0] - share * points[-1][0]))[1]
