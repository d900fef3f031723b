"""Hugging Face Trainer: ``attach(trainer, example_inputs=batch)`` between its making and ``trainer.train()``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.integrations.common import (
    STATE_FILE,
    create,
    raise_if_many_processes,
    raise_if_wrapped,
    read_state,
    write_state,
)
from demp.pruner import Pruner
from demp.train.extras import need

transformers = need("transformers", extra="huggingface")


class DemPCallback(transformers.TrainerCallback):
    """Prunes the model of one Trainer; made by `attach`."""

    def __init__(self, trainer: Any, settings: dict[str, Any]) -> None:
        self._trainer, self._settings = trainer, settings
        self._pruner: Pruner | None = None
        self._replayed = False

    @property
    def pruner(self) -> Pruner:
        """The pruner of the present or the last training."""
        if self._pruner is None:
            raise UsageError("the pruner is made when training starts; there is none before Trainer.train")
        return self._pruner

    def replay(self, checkpoint: str) -> None:
        """Repeat the cuts of a checkpoint on the model, before its weights are loaded."""
        state = read_state(checkpoint)
        self._pruner = create(self._trainer.model, None, state["total_steps"], self._settings)
        self._pruner.load_state_dict(state)
        self._replayed = True

    def go_back(self, checkpoint: str | None) -> None:
        """Give the model the widths of the best checkpoint, before its weights are loaded at the end of training."""
        if checkpoint is not None and (Path(checkpoint) / STATE_FILE).is_file():
            self.pruner.load_state_dict(read_state(checkpoint))

    def metrics(self) -> dict[str, float]:
        """The pruner's numbers; none before there is one."""
        return {} if self._pruner is None else self._pruner.metrics()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer is there and restored: attach."""
        raise_if_wrapped(self._trainer.model_wrapped)
        optimizer = self._trainer.optimizer.optimizer
        if self._replayed:
            self.pruner.plan(state.max_steps)
            self.pruner.attach_to(optimizer)
        else:
            if self._pruner is not None:
                self._pruner.detach()  # of a training that was broken off
            self._pruner = create(self._trainer.model, optimizer, state.max_steps, self._settings)
        self._replayed = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The pruner's state, beside the weights."""
        write_state(self.pruner, Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the last check and its cut."""
        self.pruner.finish()


def attach(trainer: Any, *, example_inputs: Any, method: str = "demp", **options: Any) -> DemPCallback:
    """Attach a pruner to a Trainer: it prunes in ``train``, resumes with it, and reports in the Trainer's logs.

    ``options`` are those of `demp.methods.create`; the number of steps is the Trainer's.

    Raises:
        UsageError: several devices, DeepSpeed or FSDP.
    """
    args = trainer.args
    raise_if_many_processes(max(args.world_size, args.n_gpu))
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UsageError("DeepSpeed and FSDP hold the weights in shapes of their own; train without them to prune")
    if isinstance(example_inputs, Mapping):
        example_inputs = dict(example_inputs)  # what tokenizers return is no dict
    callback = DemPCallback(trainer, {"method": method, "example_inputs": example_inputs, **options})
    trainer.add_callback(callback)
    load, log, load_best = trainer._load_from_checkpoint, trainer.log, trainer._load_best_model

    def load_from_checkpoint(resume_from_checkpoint: str, *rest: Any, **kwargs: Any) -> None:
        callback.replay(resume_from_checkpoint)
        load(resume_from_checkpoint, *rest, **kwargs)

    def log_metrics(logs: dict[str, float], *rest: Any, **kwargs: Any) -> None:
        log({**logs, **callback.metrics()} if "loss" in logs else logs, *rest, **kwargs)

    def load_best_model(*given: Any, **named: Any) -> None:
        callback.go_back(trainer.state.best_model_checkpoint)
        load_best(*given, **named)

    trainer._load_from_checkpoint, trainer.log = load_from_checkpoint, log_metrics
    trainer._load_best_model = load_best_model
    return callback
