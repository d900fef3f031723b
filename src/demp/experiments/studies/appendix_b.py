"""Appendix B: an absorbing and a geometric random walk, against their closed forms."""

from statistics import NormalDist
from typing import Any, ClassVar

from demp.experiments import theory
from demp.experiments.studies.base import Claim, Study, Table, job
from demp.experiments.studies.costs import StudyCost
from demp.experiments.studies.drawing import COLOURS, frame, legend, panels
from demp.experiments.studies.walks import ABSORBING, GEOMETRIC
from demp.experiments.sweep.job import Job
from demp.experiments.theory.geometric import KINDS
from demp.files.results import Result, Results

WALKS = {"smoke": 2000, "cpu": 100_000, "paper": 100_000}
STARTS = ((1.0, 0.1), (0.5, 0.1), (2.0, 0.1), (1.0, 0.5), (1.0, 0.02))
"""w0 and rate."""
TIMES = tuple(5.0 * count for count in range(1, 41))
CURVATURE, STD = -0.1, 1.0
SHARES = (0.05, 0.15, 0.3, 0.5, 0.8)
"""Of the largest learning rate that the lemmas allow."""
STEPS = (100, 300, 1000)
EPSILON, DELTA = 0.05, 0.2
ERROR = 1e-3
"""Probability that honest walks are called wrong, over all counts of a claim."""


NOTES = (
    "Share alive at the last time; growth of log|w| per step.",
    "Of a walk in steps of 1 the closed form is an approximation (docs/theory.md) that fails where few steps were "
    "made: its deviations are no test.",
)


class AppendixB(Study):
    """Survival over time; growth rate over the learning rate."""

    id: ClassVar[str] = "theory"
    title: ClassVar[str] = "Two random walks: survival of the absorbing one, growth rate of the geometric one"
    section: ClassVar[str] = "App. B"
    remark: ClassVar[str] = (
        "100,000 walks at both large scales. Simulations are compared with closed forms within the quantile of a "
        f"normal that all counts together exceed with probability {ERROR:g}. docs/theory.md says where the paper's "
        "proof of Lemma B.3 leaves its own assumption."
    )

    def jobs(self, scale: str, seed: int) -> list[Job]:
        """Starts and rates of the absorbing walk, stepping and continuous; learning rates of the geometric one."""
        found: list[Job] = []

        def own() -> dict[str, int]:  # other numbers for every job, so that their errors are independent
            return {"walks": WALKS[scale], "seed": 1000 * seed + len(found)}

        for start, rate in STARTS:
            for step in (0.0, 1.0):
                arguments = {"start": start, "rate": rate, "times": list(TIMES), "step": step, **own()}
                found.append(job(ABSORBING, arguments, {"walk": "absorbing", "seed": seed}, f"absorbing-s{seed}"))
        for kind, noise in KINDS.items():
            for share in SHARES:
                rate = share / noise(STD).reach
                arguments = {"noise": kind, "std": STD, "curvature": CURVATURE, "rate": rate, "times": list(STEPS)}
                arguments |= {"epsilon": EPSILON, "delta": DELTA, **own()}
                found.append(job(GEOMETRIC, arguments, {"walk": "geometric", "seed": seed}, f"geometric-s{seed}"))
        return found

    def cost(self, jobs: list[Job], scale: str) -> StudyCost:  # pyright: ignore[reportIncompatibleMethodOverride]
        """About a second for 10^8 steps of the absorbing walk, three for the geometric one."""
        steps = sum(STEPS[-1] if one.work == GEOMETRIC else int(TIMES[-1]) for one in jobs)
        seconds = steps * WALKS[scale] * 2.5e-8
        return StudyCost(len(jobs), steps, 0.0, seconds, "2.5e-8 s per step of a walk, measured on one core")

    def figure(self, records: Results, scale: str) -> Any:
        """Left the survival, right the growth rate; lines are closed forms."""
        figure, (left, right) = panels(2)
        exact = [run for run in of(records, "absorbing") if not run["arguments"]["step"] and not seed_of(run)]
        for colour, run in zip(COLOURS, exact, strict=False):
            values = run["arguments"]
            label = f"w0 {values['start']:g}, rate {values['rate']:g}"
            left.plot(values["times"], run["expected"], color=colour, linewidth=1.2, label=label)
            left.plot(values["times"], run["shares"], color=colour, marker="o", markersize=2.5, linestyle="none")
        for colour, (kind, noise) in zip(COLOURS, KINDS.items(), strict=False):
            rates = [k / 100 / noise(STD).reach for k in range(1, 100)]
            grown = [theory.growth_rate(noise(STD), rate, CURVATURE) for rate in rates]
            right.plot(rates, grown, color=colour, linewidth=1.2, linestyle="--", label=f"mu, {kind} noise")
            runs = [r for r in of(records, "geometric") if r["arguments"]["noise"] == kind and not seed_of(r)]
            points = [(run["arguments"]["rate"], run["growth"]) for run in runs]
            if points:
                right.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, linestyle="none")
        right.axhline(0, color="#6b7280", linewidth=0.8)
        frame(left, "absorbing walk", "time", "share alive")
        frame(right, f"geometric walk, curvature {CURVATURE:g}", "learning rate", "growth of log|w| per step")
        legend(figure)
        return figure

    def table(self, records: Results, scale: str) -> Table:
        """Return a table with one row per simulated walk."""
        rows = [
            (
                f"w0 {run['arguments']['start']:g}, rate {run['arguments']['rate']:g}",
                "steps of 1" if run["arguments"]["step"] else "continuous",
                str(run["arguments"]["walks"]),
                f"{run['shares'][-1]:.4f}",
                f"{run['expected'][-1]:.4f}",
                f"{worst([run]):.2f}",
            )
            for run in of(records, "absorbing")
        ]
        rows += [
            (
                f"{run['arguments']['noise']} noise, rate {run['arguments']['rate']:.3f}",
                f"{STEPS[-1]} steps",
                str(run["arguments"]["walks"]),
                f"{run['growth']:.5f}",
                f"{run['mu']:.5f}",
                f"{worst([run]):.2f}",
            )
            for run in of(records, "geometric")
        ]
        headings = ("walk", "time", "walks", "simulated", "closed form", "largest deviation, sigma")
        return Table(headings, tuple(rows), NOTES)

    def claims(self, records: Results) -> list[Claim]:
        """Proposition B.1 and its remarks, Lemmas B.2 and B.3."""
        return [survives(records), remarks(records), grows(records), settles(records), stable(records)]


