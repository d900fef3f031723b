"""One training run in memory: data, model, optimizer, pruner, and the step that moves them on."""

import hashlib
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from demp.analysis.costs import cost
from demp.errors import UsageError
from demp.files.run import FORWARD_AND_BACKWARD
from demp.parallel import ALONE, Context
from demp.train.config import TrainConfig
from demp.train.data import Data
from demp.train.evaluate import evaluate
from demp.train.facts import Facts
from demp.train.launch import place_of, share_of
from demp.train.layout import layout_of
from demp.train.losses import LossWatch, TrainingDiverged
from demp.train.models import build
from demp.train.monitoring import Monitor
from demp.train.optim import build_optimizer, lr_at, set_lr
from demp.train.parts import ModelConfig
from demp.train.pruning import pruner_of
from demp.train.seeds import derive

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> str:
    """The device, with ``auto`` decided.

    Raises:
        UsageError: it is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here; set --device cpu") from error
    return device


def model_arguments(config: ModelConfig, facts: Facts) -> dict[str, Any]:
    """What `demp.train.models.build` is called with; JSON-ready, stored with the artifact."""
    return {
        "name": config.name,
        "num_classes": facts.num_classes,
        "in_channels": facts.channels,
        "image_size": facts.image_size,
        "width": config.width,
        "activation": config.activation or None,
        **config.options,
    }


def digest(model: nn.Module) -> str:
    """Hash of the weights, equal for equal ones."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class Run:
    """State of a run between steps. ``step`` counts the steps that are done.

    The ranks of ``context`` train one network: each takes its share of every batch, gradients are averaged. A method
    that prunes before training does so here, unless ``resume`` is set: then a saved state is loaded next.
    """

    def __init__(self, config: TrainConfig, context: Context = ALONE, *, resume: bool = False) -> None:
        self.config = config = replace(config, device=resolve_device(config.device))
        self.device = place_of(config.device)
        share = share_of(config.batch_size, config.accumulate, context)
        self.data = Data(config.data, batch_size=config.batch_size, seed=config.seed, device=self.device, share=share)
        self.total_steps = config.total_steps(self.data.facts.train_size)
        torch.manual_seed(derive(config.seed, "model"))
        model = build(**model_arguments(config.model, self.data.facts))
        self.model: nn.Module = model.to(self.device)
        self.lay_out()
        self.trained: nn.Module = self.model
        self.context = context
        if not context.alone:
            self.trained = wrapper = DistributedDataParallel(self.model, process_group=context.group)
            self.context = replace(context, wrappers=(wrapper,))
        self.example = (self.placed(self.data.example()),)
        self.dense_cost = cost(self.model, self.example)
        self.initial_weights = digest(self.model)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        began = time.perf_counter()
        self.pruner: Any = pruner_of(
            config, self.trained, self.optimizer, self.data, placed=self.placed, loss=self.loss, resume=resume
        )
        self.seconds = time.perf_counter() - began
        self.lay_out()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.losses = LossWatch(self.device)
        self.step = 0
        self.flops_spent = self.scoring_flops = 0.0
        self.monitor = Monitor(
            config, self.trained, self.pruner, self.data, example=self.example, placed=self.placed, context=self.context
        )
        self._reported = 0
        self.before = self._news()
        """Reports of what the method did before the first step."""

    def lay_out(self) -> None:
        """Put the model into its memory layout, which may change as it gets narrower."""
        self.layout = layout_of(self.model, self.config.channels_last)
        self.model.to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]

    def placed(self, x: Tensor) -> Tensor:
        """The images in the memory layout of the run."""
        return x.contiguous(memory_format=self.layout)

    def autocast(self) -> torch.autocast:
        """The region in which forwards run."""
        dtype = AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def flops(self) -> float:
        """FLOPs of one forward of one image through the network as it is now."""
        return float(self.dense_cost.flops if self.pruner is None else self.pruner.flops)

    def metrics(self) -> dict[str, float]:
        """What the pruner has to say about itself; nothing in dense training."""
        return self.pruner.metrics() if self.pruner is not None else {}

    def lr(self) -> float:
        """The learning rate of the step to come."""
        peak = self.config.optimizer.lr
        return lr_at(self.config.schedule, peak, self.step, self.total_steps)

    def train_step(self, x: Tensor, y: Tensor) -> list[Any]:
        """One optimizer step; the reports of what the pruner checked and cut then, mostly none."""
        rank, world_size = self.context.rank, self.context.world_size
        own = [rank] if rank else []
        torch.manual_seed(derive(self.config.seed, "step", self.step, *own))  # dropout and the like
        self.model.train()
        set_lr(self.optimizer, self.lr())
        self.flops_spent += FORWARD_AND_BACKWARD * world_size * len(x) * self.flops()
        self._backward(x, y)
        self.scaler.unscale_(self.optimizer)
        if self.config.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        if self.pruner is not None:
            self.pruner.before_step()
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.pruner is None:
            return []
        if self.scaler.get_scale() < scale:  # infinite gradients: the optimizer did not step
            self.pruner.skip_step()
        else:
            self.pruner.after_step()
        return self._news()

    def finish(self) -> list[Any]:
        """The last check and cut; none in dense training and where one was just made."""
        if self.pruner is not None:
            self.pruner.finish()
        return self._news()

    def _news(self) -> list[Any]:
        """Reports since the last call; what their checks and scorings cost is added to the FLOPs that were spent."""
        new = [] if self.pruner is None else self.pruner.history[self._reported :]
        self._reported += len(new)
        if any(report.happened for report in new) and layout_of(self.model, self.config.channels_last) != self.layout:
            self.lay_out()
        for report in new:
            spent = report.judged.get("forwards", 0) * report.flops_before
            self.flops_spent += spent
            self.scoring_flops += spent
        return new

    def _backward(self, x: Tensor, y: Tensor) -> None:
        """Gradients of the mean loss of the batch, part by part."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.config.accumulate
        total = torch.zeros((), device=self.device)
        for part, (part_x, part_y) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True), 1):
            with self._syncing(part == parts):
                with self.autocast():
                    logits = self.trained(self.placed(part_x))
                loss = self.loss(logits, part_y) / parts
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.losses.add(self.step, total)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of a batch, with the run's label smoothing."""
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.config.label_smoothing)

    def _syncing(self, now: bool) -> Any:
        """Ranks average their gradients after the last part of a batch only."""
        return nullcontext() if now or not isinstance(self.trained, DistributedDataParallel) else self.trained.no_sync()

    def evaluate(self) -> dict[str, Any]:
        """Accuracy and loss on the whole test set, of which each rank takes its share, and which split that is."""
        self.context.share_buffers()
        batches = self.data.test.batches(self.config.eval_batch_size)
        scores = evaluate(self.model, ((self.placed(x), y) for x, y in batches), self.autocast, self.context)
        return {"split": self.data.tested_on, **scores}

    def check_finite(self) -> None:
        """Make sure that every weight is a number: another state is worth no checkpoint.

        Raises:
            TrainingDiverged: one is not.
        """
        self.losses.flush()
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise TrainingDiverged(f"the weight {name} is not finite after step {self.step}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors, numbers, texts, lists and dicts only."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pruner": None if self.pruner is None else self.pruner.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": list(self.losses.values),
            "seconds": self.seconds,
            "flops_spent": self.flops_spent,
            "scoring_flops": self.scoring_flops,
            "facts": self.data.facts.to_dict(),
            "monitor": self.monitor.state_dict(),
        }

    def load_state_dict(self, step: int, state: dict[str, Any]) -> None:
        """Continue from a checkpoint. The pruner replays its cuts first: they give the shapes.

        Raises:
            UsageError: the data are not those that the run began with.
        """
        if state["facts"] != self.data.facts.to_dict():
            raise UsageError(
                f"the data set {self.data.facts.name} is not the one that the run began with; "
                "restore it, or start a new run"
            )
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])
            self.lay_out()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.losses.values = list(state["losses"])
        self.step, self.seconds = step, state["seconds"]
        self.flops_spent = state["flops_spent"]
        self.scoring_flops = state.get("scoring_flops", 0.0)
        self.monitor.load_state_dict(state.get("monitor"))
