"""Loops of vision: classifiers with averages of every kind, detection, segmentation, denoising."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from client import MIDDLE, STEPS, Ended, check, labels, of, options, run, same, silence
from torch import Tensor, nn
from torch.nn import functional as F

import demp
from demp.errors import UsageError

pytestmark = pytest.mark.slow


class Block(nn.Module):
    """A basic block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class Classifier(nn.Module):
    """A small residual network."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.blocks, self.head = nn.Sequential(Block(width), Block(width)), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def classifier() -> Classifier:
    torch.manual_seed(0)
    model = Classifier().double()
    silence(model.blocks[0].bn1, model.blocks[1].bn1, model.norm)
    return model


IMAGES = (of(99, 8, 3, 6, 6),)


class ModelEma:
    """A module that follows every entry of the state dict, as in pytorch-image-models."""

    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        self.module, self.decay = copy.deepcopy(model).eval(), decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for mine, theirs in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            mine.copy_(self.decay * mine + (1 - self.decay) * theirs)


def image_models(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
    """AdamW, mixup, clipping, a cosine, and the average in the checkpoint."""
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    ema, start = ModelEma(model), 0
    pruner = demp.DemP(model, optimizer, example_inputs=IMAGES, copies=[ema], batches=[IMAGES], **options())
    if resume:
        saved = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
        pruner.load_state_dict(saved["pruner"])
        model.load_state_dict(saved["state_dict"])
        ema.module.load_state_dict(saved["state_dict_ema"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["lr_scheduler"])
        start = saved["epoch"]
    for step in range(start, STEPS if stop is None else stop):
        x, y, share = of(step, 8, 3, 6, 6), labels(step, 8, 4), 0.3
        loss = F.cross_entropy(model(share * x + (1 - share) * x.flip(0)), y) * share
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        ema.update(model)
        if step + 1 == MIDDLE:
            folder.mkdir(exist_ok=True)
            state = {
                "epoch": MIDDLE, "state_dict": model.state_dict(), "state_dict_ema": ema.module.state_dict(),
                "optimizer": optimizer.state_dict(), "lr_scheduler": scheduler.state_dict(),
                "pruner": pruner.state_dict(),
            }  # fmt: skip
            torch.save(state, folder / "checkpoint.pth.tar")
    pruner.finish() if stop is None else pruner.detach()
    return Ended(model, pruner, IMAGES, ema.module)


def reference_imagenet(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
    """SGD with two groups, warm-up and a label-smoothed loss; the average is torch's own, buffers and all."""
    model = classifier()
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in model.parameters() if all(p is not n for n in norms)]
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 1e-4}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    main = torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.5)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, main], [4])
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    pruner = demp.DemP(model, optimizer, example_inputs=IMAGES, copies=[average], **options(window_steps=3))
    start = 0
    if resume:
        saved = torch.load(folder / "checkpoint.pth", weights_only=True)
        pruner.load_state_dict(saved["pruner"])
        for name, holder in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler), ("ema", average)):
            holder.load_state_dict(saved[name])
        start = saved["step"]
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for step in range(start, STEPS if stop is None else stop):
        model.train()
        optimizer.zero_grad()
        criterion(model(of(step, 8, 3, 6, 6)), labels(step, 8, 4)).backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
        if step + 1 == MIDDLE:
            folder.mkdir(exist_ok=True)
            states = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "ema": average, "pruner": pruner}
            saved = {name: holder.state_dict() for name, holder in states.items()}
            torch.save({**saved, "step": MIDDLE}, folder / "checkpoint.pth")
    pruner.finish() if stop is None else pruner.detach()
    return Ended(model, pruner, IMAGES, average.module)


class Split(nn.Module):
    """A stage of a detector: a convolution, its halves, a bottleneck on one of them, all put together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.inner, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.last, self.norm3 = nn.Conv2d(3 * width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.norm1(self.first(x))).chunk(2, 1)
        return F.relu(self.norm3(self.last(torch.cat([a, b, F.relu(self.norm2(self.inner(b)))], 1))))


class Detector(nn.Module):
    """Two scales, each with boxes and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c1, self.down, self.c2 = Split(8), nn.Conv2d(8, 8, 3, stride=2, padding=1), Split(8)
        self.heads = nn.ModuleList([nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.c1(F.relu(self.norm(self.stem(x))))
        coarse = self.c2(F.relu(self.down(fine)))
        return [head(level).flatten(2) for head, level in zip(self.heads, (fine, coarse), strict=True)]


def detector(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
    """Three groups, warm-up of rate and momentum by hand, an average that ramps up and is saved whole."""
    torch.manual_seed(1)
    model = Detector().double()
    silence(model.norm, model.c1.norm2, model.c2.norm3)
    decays = [p for n, p in model.named_parameters() if p.dim() > 1]
    others = [p for n, p in model.named_parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD(others, lr=0.02, momentum=0.9, nesterov=True)
    optimizer.add_param_group({"params": decays, "weight_decay": 5e-4})
    ema, updates, start = copy.deepcopy(model).eval(), 0, 0
    pruner = demp.DemP(model, optimizer, example_inputs=IMAGES, copies=[ema], batches=[IMAGES], **options())
    if resume:
        saved = torch.load(folder / "last.pt", weights_only=False)
        pruner.load_state_dict(saved["pruner"])
        model.load_state_dict(saved["model"].state_dict())
        ema.load_state_dict(saved["ema"].state_dict())
        optimizer.load_state_dict(saved["optimizer"])
        start, updates = saved["epoch"], saved["updates"]
    for step in range(start, STEPS if stop is None else stop):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * min(1.0, (step + 1) / 5)
            group["momentum"] = 0.8 + 0.1 * min(1.0, (step + 1) / 5)
        model.train()
        loss = sum((level - 0.1).square().mean() for level in model(of(step, 8, 3, 6, 6)))
        loss.backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        decay = 0.99 * (1 - math.exp(-updates / 20))
        with torch.no_grad():
            now = model.state_dict()
            for name, value in ema.state_dict().items():
                if value.dtype.is_floating_point:
                    value.mul_(decay).add_(now[name], alpha=1 - decay)
        if step + 1 == MIDDLE:
            folder.mkdir(exist_ok=True)
            whole = {"model": copy.deepcopy(model), "ema": copy.deepcopy(ema), "optimizer": optimizer.state_dict()}
            torch.save(
                {**whole, "pruner": pruner.state_dict(), "epoch": MIDDLE, "updates": updates}, folder / "last.pt"
            )
    pruner.finish() if stop is None else pruner.detach()
    return Ended(model, pruner, IMAGES, ema)


class Segmenter(nn.Module):
    """Down, up, and a skip that is put beside."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.n1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.enc2, self.n2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.dec, self.n3 = nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.n1(self.enc1(x)))
        b = F.relu(self.n2(self.enc2(a)))
        return self.out(F.relu(self.n3(self.dec(torch.cat([F.relu(self.up(b)), a], 1)))))


def segmenter(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
    """A polynomial schedule, pixels to ignore, and an average of the parameters alone."""
    torch.manual_seed(2)
    model = Segmenter().double()
    silence(model.n1, model.n2, model.n3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, STEPS, 0.9)
    average = torch.optim.swa_utils.AveragedModel(model)
    pruner = demp.DemP(model, optimizer, example_inputs=IMAGES, copies=[average], batches=[IMAGES], **options())
    start = 0
    holders: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "average": average}
    if resume:
        saved = torch.load(folder / "last.pth", weights_only=True)
        pruner.load_state_dict(saved["pruner"])
        for name, holder in holders.items():
            holder.load_state_dict(saved[name])
        start = saved["step"]
    for step in range(start, STEPS if stop is None else stop):
        model.train()
        target = labels(step, 8 * 36, 4).view(8, 6, 6)
        F.cross_entropy(model(of(step, 8, 3, 6, 6)), target, ignore_index=3).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        average.update_parameters(model)
        if step + 1 == MIDDLE:
            folder.mkdir(exist_ok=True)
            states = {name: holder.state_dict() for name, holder in (holders | {"pruner": pruner}).items()}
            torch.save(states | {"step": MIDDLE}, folder / "last.pth")
    pruner.finish() if stop is None else pruner.detach()
    return Ended(model, pruner, IMAGES, average.module)


class Denoiser(nn.Module):
    """A convolutional network that knows the time."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.first, self.second, self.last = (
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = torch.stack([t.sin(), t.cos(), (t / 10).sin(), (t / 10).cos()], 1)
        h = F.relu(self.first(x) + self.time(waves)[:, :, None, None])
        return self.last(F.relu(self.second(h)))


class Shadow:
    """Averages in a list, as in diffusers."""

    def __init__(self, parameters: Any) -> None:
        self.shadow_params, self.optimization_step = [p.detach().clone() for p in parameters], 0

    @torch.no_grad()
    def step(self, parameters: Any) -> None:
        self.optimization_step += 1
        decay = min(0.99, (1 + self.optimization_step) / (10 + self.optimization_step))
        for mine, theirs in zip(self.shadow_params, list(parameters), strict=True):
            mine.sub_((1 - decay) * (mine - theirs))


def denoiser(folder: Path, stop: int | None = None, resume: bool = False) -> Ended:
    """Noise at random times is predicted; the average is a list without names."""
    torch.manual_seed(3)
    model = Denoiser().double()
    silence(model.time[0], model.second)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.95, 0.999))
    ema, start = Shadow(model.parameters()), 0
    inputs = (of(98, 8, 3, 6, 6), of(97, 8).abs())
    pruner = demp.DemP(model, optimizer, example_inputs=inputs, copies=[ema], batches=[inputs], **options())
    if resume:
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        pruner.load_state_dict(saved["pruner"])
        model.load_state_dict(saved["unet"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.shadow_params, ema.optimization_step = saved["ema"], saved["ema_step"]
        start = saved["step"]
    for step in range(start, STEPS if stop is None else stop):
        clean, noise, t = of(step, 8, 3, 6, 6), of(step, 8, 3, 6, 6, seed=1), of(step, 8, seed=2).abs()
        mixed = clean * (-t)[:, None, None, None].exp() + noise * t[:, None, None, None].tanh()
        F.mse_loss(model(mixed, t), noise).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        if step + 1 == MIDDLE:
            folder.mkdir(exist_ok=True)
            averages = {"ema": ema.shadow_params, "ema_step": ema.optimization_step, "pruner": pruner.state_dict()}
            states = {"unet": model.state_dict(), "optimizer": optimizer.state_dict(), "step": MIDDLE}
            torch.save(states | averages, folder / "checkpoint.pt")
    pruner.finish() if stop is None else pruner.detach()
    return Ended(model, pruner, inputs, list(ema.shadow_params))


@pytest.mark.parametrize("client", [image_models, reference_imagenet, detector, segmenter, denoiser])
def test_a_loop_of_vision(client: Any, tmp_path: Path):
    check(client, tmp_path)


def test_early_stopping_goes_back_to_the_best_weights_and_the_whole_model_is_a_file(tmp_path: Path):
    ended = detector(tmp_path)
    best = torch.load(tmp_path / "last.pt", weights_only=False)
    assert len(best["model"].norm.weight) >= len(ended.model.norm.weight)
    with pytest.raises(UsageError, match="give that model itself"):
        demp.load_state_dict(ended.model, best["model"].state_dict())
    demp.load_state_dict(ended.model, best["model"])
    assert same(ended.model, best["model"]) and same(run(ended.model, IMAGES), run(best["model"], IMAGES))
