"""How a person watches a run: one live line on a terminal, plain lines elsewhere."""

import sys
from typing import Any, TextIO

from demp.train.extras import need
from demp.train.observer import Observer
from demp.train.run import Run

SHOWN = (
    ("strength", "demp/strength", "{:.1e}"),
    ("noise", "demp/noise_std", "{:.1e}"),
    ("neurons", "prune/neurons_alive", "{:,.0f}"),
    ("parameters", "cost/parameters", "{:,.0f}"),
    ("masked", "prune/weights_masked", "{:,.0f}"),
)
"""Label, metric and format of what a pruner reports, where it is not zero."""
SMOOTHING = 0.1


def progress(title: str = "", *, file: TextIO | None = None) -> Observer:
    """The view that fits where the output goes."""
    stream = sys.stdout if file is None else file
    return LiveProgress(title, stream) if stream.isatty() else PlainProgress(title, stream)


def describe(metrics: dict[str, Any]) -> str:
    """Strength, noise, neurons alive, parameters and masked weights, as far as there are any."""
    return "  ".join(f"{label} {form.format(metrics[name])}" for label, name, form in SHOWN if metrics.get(name))


class PlainProgress(Observer):
    """One line per line of metrics, for logs and pipes."""

    def __init__(self, title: str = "", file: TextIO | None = None) -> None:
        self.title, self.file = title, sys.stdout if file is None else file
        self.total = 0

    def _say(self, text: str) -> None:
        print(f"{self.title}  {text}" if self.title else text, file=self.file, flush=True)

    def start(self, run: Run) -> None:
        """How long the run is, and what it starts from."""
        self.total = run.total_steps
        cost = run.dense_cost
        self._say(
            f"step {run.step} of {run.total_steps}  neurons {cost.neurons:,}  "
            f"parameters {cost.parameters:,}  on {run.device}"
        )

    def log(self, record: dict[str, Any]) -> None:
        """Print one line for a record of metrics."""
        at = f"step {record['step']} of {self.total}"
        if "eval/top1" in record:
            self._say(f"{at}  {record['split']} accuracy {record['eval/top1']:.2%}")
            return
        if "dead/share" in record:
            saturated = f", saturated {record['saturated/share']:.1%}" if "saturated/share" in record else ""
            self._say(f"{at}  dead neurons {record['dead/share']:.1%}{saturated}")
            return
        pace = f"{record['time/step_ms']:.1f} ms per step"
        self._say(f"{at}  loss {record['train/loss']:.4f}  {describe(record)}  {pace}")


class LiveProgress(Observer):
    """A bar, and under it the numbers of the moment; test results stay above."""

    def __init__(self, title: str, file: TextIO) -> None:
        rich = need("rich.progress")
        self.title, self.pace = title, 0.0
        self.bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=32),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[pace]}"),
            rich.TimeRemainingColumn(),
        )
        self.task: Any = None
        self.numbers = ""
        self.live = need("rich.live").Live(
            console=need("rich.console").Console(file=file),
            get_renderable=self._image,
            refresh_per_second=8,
        )

    def _image(self) -> Any:
        return need("rich.console").Group(self.bar, self.numbers)

    def start(self, run: Run) -> None:
        """Show the progress bar at the run's current step."""
        self.task = self.bar.add_task(self.title, total=run.total_steps, completed=run.step, pace="")
        self.live.start()

    def step(self, run: Run, seconds: float) -> None:
        """Advance the bar by a step and refresh its numbers."""
        self.pace = seconds if not self.pace else self.pace + SMOOTHING * (seconds - self.pace)
        loss = f"loss {run.losses.values[-1]:.3f}" if run.losses.values else ""
        self.numbers = f"{loss}  {describe(run.metrics())}"
        self.bar.update(self.task, completed=run.step, pace=f"{1e3 * self.pace:.0f} ms/step")

    def log(self, record: dict[str, Any]) -> None:
        """Keep test results on the screen."""
        if "eval/top1" in record:
            at = f"{self.title}  step {record['step']}".strip()
            self.live.console.print(f"{at}  {record['split']} accuracy {record['eval/top1']:.2%}")

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self.live.stop()