def of(records: Results, walk: str) -> list[Result]:
    """The runs of one kind of walk."""
    return [record for record in records if record["labels"]["walk"] == walk]


def seed_of(run: Result) -> int:
    """Return the random seed of a recorded run."""
    return run["labels"]["seed"]


def worst(runs: Results) -> float:
    """The largest deviation from the closed form, in standard deviations."""
    return max(abs(value) for run in runs for value in run["deviations"])


def fits(runs: Results) -> tuple[str, bool | None]:
    """Is every count within the quantile for so many of them?"""
    count = sum(len(run["deviations"]) for run in runs)
    if not count:
        return "", None
    quantile = NormalDist().inv_cdf(1 - ERROR / (2 * count))
    return f"largest deviation {worst(runs):.2f} of {quantile:.2f} allowed, {count} counts", worst(runs) <= quantile


def survives(records: Results) -> Claim:
    """Prop. B.1, for the continuous walk."""
    text, holds = fits([run for run in of(records, "absorbing") if not run["arguments"]["step"]])
    return Claim(
        sentence="The share of absorbing walks alive at time t is erf(w0 / sqrt(2 eta t)) (Prop. B.1).",
        paper="proven",
        ours=text,
        holds=holds,
    )


def remarks(records: Results) -> Claim:
    """Death is certain in the end, sooner from near zero, sooner with noise; simulated."""
    last = {
        (run["arguments"]["start"], run["arguments"]["rate"]): run["shares"]
        for run in of(records, "absorbing")
        if not run["arguments"]["step"] and not seed_of(run)
    }
    whole = all(key in last for key in STARTS)
    text, holds = "", None
    if whole:
        falling = all(shares[-1] < shares[0] for shares in last.values())
        near, middle, far = (last[start, 0.1][-1] for start in (0.5, 1.0, 2.0))
        calm, noisy = last[1.0, 0.02][-1], last[1.0, 0.5][-1]
        text = f"at time 200 alive from 0.5, 1, 2: {near:.3f}, {middle:.3f}, {far:.3f}; at rate 0.02, 0.5: "
        text += f"{calm:.3f}, {noisy:.3f}"
        holds = falling and near < middle < far and noisy < middle < calm
    return Claim(
        sentence="Survival falls with time; a smaller start and a larger rate make death more likely.",
        paper="remarks (i) to (iii)",
        ours=text,
        holds=holds,
    )


def grows(records: Results) -> Claim:
    """Lemma B.2: the mean of log|w_t| is t mu."""
    text, holds = fits(of(records, "geometric"))
    return Claim(
        sentence="log|w_t| of the geometric walk grows by mu = E[log(1 - eta (h + zeta))] per step (Lemma B.2).",
        paper="proven",
        ours=text,
        holds=holds,
    )


def settles(records: Results) -> Claim:
    """Return the claim that walks stay within the band of Lemma B.2."""
    shares = [share for run in of(records, "geometric") for share in run["inside"]]
    return Claim(
        sentence=f"From t0 = var / (delta epsilon^2) on, at least {1 - DELTA:.0%} of the walks are within "
        f"exp(t (mu -+ {EPSILON:g})) (Lemma B.2).",
        paper="proven, without a value for t0",
        ours=f"at least {min(shares):.1%}, {len(shares)} counts" if shares else "",
        holds=min(shares) >= 1 - DELTA if shares else None,
    )


def stable(records: Results) -> Claim:
    """Lemma B.3: inside the range walks shrink, and outside it some grow."""
    runs = of(records, "geometric")
    inside, below = [], []
    for run in runs:
        noise = KINDS[run["arguments"]["noise"]](STD)
        found, edge = theory.stability_range(noise, CURVATURE), theory.stable_above(noise, CURVATURE)
        if found is not None and found[0] <= run["arguments"]["rate"] <= found[1]:
            inside.append(run["growth"])
        elif edge is not None and run["arguments"]["rate"] < edge:
            below.append(run["growth"])
    text = f"{len(inside)} rates inside, growth {max(inside):.4f} at most; " if inside else ""
    text += f"{len(below)} below the edge, growth {min(below):.5f} at least" if below else ""
    return Claim(
        sentence="At learning rates in the range of Lemma B.3 a direction of negative curvature shrinks, below the "
        "exact edge it grows.",
        paper="proven that such a range exists",
        ours=text,
        holds=max(inside) < 0 < min(below) if inside and below else None,
    )
