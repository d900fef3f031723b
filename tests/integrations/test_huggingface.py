"""Hugging Face Trainer: the plain loop's run to the bit, in one go and resumed from its checkpoint folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from demp.errors import UsageError
from integration_runs import (
    ACCUMULATE,
    CLIP,
    EPOCHS,
    JUDGES,
    STEPS,
    Stop,
    check_same_run,
    dataset,
    falling,
    interrupted,
    loss_of,
    net,
    options,
    plain,
)
from runs import IMAGE, examples, hooks_on, step_hooks
from shim import install_torchvision_shim
from thinning import covering

install_torchvision_shim()

from transformers import BatchEncoding, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from demp.integrations import huggingface as integration  # noqa: E402


class Task(nn.Module):
    """A model as the Trainer wants it."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.net = net(dtype)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": loss_of(logits, labels), "logits": logits}


class Examples(Dataset[Any]):
    """The examples of an epoch as dicts."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.pairs = dataset(dtype)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.pairs[index]
        return {"x": x, "labels": y}


class InOrder(Trainer):
    """Does not shuffle."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_size=16))  # pyright: ignore


class Reporter(TrainerCallback):
    """Stands for TensorBoard and the like."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.lines.append(dict(logs))


class StopAt(TrainerCallback):
    """The process dies after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Stop


def trainer_of(
    folder: Path,
    *callbacks: Any,
    dtype: torch.dtype = torch.float64,
    given: bool = True,
    kind: type[Trainer] = InOrder,
    **changes: Any,
) -> Trainer:
    """A Trainer that does what the plain loop does; with ``given=False`` it makes its own optimizer."""
    arguments = {
        "output_dir": str(folder), "per_device_train_batch_size": 16, "num_train_epochs": EPOCHS, "use_cpu": True,
        "gradient_accumulation_steps": ACCUMULATE, "max_grad_norm": CLIP, "learning_rate": 0.03, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    task = Task(dtype)
    made: Any = (None, None)
    if given:
        optimizer = torch.optim.Adam(task.parameters(), lr=0.03)
        made = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, falling))
    return kind(
        task, TrainingArguments(**{**arguments, **changes}), train_dataset=Examples(dtype),
        eval_dataset=Examples(dtype), optimizers=made,
        callbacks=list(callbacks),
    )  # fmt: skip


