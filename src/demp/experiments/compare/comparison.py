"""A comparison is a sweep over methods: dense must be possible, and all runs share one base."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from demp.experiments.compare.plan import Planned
from demp.experiments.sweep import Sweep
from demp.train import TrainConfig
from demp.train.config import DENSE
from demp.train.extras import need
from demp.train.run import resolve_device

WHAT = "a comparison"


class Comparison(Sweep):
    """The runs of a plan in one folder."""

    def __init__(self, path: str | Path, base: TrainConfig, runs: Sequence[Planned], *, retry: bool = False) -> None:
        need("matplotlib", "report")  # now rather than after the last run
        device = resolve_device("auto") if base.device == "auto" else base.device
        self.runs = [replace(run, config=replace(run.config, device=device)) for run in runs]
        shared = replace(base, device=device).merged({"method": {"name": DENSE}, "seed": 0, "out": ""})
        super().__init__(
            path,
            [run.job() for run in self.runs],
            what=WHAT,
            shared=shared.to_dict(),
            essential=[run.name for run in self.runs if run.method == DENSE],
            retry=retry,
        )
