"""Optimizers and learning-rate schedules of the paper's recipes."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch import _foreach_add_ as add_each  # pyright: ignore[reportPrivateImportUsage]
from torch import _foreach_mul_ as scale_each  # pyright: ignore[reportPrivateImportUsage]
from torch.optim import SGD, Adam, AdamW, Optimizer

from demp.regularization import schedules
from demp.train.parts import OptimizerConfig, ScheduleConfig


class SGDW(Optimizer):
    """SGD with momentum, and weight decay that does not enter the momentum.

    ``buffer = momentum * buffer + gradient``, then ``w -= lr * (buffer + weight_decay * w)``: the
    form of the authors' runs. With momentum 0.9 and equal coefficients the coupled decay of torch's
    SGD is ten times stronger at rest.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; parameters without a gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            scale_each(buffers, group["momentum"])
            add_each(buffers, [p.grad for p in params])
            scale_each(params, 1.0 - group["lr"] * group["weight_decay"])
            add_each(params, buffers, alpha=-group["lr"])
        return loss


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer that ``config`` names; the decay covers every parameter, as in the paper."""
    params = [p for p in model.parameters() if p.requires_grad]
    lr, decay = config.lr, config.weight_decay
    if config.name in ("adam", "adamw"):
        kind = Adam if config.name == "adam" else AdamW
        return kind(params, lr=lr, betas=config.betas, eps=config.eps, weight_decay=decay)
    kind = SGD if config.name == "sgdm" else SGDW
    return kind(params, lr=lr, momentum=config.momentum, weight_decay=decay)


def lr_at(config: ScheduleConfig, peak: float, step: int, total_steps: int) -> float:
    """The learning rate of ``step`` (0-based); a pure function, so a resumed run needs no state."""
    rise = config.warmup * total_steps
    if step < rise:
        return config.warmup_lr + (peak - config.warmup_lr) * step / rise
    if config.name == "constant":
        return peak
    if config.name == "step":
        passed = sum(step >= share * total_steps for share in config.milestones)
        return peak * config.factor**passed
    shape = schedules.OneCycle() if config.name == "one-cycle" else schedules.CosineDecay()
    return peak * shape.at((step - rise) / (total_steps - rise))


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group of parameters the rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr
