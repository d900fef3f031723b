"""What watches a run: the progress view, the sinks, and what may ask a run to stop."""

from typing import Any

from demp.train.run import Run


class Observer:
    """Watches a run. Every method does nothing by default."""

    def built(self, run: Run) -> None:
        """A new run is ready, and nothing of it is written yet; an error raised here leaves nothing behind."""

    def start(self, run: Run) -> None:
        """The run is about to begin or to continue."""

    def step(self, run: Run, seconds: float) -> None:
        """A training step is done; it took ``seconds``."""

    def log(self, record: dict[str, Any]) -> None:
        """A line of metrics was written."""

    def cut(self, record: dict[str, Any]) -> None:
        """The pruner checked, and perhaps cut."""

    def end(self, summary: dict[str, Any]) -> None:
        """React to the end of the run; by default do nothing."""

    def asks_to_stop(self) -> bool:
        """Shall the run stop after this step, with a checkpoint?"""
        return False

    def close(self) -> None:
        """The process leaves the run, for whatever reason."""
