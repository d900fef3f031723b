"""What a study is: the jobs of one figure or table of the paper, its figure, its table, its claims."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from demp.experiments.studies.costs import StudyCost, of_training
from demp.experiments.sweep import cells
from demp.experiments.sweep.job import Job
from demp.files.checks import check_at_least, check_choice
from demp.files.results import Results
from demp.files.study import SCALES

SEEDS = {"smoke": 1, "cpu": 1, "paper": 3}
"""How many a study takes by default."""


VERDICTS = {True: "holds", False: "does not hold", None: "not enough data"}
NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the paper that numbers can contradict."""

    sentence: str
    """What is claimed, in the present tense, with its condition."""
    paper: str
    """The paper's number for it."""
    ours: str = ""
    """Our number for it; empty where our runs do not cover it."""
    holds: bool | None = None
    """Does the sentence hold in our numbers? None: they are not enough to say."""

    @property
    def verdict(self) -> str:
        """Return in words whether the claim holds."""
        return VERDICTS[self.holds]

    def __str__(self) -> str:
        return f"{self.verdict}: {self.sentence} Paper: {self.paper}. Ours: {self.ours or NONE}."

    def to_dict(self) -> dict[str, Any]:
        """Return the claim and its outcome as a dictionary ready for JSON."""
        return asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True)
class Table:
    """Cells as a reader sees them."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below."""

    def markdown(self) -> str:
        """For a file that people read."""
        notes = "\n".join(f"* {note}" for note in self.notes)
        return cells.markdown(self.headings, self.rows) + (f"\n\n{notes}" if notes else "")


class Study(ABC):
    """One figure or table of the paper, or what its text says without one.

    A subclass with an ``id``, in a file of this package, is in the registry.
    """

    id: ClassVar[str]
    """fig1 ... fig17, table1 ... table3, or a word."""
    title: ClassVar[str]
    """What it shows, in a line."""
    section: ClassVar[str]
    """Where the paper has it, for example ``Sec. 4.1``."""
    remark: ClassVar[str] = ""
    """Where our plan differs from the paper's and why; empty where it does not."""

    @abstractmethod
    def jobs(self, scale: str, seed: int) -> list[Job]:
        """The jobs of one seed, the most telling ones first, so that a budget that ends early leaves a figure."""

    def figure(self, records: Results, scale: str) -> Any:
        """A matplotlib figure of at least one record; None where the study is a table only."""
        return None

    @abstractmethod
    def table(self, records: Results, scale: str) -> Table:
        """The numbers behind the figure, or the paper's table with ours beside it."""

    @abstractmethod
    def claims(self, records: Results) -> list[Claim]:
        """The same claims whatever there is; without the records that one needs, its ``holds`` is None."""

    def data(self, scale: str) -> tuple[str, ...]:
        """The data sets that its jobs read."""
        return tuple(dict.fromkeys(name for one in self.jobs(scale, 0) if (name := data_read(one))))

    def cost(self, jobs: Sequence[Job], scale: str) -> StudyCost:
        """What the jobs cost before they are run."""
        return of_training(jobs, scale)

    def plan(self, scale: str, seeds: int | None = None) -> list[Job]:
        """All its jobs, each once, seed by seed.

        Raises:
            UsageError: there is no such scale, or fewer than one seed.
        """
        check_scale(scale)
        if seeds is not None:
            check_at_least("seeds", seeds, 1)
        found: dict[str, Job] = {}
        for seed in range(SEEDS[scale] if seeds is None else seeds):
            for one in self.jobs(scale, seed):
                found.setdefault(one.identity, one)
        return list(found.values())


def check_scale(scale: str) -> None:
    """Make sure that it is one of the three scales.

    Raises:
        UsageError: it is not.
    """
    check_choice("scale", scale, SCALES)


def data_read(one: Job) -> str:
    """The data set that a job reads: that of its config, or its argument ``data``; nothing if it reads none."""
    config = one.arguments.get("config")
    name = config["data"]["name"] if isinstance(config, dict) else one.arguments.get("data")
    return name if isinstance(name, str) else ""


def job(work: str, arguments: Mapping[str, Any], labels: Mapping[str, Any], stem: str) -> Job:
    """A job whose name follows from what it does, so that two studies that ask for the same ask for one."""
    plain = json.loads(json.dumps(arguments))
    identity = Job(name=stem, work=work, arguments=plain).identity
    return Job(name=f"{stem}-{identity[:8]}", work=work, arguments=plain, labels=dict(labels))
