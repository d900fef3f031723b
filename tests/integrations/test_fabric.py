"""Fabric: the plain loop's run to the bit, in one go and resumed from ``fabric.save``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from demp.errors import UsageError
from demp.integrations import fabric as integration
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
    scaler_that_overflows,
    scheduler_of,
)
from shim import install_torchvision_shim

install_torchvision_shim()

from lightning.fabric import Fabric  # noqa: E402
from lightning.fabric.loggers import CSVLogger  # noqa: E402
from lightning.fabric.plugins import MixedPrecision  # noqa: E402

FLOAT = torch.float32
"""Fabric hands the outputs of double precision on in single precision."""


class Run:
    """A training script with Fabric."""

    def __init__(self, judge: str, precision: Any = "32-true", **fabric: Any) -> None:
        self.fabric = Fabric(accelerator="cpu", devices=1, precision=precision, **fabric)
        self.net = net(FLOAT)
        optimizer = optimizer_of(self.net)
        self.scheduler = scheduler_of(optimizer)
        self.model, self.optimizer = self.fabric.setup(self.net, optimizer)
        self.loader = self.fabric.setup_dataloaders(loader(FLOAT))
        self.pruner = integration.attach(
            self.fabric, self.model, self.optimizer, total_steps=STEPS, **options(judge, FLOAT)
        )
        self.state = {
            "note": "", "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
            "pruner": self.pruner,
        }  # fmt: skip

    def go(self, save: Path | None = None, resume: Path | None = None) -> None:
        if resume is not None:
            assert integration.load(self.fabric, resume, self.state) == {}
        for _ in range(self.pruner.step * EPOCHS // STEPS, EPOCHS):
            for index, (x, y) in enumerate(self.loader):
                last = (index + 1) % ACCUMULATE == 0
                with self.fabric.no_backward_sync(self.model, enabled=not last):
                    self.fabric.backward(loss_of(self.model(x), y) / ACCUMULATE)
                if last:
                    self.fabric.clip_gradients(self.model, self.optimizer, max_norm=CLIP, error_if_nonfinite=False)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
                    self.fabric.log_dict(self.pruner.metrics(), step=self.pruner.step)
            if save is not None and self.pruner.step == MIDDLE:
                self.state["note"] = "in the middle"
                self.fabric.save(save, self.state)
                raise Stop
        self.pruner.finish()


@pytest.mark.parametrize("judge", JUDGES)
def test_the_same_run_as_the_plain_loop(judge: str):
    run = Run(judge)
    run.go()
    check_same_run(run.pruner, plain(judge, FLOAT), run.net)


def test_the_same_run_under_autocast():
    run = Run("batches", "bf16-mixed")
    run.go()
    check_same_run(run.pruner, plain("batches", FLOAT, autocast=torch.bfloat16), run.net)


def test_the_same_run_with_a_scaler_that_skips_steps():
    run = Run("batches", None, plugins=[MixedPrecision("16-mixed", "cpu", scaler_that_overflows())])
    run.go()
    check_same_run(run.pruner, plain("batches", FLOAT, autocast=torch.float16), run.net)


@pytest.mark.parametrize("judge", JUDGES)
def test_resumed_in_mid_run(judge: str, tmp_path: Path):
    first = Run(judge)
    with interrupted():
        first.go(save=tmp_path / "state.ckpt")
    second = Run(judge)
    second.go(resume=tmp_path / "state.ckpt")
    assert second.state["note"] == "in the middle"
    check_same_run(second.pruner, plain(judge, FLOAT), second.net, resumed_at=MIDDLE)


def test_fabric_load_alone_meets_the_weights_first(tmp_path: Path):
    first = Run("window")
    with interrupted():
        first.go(save=tmp_path / "state.ckpt")
    second = Run("window")
    with pytest.raises(RuntimeError, match="size mismatch"):
        second.fabric.load(tmp_path / "state.ckpt", second.state)


def test_numbers_reach_the_logger(tmp_path: Path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    run = Run("window", loggers=logger)
    run.go()
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + STEPS
    assert set(run.pruner.metrics()) < set(lines[0].split(","))


def test_a_compiled_module_is_refused():
    run = Run("window")
    model = run.fabric.setup(torch.compile(net(FLOAT)))
    with pytest.raises(UsageError, match="the trainer runs the network inside OptimizedModule"):
        integration.attach(run.fabric, model, run.optimizer, total_steps=STEPS, **options("window", FLOAT))


def test_several_processes_are_refused():
    class Two:
        world_size = 2

    model = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="this integration works in one process and there are 2"):
        integration.attach(Two(), model, optimizer_of(model), total_steps=STEPS, **options("window"))
