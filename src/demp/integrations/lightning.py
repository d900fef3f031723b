"""Lightning: ``Trainer(callbacks=[DemPCallback(example_inputs=(x,))])``."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from demp.errors import UsageError
from demp.integrations.common import create, raise_if_many_processes, raise_if_wrapped
from demp.pruner import Pruner
from demp.train.extras import need

pl = need("lightning.pytorch", extra="lightning")


class DemPCallback(pl.Callback):
    """Prunes the module that the Trainer fits; its state is in the Trainer's checkpoints.

    ``module`` names the submodule to prune, for a LightningModule whose ``training_step`` calls that one; empty: the
    LightningModule itself, whose ``forward`` is then the network. ``total_steps=None`` takes what the Trainer plans.
    ``options`` are those of `demp.methods.create`.
    """

    def __init__(
        self,
        *,
        example_inputs: Any,
        module: str = "",
        total_steps: int | None = None,
        method: str = "demp",
        **options: Any,
    ) -> None:
        self._pruner: Pruner | None = None
        self._module, self._total_steps = module, total_steps
        self._settings = {"method": method, "example_inputs": example_inputs, **options}

    @property
    def pruner(self) -> Pruner:
        """The pruner of the present or the last fit."""
        if self._pruner is None:
            raise UsageError("the pruner is made when training starts; there is none before Trainer.fit")
        return self._pruner

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before a checkpoint is loaded: make the module replay the cuts ahead of its weights."""
        raise_if_many_processes(trainer.world_size)
        if stage == "fit":
            self._pruner = None
        theirs = pl_module.on_load_checkpoint
        pl_module.on_load_checkpoint = partial(self._load_checkpoint, trainer, pl_module, stage, theirs)

    def _load_checkpoint(
        self, trainer: Any, pl_module: Any, stage: str, theirs: Callable[[Any], None], checkpoint: dict[str, Any]
    ) -> None:
        """Replay the cuts, then the module's own hook."""
        self._replay(trainer, pl_module, checkpoint, stage)
        theirs(checkpoint)

    def _replay(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any], stage: str) -> None:
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None and stage == "fit":
            raise UsageError(
                "the checkpoint holds no state of DemPCallback, so its run cannot be continued with it; to start "
                "from its weights, load them into the module and call fit without ckpt_path"
            )
        if state is None:
            return
        if self._pruner is None:
            trainer.strategy.model_to_device()
            self._pruner = self._create(pl_module, None, self._total_steps or state["total_steps"])
            add_averages(self._pruner, trainer)
        self._pruner.load_state_dict(state)

    def _create(self, pl_module: Any, optimizer: Any, total_steps: int) -> Pruner:
        return create(pl_module.get_submodule(self._module), optimizer, total_steps, self._settings)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Optimizer and loaders are there and restored: attach."""
        raise_if_wrapped(trainer.model)
        if len(trainer.optimizers) != 1:
            raise UsageError(
                f"{type(pl_module).__name__} configures {len(trainer.optimizers)} optimizers and DemPCallback follows "
                "one; in a loop with several use demp.DemP(..., attach=False)"
            )
        total_steps = self._total_steps or trainer.estimated_stepping_batches
        if math.isinf(total_steps):
            raise UsageError("the Trainer has no last step; give max_steps to it, or total_steps to DemPCallback")
        if self._pruner is None:
            self._pruner = self._create(pl_module, trainer.optimizers[0], total_steps)
            add_averages(self._pruner, trainer)
        else:
            self._pruner.plan(int(total_steps))
            self._pruner.attach_to(trainer.optimizers[0])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the pruner's metrics after each training batch."""
        pl_module.log_dict(self.pruner.metrics())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Make the last check and its cut, and log the final numbers."""
        self.pruner.finish()
        for logger in trainer.loggers:
            logger.log_metrics(self.pruner.metrics(), step=trainer.global_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Detach the pruner and remove what was added to the module."""
        vars(pl_module).pop("on_load_checkpoint", None)
        if self._pruner is not None:
            self._pruner.detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Nor after an error or Ctrl-C, where the Trainer does without teardown."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """Return the pruner's state for the Trainer's checkpoints."""
        return {} if self._pruner is None else self._pruner.state_dict()


def add_averages(pruner: Pruner, trainer: Any) -> None:
    """What Lightning's averaging callbacks keep are copies of the model."""
    for callback in trainer.callbacks:
        if isinstance(getattr(callback, "_average_model", None), nn.Module):
            pruner.add_copy(callback)
