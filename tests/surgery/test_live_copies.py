"""Everything that a training loop can hold, at once: a run with cuts equals the dense run in which the dead stay."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import comparing
import demp
import killing
from twins import batch, remaining, stays

DYING = ({"acts.0": [1, 3], "acts.1": [1, 3]}, {"acts.2": [2]}, {"acts.2": [0, 3]})
"""Cut after steps 3, 6 and 9: indices among those that are left then."""
IN_DENSE = {"acts.0": [1, 3], "acts.1": [1, 3], "acts.2": [0, 2, 4]}
STEPS, MICRO = 12, 2


class Net(nn.Module):
    """Convolution and norm, depthwise convolution, flatten, two linear layers; the middle is recomputed on demand."""

    def __init__(self, recompute: bool | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.deep, self.fc, self.head = nn.Conv2d(5, 5, 3, groups=5), nn.Linear(20, 6), nn.Linear(6, 3)
        self.acts = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.reentrant = recompute

    def middle(self, x: Tensor) -> Tensor:
        return self.acts[2](self.fc(self.acts[1](self.deep(x)).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.acts[0](self.norm(self.conv(x)))
        if self.reentrant is not None and self.training:
            return self.head(checkpoint(self.middle, x, use_reentrant=self.reentrant))
        return self.head(self.middle(x))


class Run:
    """A loop with two optimizers in groups, a schedule, a scaler, clipping, hooks, three averages and accumulation."""

    def __init__(self, model: nn.Module, precision: torch.dtype | None) -> None:
        self.model, self.precision = model, precision
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        self.clipped = [*matrices, *vectors]
        groups = [{"params": matrices[:2], "lr": 3e-3}, {"params": matrices[2:], "weight_decay": 0.1}]
        self.optimizers = [optim.AdamW(groups, lr=1e-2), optim.SGD(vectors, lr=1e-2, momentum=0.9)]
        self.schedules = [optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=STEPS) for o in self.optimizers]
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=precision is not None)
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
        self.plain = AveragedModel(model)
        self.dict = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.copy = copy.deepcopy(model)
        self.seen: list[tuple[int, ...]] = []
        model.fc.weight.register_hook(lambda grad: self.seen.append(tuple(grad.shape)))
        model.fc.weight.register_post_accumulate_grad_hook(lambda p: self.seen.append(tuple(p.grad.shape)))
        model.acts[2].register_full_backward_hook(lambda m, grads, outs: self.seen.append(tuple(outs[0].shape)))

    @property
    def copies(self) -> list[Any]:
        return [self.averaged, self.plain, self.dict, self.copy]

    def step(self, at: int) -> float:
        self.model.train()
        total = 0.0
        images, labels = batch(at, next(self.model.parameters()).dtype)
        for part in range(MICRO):
            with torch.autocast("cpu", dtype=self.precision, enabled=self.precision is not None):
                loss = F.cross_entropy(self.model(images[part::MICRO]).float().to(images.dtype), labels[part::MICRO])
            self.scaler.scale(loss / MICRO).backward()
            total += loss.item() / MICRO
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(self.clipped, 0.5)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            self.scaler.step(optimizer)
            schedule.step()
            optimizer.zero_grad()
        self.scaler.update()
        self.averaged.update_parameters(self.model)
        self.plain.update_parameters(self.model)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                self.dict[name].lerp_(p, 0.3)
            for mine, p in zip(self.copy.parameters(), self.model.parameters(), strict=True):
                mine.mul_(0.5).add_(p, alpha=0.5)
        return total


@pytest.mark.parametrize("recompute", [None, True, False], ids=["stored", "reentrant", "recomputed"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp64", "bf16 and scaler"])
def test_all_at_once(precision, recompute):
    dtype = torch.float64 if precision is None else torch.float32
    tolerance = 1e-10 if precision is None else 1e-6
    model = Net(recompute).to(dtype)
    killing.kill(model, demp.trace(model, batch(0, dtype)[:1]), IN_DENSE)
    dense, cut = Run(copy.deepcopy(model), precision), Run(model, precision)
    for at in range(STEPS):
        assert cut.step(at) == pytest.approx(dense.step(at), abs=tolerance)
        if at % 3 == 2 and at // 3 < len(DYING):
            images = batch(at, dtype)[:1]
            report = demp.cut(model, DYING[at // 3], example_inputs=images, optimizer=cut.optimizers, copies=cut.copies)
            assert report.removed == sum(map(len, DYING[at // 3].values()))
    assert remaining(dense.model, model) < tolerance
    kept = demp.surgery.record_of(model).kept
    for mine, theirs in zip(cut.copies, dense.copies, strict=True):
        small, large = (
            dict(h) if isinstance(h, dict) else comparing.tensors_of(getattr(h, "module", h)) for h in (mine, theirs)
        )
        assert small.keys() == large.keys()
        assert all(
            torch.allclose(t, stays(name, large[name], kept), rtol=0, atol=tolerance) for name, t in small.items()
        )
    assert [s.get_last_lr() for s in cut.schedules] == [s.get_last_lr() for s in dense.schedules]
    assert cut.scaler.state_dict() == dense.scaler.state_dict()
    assert len(cut.seen) == len(dense.seen) and cut.seen[-1] in {(3, 12), (4, 3)}
