"""The reference training loop: when to log, test, cut, checkpoint and stop.

>>> from demp.train import DataConfig, ModelConfig, TrainConfig, train
>>> result = train(TrainConfig(model=ModelConfig(name="mlp"), data=DataConfig(name="digits"), steps=20))
>>> result.summary["method"], result.summary["steps"]
('demp', 20)
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import demp
from demp.errors import UsageError
from demp.files.run import SECONDS
from demp.parallel import Context
from demp.train import checkpoint, launch, sinks, torchrun
from demp.train.config import TrainConfig
from demp.train.defaults import as_meant, written_out
from demp.train.losses import TrainingDiverged
from demp.train.models.trust import raise_if_untrusted
from demp.train.observer import Observer
from demp.train.recovery import last_state
from demp.train.run import Run, model_arguments, resolve_device
from demp.train.runfolder import RunFolder
from demp.train.stopping import ASKED, TrainingInterrupted, stop_signals
from demp.train.summary import summarise

TIMED_STEPS = 100
"""Steps over which the step time at the end of a run is measured."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind."""

    model: nn.Module
    pruner: Any
    """None after dense training."""
    summary: dict[str, Any]


def train(config: TrainConfig, *, observers: Sequence[Observer] = ()) -> TrainResult:
    """Train as ``config`` says; with ``config.out`` the run folder holds all there is to know.

    Flushes denormal numbers from here on: moments of dead neurons decay through them, and some CPUs
    process them slowly. torch's threads take that setting from the thread that starts them, so call
    this, or `torch.set_flush_denormal`, before torch's first large operation.

    Under ``torchrun`` the processes share every batch; the first of them alone watches and writes. One that dies is
    started again by ``torchrun --max-restarts``, and then the run goes on from its last checkpoint.

    Raises:
        UsageError: the config cannot be carried out here, or the run folder holds something else.
        TrainingDiverged: the loss or a weight is no longer a number.
        TrainingInterrupted: a signal or an observer asked to stop; `resume` goes on.
    """
    torch.set_flush_denormal(True)
    config = replace(written_out(config), device=resolve_device(config.device))
    observers = [*observers, *sinks.watchers(config)]
    with launch.joined(config.device) as context, ExitStack() as held:
        if context.any_of(torchrun.restarted()) and _is_same_run(config):
            return _continued(config.out, observers, context)
        run = Run(config, context)
        folder = None
        with context.together():
            for observer in observers:
                observer.built(run)
            if config.out and context.is_main_process:
                held.enter_context(RunFolder(config.out).held())
                folder = RunFolder.create(config.out, run.config)
        return _Session(run, folder, observers).go()


def resume(path: str | Path, *, observers: Sequence[Observer] = (), trust: bool = False) -> TrainResult:
    """Continue the run in folder ``path`` from its last checkpoint, bit-equal on a CPU.

    ``trust`` lets the folder name a model of your own (``module:function``), whose code building it runs.

    Raises:
        UsageError: there is no such run, it is complete, or its config, data or torch are others.
        CheckpointError: no checkpoint is as it was written; see `demp.train.recovery`.
        TrainingDiverged: as in `train`.
        TrainingInterrupted: as in `train`.
    """
    torch.set_flush_denormal(True)  # as in train
    folder = RunFolder.open(path)
    if not trust:
        model = folder.config().model
        raise_if_untrusted({"name": model.name, **model.options}, folder.config_file)
    observers = [*observers, *sinks.watchers(replace(folder.config(), out=str(path)))]
    with launch.joined(resolve_device(folder.config().device)) as context:
        if folder.summary() is not None and not context.any_of(torchrun.restarted()):
            raise UsageError(f"the run {path} is complete; test it with: demp eval {path}")
        return _continued(path, observers, context)


def _continued(path: str | Path, observers: Sequence[Observer], context: Context) -> TrainResult:
    """The run from its last checkpoint on, or from the start if there is none."""
    with ExitStack() as held:
        return _resumed(path, observers, context, held)


def _resumed(path: str | Path, observers: Sequence[Observer], context: Context, held: ExitStack) -> TrainResult:
    with context.together():
        folder = RunFolder.open(path)
        if context.is_main_process:
            held.enter_context(folder.held())
        config = folder.config()
        found = last_state(folder)
        state = found[1] if found else None
        if state is not None:
            _check_same(path, config, state)
    remedy = "the run folder must be on a disk that all processes share"
    step = None if state is None else state["step"]
    context.raise_if_disagreement("found another checkpoint", step, remedy=remedy, kind=UsageError)
    run = Run(config, context, resume=state is not None)
    if state is not None:
        run.load_state_dict(state["step"], state)
    if not context.is_main_process:
        return _Session(run, None, observers).go()
    folder.rewind(state["lines"] if state else {})
    return _Session(run, folder, observers).go()


def _is_same_run(config: TrainConfig) -> bool:
    """Does the run folder hold this very run?"""
    folder = RunFolder(config.out)
    return bool(config.out) and folder.config_file.is_file() and not folder.config().changes(config)


