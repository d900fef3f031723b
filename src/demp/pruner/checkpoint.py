"""A pruner's state as plain values: what a checkpoint holds, and how a run goes on from it."""

import logging
from typing import Any

from demp.pruner.checks import Checks
from demp.pruner.length import compare_plans
from demp.pruner.regularizer import Regularizer
from demp.pruner.run import PruningRun
from demp.surgery.record import described_inputs, remember_inputs

STATE_VERSION = 1
logger = logging.getLogger("demp")


def saved_state(run: PruningRun, regularizer: Regularizer, checks: Checks) -> dict[str, Any]:
    """Everything that must survive a restart: tensors, numbers and strings only."""
    return {
        "version": STATE_VERSION,
        "method": run.method.name,
        "step": run.step,
        "seed": run.seed,
        "total_steps": run.total_steps,
        "gone": run.shrinking.state.removed.clone(),
        "method_state": run.method.state_dict(),
        "judge": run.detector.state_dict(with_inputs=run.step >= run.total_steps),
        "masks": run.masks.state_dict(),
        "cuts": run.shrinking.cuts,
        "latencies": run.meter.state_dict(),
        "inputs": described_inputs(run.shrinking.model),
        **regularizer.state_dict(),
        **checks.state_dict(),
    }


def restore(state: dict[str, Any], run: PruningRun, regularizer: Regularizer, checks: Checks) -> None:
    """Give the model, and what must follow it, the widths of the saved run, and go on at its step.

    Raises:
        UsageError: the state is of another method or model.
    """
    as_planned = compare_plans(state, run.method.name, run.total_steps, run.shrinking.context)
    run.shrinking.replay(state["gone"], run.detector.proof())
    run.step, run.seed = int(state["step"]), int(state["seed"])
    run.method.load_state_dict(state["method_state"])
    run.masks.load_state_dict(state["masks"])
    run.shrinking.cuts = int(state["cuts"])
    regularizer.load_state_dict(state)
    checks.load_state_dict(state, as_planned=as_planned)
    run.meter.load_state_dict(state.get("latencies", {}))
    if state.get("inputs") is not None:
        remember_inputs(run.shrinking.model, state["inputs"])
    run.detector.seed = run.seed
    run.detector.load_state_dict(state["judge"], run.shrinking.state)


def say_detached(run: PruningRun) -> None:
    """The pruner was taken off before the end of its run."""
    if run.shrinking.context.is_main_process:
        logger.info("detached at step %d of %d: nothing is pushed or removed from here on", run.step, run.total_steps)


def say_ended(run: PruningRun) -> None:
    """A pruner that has ended took a state: it watches nothing, and says so where that state is not the run's end."""
    run.close()
    if run.step < run.total_steps and run.shrinking.context.is_main_process:
        logger.warning(
            "this pruner has ended (finish() or detach()): model and optimizer have the widths of step %d of %d, and "
            "nothing is pushed or removed from here on. To go on with the run make a new pruner and load the state "
            "into that one",
            *(run.step, run.total_steps),
        )
