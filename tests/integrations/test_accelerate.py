"""Accelerate: the plain loop's run to the bit, in one go and resumed from ``save_state``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker

import demp
from demp.errors import UsageError
from demp.integrations import accelerate as integration
from integration_runs import (
    ACCUMULATE,
    CLIP,
    EPOCHS,
    JUDGES,
    MIDDLE,
    STEPS,
    Stop,
    check_same_run,
    interrupted,
    loader,
    loss_of,
    net,
    optimizer_of,
    options,
    plain,
    scheduler_of,
)
from residuals import cut_apart, network


class Notes(GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory, main_process_only = "notes", False, True

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[int, dict[str, Any]] = {}

    @property
    def tracker(self) -> Any:
        return self.lines

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None
        self.lines[step] = values


class Run:
    """A training script with Accelerate."""

    def __init__(self, judge: str, dtype: torch.dtype = torch.float64, precision: str = "no", **changes: Any) -> None:
        AcceleratorState._reset_state(True)
        self.notes = Notes()
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=ACCUMULATE, mixed_precision=precision, log_with=self.notes,
            step_scheduler_with_optimizer=False,
        )  # fmt: skip
        self.accelerator.init_trackers("run")
        self.net = net(dtype)
        optimizer = optimizer_of(self.net)
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            self.net, optimizer, loader(dtype), scheduler_of(optimizer)
        )
        given = {"total_steps": STEPS, **options(judge, dtype), **changes}
        self.pruner = integration.attach(self.accelerator, self.model, self.optimizer, **given)

    def go(self, save: Path | None = None, resume: Path | None = None) -> None:
        accelerator = self.accelerator
        if resume is not None:
            accelerator.load_state(str(resume))
        for _ in range(self.pruner.step * EPOCHS // STEPS, EPOCHS):
            for x, y in self.loader:
                with accelerator.accumulate(self.model):
                    accelerator.backward(loss_of(self.model(x), y))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
                    self.optimizer.step()
                    if accelerator.sync_gradients:
                        self.scheduler.step()
                    self.optimizer.zero_grad()
                accelerator.log(self.pruner.metrics(), step=self.pruner.step)
            if save is not None and self.pruner.step == MIDDLE:
                accelerator.save_state(str(save))
                raise Stop
        self.pruner.finish()


@pytest.mark.parametrize("judge", JUDGES)
def test_the_same_run_as_the_plain_loop(judge: str):
    run = Run(judge)
    run.go()
    check_same_run(run.pruner, plain(judge), run.net)
    assert run.notes.lines[STEPS] == run.pruner.metrics()
    assert len(run.notes.lines) == 1 + STEPS


def test_the_same_run_under_autocast():
    run = Run("batches", torch.float32, precision="bf16")
    run.go()
    check_same_run(run.pruner, plain("batches", torch.float32, autocast=torch.bfloat16), run.net)


@pytest.mark.parametrize("judge", JUDGES)
def test_resumed_in_mid_run(judge: str, tmp_path: Path):
    first = Run(judge)
    with interrupted():
        first.go(save=tmp_path / "state")
    second = Run(judge)
    second.go(resume=tmp_path / "state")
    check_same_run(second.pruner, plain(judge), second.net, resumed_at=MIDDLE)


def test_a_folder_of_another_run_is_refused_before_weights_are_loaded(tmp_path: Path):
    first = Run("window")
    with interrupted():
        first.go(save=tmp_path)
    other = Run("window")
    before = {name: tensor.clone() for name, tensor in other.net.state_dict().items()}
    (tmp_path / "demp.pt").unlink()
    with pytest.raises(UsageError, match=r"holds no demp\.pt: it was written without the pruner"):
        other.go(resume=tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.net.state_dict().items())


def test_without_the_pruner_a_cut_checkpoint_does_not_load(tmp_path: Path):
    first = Run("window")
    with interrupted():
        first.go(save=tmp_path)
    other = Run("window")
    other.accelerator._load_model_state_pre_hook.clear()
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.go(resume=tmp_path)


def test_a_wrapped_module_is_refused():
    run = Run("window")
    with pytest.raises(UsageError, match="the trainer runs the network inside DataParallel"):
        integration.attach(
            run.accelerator, torch.nn.DataParallel(run.net), run.optimizer, total_steps=STEPS, **options("window")
        )


def test_several_processes_are_refused():
    run = Run("window")
    run.accelerator.state.num_processes = 2
    with pytest.raises(UsageError, match="this integration works in one process and there are 2"):
        integration.attach(run.accelerator, run.model, run.optimizer, total_steps=STEPS, **options("window"))


def test_the_method_is_asked_for_by_name():
    run = Run("window", method="demp")
    assert isinstance(run.pruner, demp.Pruner)
    with pytest.raises(UsageError, match="unknown method 'dump'; did you mean 'demp'"):
        Run("window", method="dump")


def test_the_wrapper_of_mixed_precision_is_taken_off_a_pruned_model():
    AcceleratorState._reset_state(True)
    model, inputs = network()
    cut_apart(model, inputs)
    x = inputs[0].float()
    before = model.float()(x)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model)
    assert not torch.equal(prepared(x), before)
    assert torch.equal(accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)(x), before)