def _check_same(path: str | Path, config: TrainConfig, state: dict[str, Any]) -> None:
    if state["torch"] != torch.__version__:
        raise UsageError(
            f"the run {path} was trained with torch {state['torch']}, this is torch "
            f"{torch.__version__}; install that version to resume it exactly, or start a new run"
        )
    changes = TrainConfig.from_dict(as_meant(state["config"])).changes(config)
    if changes:
        raise UsageError(
            f"the config of the run {path} was changed after its checkpoint: "
            f"{'; '.join(changes)}; restore config.toml, or start a new run"
        )


class _Session:
    """One process's share of a run, from its first or next step to its summary."""

    def __init__(self, run: Run, folder: RunFolder | None, observers: Sequence[Observer]) -> None:
        self.run, self.folder = run, folder
        self.observers = observers if run.context.is_main_process else ()
        self.recent: deque[float] = deque(maxlen=TIMED_STEPS)
        self.window: list[float] = []

    def go(self) -> TrainResult:
        try:
            for observer in self.observers:
                observer.start(self.run)
            self._cuts(self.run.before)
            if not self.run.step:
                self._look()
            with stop_signals() as stop:
                self._steps(stop)
                return self._finish()
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}; {self._last_good()}") from error
        finally:
            for observer in self.observers:
                observer.close()

    def _steps(self, stop: Callable[[], int]) -> None:
        run, every = self.run, self.run.config
        batches = run.data.train_batches(run.step, run.total_steps)
        while run.step < run.total_steps:
            began = time.perf_counter()
            reports = run.train_step(*next(batches))
            seconds = time.perf_counter() - began
            run.seconds += seconds
            self.recent.append(seconds)
            self.window.append(seconds)
            for observer in self.observers:
                observer.step(run, seconds)
            last = run.step == run.total_steps
            own = stop() or ASKED * any(observer.asks_to_stop() for observer in self.observers)
            asked = max(run.context.gathered(own))  # a signal reaches the processes in different steps
            self._cuts(reports)
            self._look()
            if last or run.step % every.log_every_steps == 0:
                self._log()
            if not last and every.eval_every_steps and run.step % every.eval_every_steps == 0:
                self._record({"step": run.step, **run.evaluate()})
            if last or asked or run.step % every.checkpoint_every_steps == 0:
                self._checkpoint()
            if asked:
                raise TrainingInterrupted(self._where_stopped(), 128 + asked)

    def _log(self) -> None:
        run = self.run
        run.losses.share(run.context)
        losses, run.losses.values = run.losses.values, []
        typical = statistics.median(self.window)
        self.window.clear()
        self._record(
            {
                "step": run.step,
                "train/loss": statistics.fmean(losses),
                "train/lr": run.optimizer.param_groups[0]["lr"],
                **run.metrics(),
                SECONDS: run.seconds,
                "time/step_ms": 1e3 * typical,
                "time/images_per_s": run.config.batch_size / typical,
            }
        )

    def _look(self) -> None:
        """A line about dead neurons where one is due."""
        run = self.run
        if run.monitor.is_due(run.step):
            self._record({"step": run.step, **run.monitor.look(run.step)})

    def _record(self, record: dict[str, Any]) -> None:
        if self.folder is not None:
            self.folder.log(record)
        for observer in self.observers:
            observer.log(record)

    def _cuts(self, reports: Sequence[Any]) -> None:
        for record in (report.to_dict() for report in reports):
            if self.folder is not None:
                self.folder.log_cut(record)
            for observer in self.observers:
                observer.cut(record)

    def _checkpoint(self) -> None:
        run = self.run
        run.check_finite()
        run.losses.share(run.context)
        if self.folder is None:
            return
        about = {
            "torch": str(torch.__version__),
            "config": run.config.to_dict(),
            "lines": self.folder.lines(),
            "lines_sha256": self.folder.hashes(),
        }
        checkpoint.save(self.folder.checkpoints, run.step, {**about, **run.state_dict()})

    def _last_good(self) -> str:
        remedy = "lower the learning rate, the strength or the noise"
        found = checkpoint.newest(self.folder.checkpoints) if self.folder else None
        return f"stopped; {f'the last good checkpoint is {found}; ' if found else ''}{remedy}"

    def _where_stopped(self) -> str:
        at = f"interrupted after step {self.run.step} of {self.run.total_steps}"
        return f"{at}; continue with: demp resume {self.folder.path}" if self.folder else at

    def _finish(self) -> TrainResult:
        """Last cut, test on the whole test set, artifact, summary."""
        run, folder = self.run, self.folder
        began = time.perf_counter()
        reports = run.finish()
        run.seconds += time.perf_counter() - began
        self._cuts(reports)
        scores = run.evaluate()
        self._record({"step": run.step, **scores, **run.metrics()})
        if folder is not None:
            save_model(run, folder.model)
        step_seconds = statistics.median(self.recent) if self.recent else 0.0
        summary = summarise(run, scores, step_seconds, folder.model if folder else None)
        if folder is not None:
            folder.write_summary(summary)
        for observer in self.observers:
            observer.end(summary)
        return TrainResult(run.model, run.pruner, summary)


def save_model(run: Run, path: Path) -> None:
    """The artifact: weights, architecture, and how to build and feed the network."""
    builder = {
        "model": model_arguments(run.config.model, run.data.facts),
        "data": run.data.facts.to_dict(),
    }
    demp.save(run.model, path, example_inputs=run.example, builder=builder)
