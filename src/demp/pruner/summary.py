"""What a run has come to: before and after, its checks, what stayed and why, what is next; and how cuts are shown."""

import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from demp.analysis.refusals import by_reason
from demp.graph import GraphState, NeuronGraph
from demp.pruner.ends import advice_at_end, is_skipped
from demp.pruner.length import Pushes
from demp.pruner.past import Past
from demp.surgery import CutReport

logger = logging.getLogger("demp")
DRIFT_TO_TELL = 1e-3
"""Cuts that changed the outputs by less, over their scale, need no word."""


@dataclass(frozen=True)
class Summary:
    """A run as it is now; each pair is before and after."""

    method: str
    model: str
    step: int
    total_steps: int
    checks: int
    cuts: int
    neurons: tuple[int, int]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    layers: tuple[tuple[str, int, int], ...]
    """Name, neurons that are left, neurons of the dense model."""
    remarks: tuple[str, ...]
    """What was not removed and why, and what the checks noted."""
    ahead: str
    """What comes next, or would have come; empty if nothing."""

    @property
    def removed(self) -> int:
        """Return the number of neurons that were removed."""
        return self.neurons[0] - self.neurons[1]

    def head(self) -> str:
        """One line: the method, the model, how far, what is left."""
        return (
            f"{self.method} on {self.model}: step {self.step:,} of {self.total_steps:,}, "
            f"{counted(self.checks, 'check')}, {counted(self.cuts, 'cut')}, {self.neurons[1]:,} of "
            f"{counted(self.neurons[0], 'neuron')} left"
        )

    def lines(self) -> list[str]:
        """The lines about the run as a whole, without its layers."""
        pairs = (("neurons", self.neurons), ("parameters", self.parameters), ("FLOPs", self.flops))
        return [
            self.head(),
            *(f"  {name:<11}{change(*pair)}" for name, pair in pairs),
            *(f"  {remark}" for remark in self.remarks),
            *([f"  {self.ahead}"] if self.ahead else []),
        ]

    def __str__(self) -> str:
        layers = [f"  {name}: {left} of {width} neurons" for name, left, width in self.layers]
        return "\n".join([*self.lines(), *layers])


@dataclass(frozen=True)
class RunReport(CutReport):
    """The last check of a run, and what the whole run came to: that is what it prints."""

    run: Summary | None = None

    def to_dict(self) -> dict[str, Any]:
        """The last check, as plain values."""
        return self.check().to_dict()

    def check(self) -> CutReport:
        """Return the report of the last check alone."""
        return CutReport(**{field.name: getattr(self, field.name) for field in fields(CutReport)})

    def __str__(self) -> str:
        whole = [] if self.run is None else self.run.lines()
        last = f"skipped at step {self.step}" if is_skipped(self) else self.check().outcome()
        return "\n".join([*whole, f"  last check: {last}"])


def with_run(report: CutReport, run: Summary) -> RunReport:
    """The report of the last check with the summary of the run."""
    return RunReport(**{field.name: getattr(report, field.name) for field in fields(CutReport)}, run=run)


def summary_of(pruner: Any, past: Past, cuts: int) -> Summary:
    """A pruner's run as it is now."""
    step, total_steps, method = pruner.step, pruner.total_steps, pruner.method
    return Summary(
        method=method.name,
        model=type(pruner.model).__name__,
        step=step,
        total_steps=total_steps,
        checks=past.checks,
        cuts=cuts,
        remarks=(
            *remarks_of(pruner.graph, past, pruner.history[-1] if pruner.history else None),
            *(advice_at_end(pruner, past, cuts) if pruner.finished else ()),
        ),
        ahead=ended(step, total_steps, method.unfinished(step))
        if pruner.finished
        else next_check(step, total_steps, method.is_due, at_work=pruner.at_work),
        **totals(pruner.model, pruner.state),
    )


