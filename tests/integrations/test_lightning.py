"""Lightning: the plain loop's run to the bit, in one go and resumed from the Trainer's checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

import demp
from demp.errors import UsageError
from integration_runs import (
    ACCUMULATE,
    BATCHES,
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
from runs import hooks_on, step_hooks
from shim import install_torchvision_shim

install_torchvision_shim()

import lightning.pytorch as pl  # noqa: E402
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from demp.integrations.lightning import DemPCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Task(pl.LightningModule):
    """Somebody's LightningModule; ``forward`` is the network."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.net = net(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        loss = loss_of(self(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler_of(optimizer), "interval": "step"}}


class Inner(Task):
    """Its ``training_step`` calls the network itself; there is no ``forward``."""

    forward = None  # pyright: ignore[reportAssignmentType]

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x, y = batch
        return loss_of(self.net(x), y)


class TwoOptimizers(Task):
    """Two optimizers, stepped by hand."""

    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [optimizer_of(self.net.conv1), optimizer_of(self.net.head)]


class ByHand(Task):
    """One optimizer, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y = batch
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        self.manual_backward(loss_of(self(x), y) / ACCUMULATE)
        if (index + 1) % ACCUMULATE == 0:
            self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


class StopAfter(pl.Callback):
    """The process dies after an epoch, or after a batch of the second one."""

    def __init__(self, batch: int | None = None) -> None:
        self.batch = batch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self.batch is None and trainer.current_epoch == 1:
            raise Stop

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == self.batch:
            raise Stop


class ResumableLoader:
    """The batches of an epoch; knows where it was."""

    def __init__(self) -> None:
        self.batches, self.next = list(loader()), 0

    def __iter__(self) -> Any:
        for index in range(self.next, len(self.batches)):
            self.next = (index + 1) % len(self.batches)
            yield self.batches[index]

    def __len__(self) -> int:
        return len(self.batches)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def trainer_of(folder: Path, *callbacks: Any, by_hand: bool = False, **changes: Any) -> pl.Trainer:
    """One epoch after the other on the CPU."""
    mine: dict[str, Any] = {} if by_hand else {"accumulate_grad_batches": ACCUMULATE, "gradient_clip_val": CLIP}
    defaults = {
        "accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder, "precision": 64,
    }  # fmt: skip
    return pl.Trainer(**{**defaults, **mine, **changes}, callbacks=list(callbacks))


@pytest.mark.parametrize("judge", JUDGES)
def test_the_same_run_as_the_plain_loop(judge: str, tmp_path: Path):
    task, callback = Task(), DemPCallback(**options(judge))
    trainer_of(tmp_path, callback).fit(task, loader())
    check_same_run(callback.pruner, plain(judge), task.net)
    assert hooks_on(task) == step_hooks(callback.pruner.optimizers[0]) == 0
    assert "on_load_checkpoint" not in vars(task)


def test_the_same_run_under_autocast(tmp_path: Path):
    task, callback = Task(torch.float32), DemPCallback(**options("batches", torch.float32))
    trainer_of(tmp_path, callback, precision="bf16-mixed").fit(task, loader(torch.float32))
    check_same_run(callback.pruner, plain("batches", torch.float32, autocast=torch.bfloat16), task.net)


def test_the_same_run_with_a_scaler_that_skips_steps(tmp_path: Path):
    task, callback = Task(torch.float32), DemPCallback(**options("batches", torch.float32))
    plugin = MixedPrecision("16-mixed", "cpu", scaler_that_overflows())
    trainer_of(tmp_path, callback, precision=None, plugins=[plugin]).fit(task, loader(torch.float32))
    check_same_run(callback.pruner, plain("batches", torch.float32, autocast=torch.float16), task.net)


def test_the_same_run_where_the_network_is_a_part(tmp_path: Path):
    task, callback = Inner(), DemPCallback(**options("window"), module="net")
    trainer_of(tmp_path, callback).fit(task, loader())
    check_same_run(callback.pruner, plain("window"), task.net)


def test_the_same_run_where_the_module_steps_by_hand(tmp_path: Path):
    task, callback = ByHand(), DemPCallback(**options("window"), total_steps=STEPS)
    trainer_of(tmp_path, callback, by_hand=True).fit(task, loader())
    check_same_run(callback.pruner, plain("window"), task.net)


@pytest.mark.parametrize("judge", JUDGES)
def test_resumed_in_mid_run(judge: str, tmp_path: Path):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    with interrupted():
        first = trainer_of(tmp_path, DemPCallback(**options(judge)), StopAfter(), keep, enable_checkpointing=True)
        first.fit(Task(), loader())
    task, callback = Task(), DemPCallback(**options(judge))
    trainer_of(tmp_path, callback).fit(task, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    check_same_run(callback.pruner, plain(judge), task.net, resumed_at=MIDDLE)


def test_resumed_in_mid_epoch(tmp_path: Path):
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=5)
    with interrupted():
        first = trainer_of(tmp_path, DemPCallback(**options("window")), StopAfter(7), keep, enable_checkpointing=True)
        first.fit(Task(), ResumableLoader())
    task, callback = Task(), DemPCallback(**options("window"))
    trainer_of(tmp_path, callback).fit(task, ResumableLoader(), ckpt_path=tmp_path / "step=10.ckpt")
    check_same_run(callback.pruner, plain("window"), task.net, resumed_at=10)


def saved(folder: Path, *callbacks: Any) -> Path:
    """A checkpoint after the first epoch."""
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer_of(folder, *callbacks, keep, enable_checkpointing=True).fit(Task(), loader())
    return folder / "epoch=0.ckpt"


def test_a_cut_checkpoint_is_tested_in_a_new_process_and_a_wider_one_after_it(tmp_path: Path):
    class Tested(Task):
        def test_step(self, batch: Any, index: int) -> None:
            self.log("test/loss", loss_of(self(batch[0]), batch[1]))

    path = saved(tmp_path, DemPCallback(**options("window")))
    callback, task = DemPCallback(**options("window")), Tested()
    trainer = trainer_of(tmp_path, callback)
    (scores,) = trainer.test(task, loader(), ckpt_path=path, verbose=False)
    assert scores["test/loss"] > 0
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in task.state_dict().items())
    assert hooks_on(task) == 0
    trainer.test(task, loader(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)
    trainer.test(task, loader(), ckpt_path=path, verbose=False)  # wider again
    assert all(torch.equal(tensor, state[name]) for name, tensor in task.state_dict().items())
    other = Tested()
    demp.load_state_dict(other, state)  # what `on_load_checkpoint` of a module without the callback would call
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_numbers_reach_the_logger(tmp_path: Path):
    logger = CSVLogger(tmp_path)
    callback = DemPCallback(**options("window"))
    trainer_of(tmp_path, callback, logger=logger, log_every_n_steps=1).fit(Task(), loader())
    head, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert set(callback.pruner.metrics()) < set(head.split(","))
    assert len(lines) == STEPS + 1
    last = dict(zip(head.split(","), lines[-1].split(","), strict=True))
    assert float(last["cost/parameters"]) == sum(p.numel() for p in callback.pruner.model.parameters())


def test_a_second_fit_is_a_new_run(tmp_path: Path):
    task, callback = Task(), DemPCallback(**options("window"))
    with pytest.raises(UsageError, match="there is none before Trainer.fit"):
        assert callback.pruner
    trainer_of(tmp_path, callback).fit(task, loader())
    first = callback.pruner
    trainer_of(tmp_path, callback).fit(task, loader())
    assert callback.pruner is not first
    assert callback.pruner.step == STEPS
    assert callback.pruner.history[0].neurons_before == first.history[-1].neurons_after


# Wrong use ----------------------------------------------------------------------------------------------


def test_a_dense_checkpoint_is_refused(tmp_path: Path):
    path = saved(tmp_path)
    with pytest.raises(UsageError, match="the checkpoint holds no state of DemPCallback"):
        trainer_of(tmp_path, DemPCallback(**options("window"))).fit(Task(), loader(), ckpt_path=path)


def test_without_the_callback_a_cut_checkpoint_does_not_load(tmp_path: Path):
    path = saved(tmp_path, DemPCallback(**options("window")))
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer_of(tmp_path).fit(Task(), loader(), ckpt_path=path)


def test_a_trainer_of_another_length_goes_on_with_its_own_schedule(tmp_path: Path):
    path = saved(tmp_path, DemPCallback(**options("window")))
    callback = DemPCallback(**options("window"))
    trainer_of(tmp_path, callback, max_epochs=5).fit(Task(), loader(), ckpt_path=path)
    assert (callback.pruner.step, callback.pruner.total_steps, callback.pruner.method.total_steps) == (40, 40, 40)


@pytest.mark.filterwarnings("ignore:.max_epochs. was not set")
@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (TwoOptimizers, {"by_hand": True}, "TwoOptimizers configures 2 optimizers and DemPCallback follows one"),
        (Task, {"max_epochs": -1}, "the Trainer has no last step; give max_steps to it, or total_steps"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(task: Any, changes: Any, message: str, tmp_path: Path):
    built = task()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        trainer_of(tmp_path, DemPCallback(**options("window")), **changes).fit(built, loader())
    assert all(torch.equal(before[name], tensor) for name, tensor in built.state_dict().items())
    assert "on_load_checkpoint" not in vars(built)


def test_an_error_in_training_leaves_no_hook_behind(tmp_path: Path):
    task, callback = Task(), DemPCallback(**options("window"))
    with interrupted():
        trainer_of(tmp_path, callback, StopAfter(3)).fit(task, loader())
    assert callback.pruner.step == MIDDLE + 2
    assert hooks_on(task) == step_hooks(callback.pruner.optimizers[0]) == 0
    assert "on_load_checkpoint" not in vars(task)


def test_a_wrapped_module_is_refused(tmp_path: Path):
    trainer = trainer_of(tmp_path)
    trainer.strategy._model = torch.nn.DataParallel(Task())
    with pytest.raises(UsageError, match="the network inside DataParallel, which this integration does not follow"):
        DemPCallback(**options("window")).on_train_start(trainer, Task())


def test_several_processes_are_refused():
    class Two:
        world_size = 2

    with pytest.raises(UsageError, match="this integration works in one process and there are 2"):
        DemPCallback(**options("window")).setup(Two(), Task(), "fit")


assert BATCHES % ACCUMULATE == 0


class Unscheduled(Task):
    """Its rate is left to a callback."""

    def configure_optimizers(self) -> Any:
        return optimizer_of(self)


@pytest.mark.parametrize("kind", [EMAWeightAveraging, StochasticWeightAveraging])
def test_what_lightning_averages_is_cut_with_the_model(kind: Any, tmp_path: Path):
    task = Unscheduled()
    average = kind(decay=0.5) if kind is EMAWeightAveraging else kind(swa_lrs=0.01)
    callback = DemPCallback(**options("batches"), module="net", alive_in_copies="cut")
    trainer = trainer_of(tmp_path, average, callback)
    trainer.fit(task, loader())
    cuts = [report for report in callback.pruner.history if report.happened]
    assert cuts and all(report.copies.keys() == {kind.__name__} for report in cuts)
    kept = average._average_model
    inside = kept.module if kind is EMAWeightAveraging else kept
    assert [p.shape for p in inside.net.parameters()] == [p.shape for p in task.net.parameters()]