def hf_options(judge: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The network is called by keyword here."""
    made = options(judge, dtype)
    made["example_inputs"] = BatchEncoding({"x": made["example_inputs"][0]})
    return made


@pytest.mark.parametrize("judge", JUDGES)
def test_the_same_run_as_the_plain_loop(judge: str, tmp_path: Path):
    trainer = trainer_of(tmp_path)
    callback = integration.attach(trainer, **hf_options(judge))
    trainer.train()
    check_same_run(callback.pruner, plain(judge), trainer.model.net)  # pyright: ignore
    assert hooks_on(trainer.model) == step_hooks(callback.pruner.optimizers[0]) == 0  # pyright: ignore


def test_the_same_run_under_autocast(tmp_path: Path):
    trainer = trainer_of(tmp_path, dtype=torch.float32, bf16=True)
    callback = integration.attach(trainer, **hf_options("batches", torch.float32))
    trainer.train()
    check_same_run(callback.pruner, plain("batches", torch.float32, autocast=torch.bfloat16), trainer.model.net)  # pyright: ignore


@pytest.mark.parametrize(("judge", "step"), covering(JUDGES, (8, 11)))
def test_resumed_in_mid_run(judge: str, step: int, tmp_path: Path):
    first = trainer_of(tmp_path, StopAt(step + 1), save_strategy="steps", save_steps=step)
    integration.attach(first, **hf_options(judge))
    with interrupted():
        first.train()
    trainer = trainer_of(tmp_path)
    callback = integration.attach(trainer, **hf_options(judge))
    trainer.train(resume_from_checkpoint=True)
    check_same_run(callback.pruner, plain(judge), trainer.model.net, resumed_at=step)  # pyright: ignore


def test_resumed_with_the_trainers_own_optimizer(tmp_path: Path):
    def trained(resume: Any = None, *callbacks: Any, **changes: Any) -> Any:
        trainer = trainer_of(tmp_path, *callbacks, given=False, weight_decay=0.01, **changes)
        callback = integration.attach(trainer, **hf_options("window"))
        trainer.train(resume_from_checkpoint=resume)
        return callback.pruner

    whole = trained()
    with interrupted():
        trained(None, StopAt(12), save_strategy="steps", save_steps=11)
    check_same_run(trained(str(tmp_path / "checkpoint-11")), whole, whole.model, resumed_at=11)


def test_numbers_reach_the_logs_and_the_reporters(tmp_path: Path):
    reporter = Reporter()
    trainer = trainer_of(tmp_path, reporter)
    callback = integration.attach(trainer, **hf_options("window"))
    trainer.train()
    names = set(callback.pruner.metrics())
    for seen in (reporter.lines, trainer.state.log_history):
        lines = [line for line in seen if "loss" in line]
        assert len(lines) == STEPS
        assert all(names < set(line) for line in lines)
        assert lines[-1]["prune/cuts"] >= 2
        assert not any(names & set(line) for line in seen if "loss" not in line)


def test_a_second_training_is_a_new_run(tmp_path: Path):
    trainer = trainer_of(tmp_path, given=False)
    callback = integration.attach(trainer, **hf_options("window"))
    with pytest.raises(UsageError, match="there is none before Trainer.train"):
        assert callback.pruner
    trainer.train()
    first = callback.pruner
    trainer.train()
    assert callback.pruner is not first
    assert callback.pruner.step == STEPS
    assert callback.pruner.history[0].neurons_before == first.history[-1].neurons_after


def test_a_longer_training_resumes_with_its_own_schedule(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first = trainer_of(tmp_path, StopAt(9), save_strategy="steps", save_steps=8)
    integration.attach(first, **hf_options("window"))
    with interrupted():
        first.train()
    longer = trainer_of(tmp_path, num_train_epochs=5)
    callback = integration.attach(longer, **hf_options("window"))
    longer.train(resume_from_checkpoint=True)
    assert "planned for 24 steps, this one for 40" in caplog.text
    assert (callback.pruner.step, callback.pruner.method.total_steps) == (40, 40)
    assert callback.pruner.history[-1].step == 40


class Judged(InOrder):
    """Finds the first checkpoint the best."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {"eval_score": -float(self.state.global_step)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def test_the_best_model_comes_back_at_its_own_width(tmp_path: Path):
    trainer = trainer_of(
        tmp_path, kind=Judged, load_best_model_at_end=True, save_strategy="steps", save_steps=2, eval_strategy="steps",
        eval_steps=2, metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    callback = integration.attach(trainer, **hf_options("batches"))
    load_best, seen = trainer._load_best_model, []

    def watched() -> None:
        load_best()
        seen.extend([callback.pruner.step, trainer.model.net(examples(IMAGE))])  # pyright: ignore

    trainer._load_best_model = watched
    trainer.train()
    dense = trainer_of(tmp_path / "other").model
    dense.load_state_dict(load_file(tmp_path / "checkpoint-2" / "model.safetensors"))  # nothing was cut by then
    assert seen[0] == 2 and torch.equal(dense.net(examples(IMAGE)), seen[1])  # pyright: ignore
    assert callback.pruner.finished and callback.pruner.history[-1].step == 2


# Wrong use ----------------------------------------------------------------------------------------------


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path):
    first = trainer_of(tmp_path, StopAt(9), save_strategy="steps", save_steps=8)
    integration.attach(first, **hf_options("window"))
    with interrupted():
        first.train()
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-8" / "demp.pt").unlink()
    other = trainer_of(tmp_path)
    integration.attach(other, **hf_options("window"))
    with pytest.raises(UsageError, match=r"holds no demp\.pt: it was written without the pruner"):
        other.train(resume_from_checkpoint=True)


def test_a_wrapped_model_is_refused(tmp_path: Path):
    trainer = trainer_of(tmp_path)
    callback = integration.attach(trainer, **hf_options("window"))
    trainer.model_wrapped = nn.DataParallel(trainer.model)  # pyright: ignore
    with pytest.raises(UsageError, match="the trainer runs the network inside DataParallel"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_several_devices_and_sharded_training_are_refused(tmp_path: Path):
    trainer = trainer_of(tmp_path)
    trainer.is_fsdp_enabled = True
    with pytest.raises(UsageError, match="DeepSpeed and FSDP hold the weights in shapes of their own"):
        integration.attach(trainer, **hf_options("window"))
    trainer.args._n_gpu = 2
    with pytest.raises(UsageError, match="this integration works in one process and there are 2"):
        integration.attach(trainer, **hf_options("window"))