def metrics_of(pruner: Any, pushes: Pushes, cuts: int) -> dict[str, float]:
    """What a log line needs; cheap."""
    penalty, noise = pushes.penalty(pruner.step), pushes.noise(pruner.step)
    alive, total = pruner.state.neurons, pruner.graph.dense.neurons
    return {
        "demp/strength": penalty.strength if penalty else 0.0,
        "demp/noise_std": noise.std if noise else 0.0,
        "prune/neurons_alive": float(alive),
        "prune/neuron_sparsity": 1.0 - alive / total,
        "prune/cuts": float(cuts),
        "prune/weights_masked": float(pruner.masks.masked()),
        "cost/parameters": float(sum(p.numel() for p in pruner.model.parameters())),
        "cost/flops": float(pruner.flops),
    }


def totals(model: nn.Module, now: GraphState) -> dict[str, Any]:
    """Before and after of a network, whole and by layer."""
    names, dense = {name for name, _ in model.named_parameters()}, now.graph.dense
    return {
        "neurons": (dense.neurons, now.neurons),
        "parameters": (dense.parameters(names), now.parameters(names)),
        "flops": (dense.flops(), now.flops()),
        "layers": tuple((name, now.widths[name], width) for name, width in dense.widths.items()),
    }


def remarks_of(graph: NeuronGraph, past: Past, last: CutReport | None) -> tuple[str, ...]:
    """What was not removed and why; of the notes of all checks those that came again, and those of the last."""
    refused = Counter({why: sum(r.neurons for r in found) for why, found in by_reason(graph.refused).items()})
    found = [f"not offered: {counted(number, 'neuron')}, {reason}" for reason, number in refused.most_common(3)]
    if len(refused) > 3:
        rest = sum(number for _, number in refused.most_common()[3:])
        found.append(f"not offered: {counted(rest, 'neuron')} for {len(refused) - 3} other reasons (demp.inspect)")
    if last is not None:
        found += [f"dead, but kept: {name}, {reason}" for name, reason in last.held.items()]
    if past.drift > DRIFT_TO_TELL:
        change = f"changed the outputs by {past.drift:.1e} of their scale, the most of all"
        found.append(f"drift: {'a cut' if past.drift_at is None else f'the cut at step {past.drift_at}'} {change}")
    for name, most in past.copies.items():
        if most > DRIFT_TO_TELL:
            found.append(f"drift of the copy {name}: one cut changed its outputs by {most:.1e} of their scale")
    for note, times in past.notes.items():
        if times > 1 or (last is not None and note in last.notes):
            found.append(f"note: {note}" + (f" ({times} of {past.checks} checks)" if times > 1 else ""))
    return tuple(found)


def next_check(step: int, total_steps: int, due: Callable[[int], bool], *, at_work: bool) -> str:
    """A sentence that says when the pruner makes its next check."""
    if not at_work:
        return f"detached at step {step:,} of {total_steps:,}: nothing is pushed or checked any more"
    found = next((s for s in range(step + 1, total_steps + 1) if due(s)), None)
    if found is None:
        return "next: the last check, in finish()"
    return f"next: a check at step {found:,}"


def ended(step: int, total_steps: int, unfinished: str) -> str:
    """What a run that ended before its last step has missed."""
    if step >= total_steps:
        return ""
    return f"ended at step {step:,} of {total_steps:,}" + (f": {unfinished}" if unfinished else "")


def show(report: CutReport, advice: str, noted: bool, *, on_stderr: bool) -> None:
    """Say what a check did: by the logger, and a cut on stderr where no handler listens to the logger."""
    if advice:
        logger.warning("%s", advice)
    elif report.happened or noted:
        logger.info("%s", report)
        wanted = logger.level <= logging.INFO > logging.root.manager.disable
        if on_stderr and report.happened and wanted and not logger.hasHandlers():
            print(f"demp: {report.outcome()}", file=sys.stderr)


def counted(number: int, noun: str) -> str:
    """Format a count with its noun: 1 cut, 2 cuts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def change(before: int, after: int) -> str:
    """64 -> 44 (31.2 % removed)."""
    share = f"{100 * (1 - after / before):.1f} % removed" if before else "none"
    return f"{before:,} -> {after:,} ({share})"
