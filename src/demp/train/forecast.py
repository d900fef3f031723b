"""What a run is about to do and how long that takes, known before its first step and before anything is written."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from demp.train.models import build
from demp.train.run import Run, model_arguments
from demp.train.scale import PUBLISHED

TIMED_IMAGES = {"cpu": 16}
"""Images of one timed step at most, by kind of device; larger batches are counted up from it."""
TIMED_STEPS = 2


@dataclass(frozen=True)
class Forecast:
    """A run before it begins. ``step_seconds`` is of the dense network: forward, backward and an update."""

    text: str
    step_seconds: float
    steps: int
    paper_scale: bool
    """Is it a recipe of the paper at the paper's length?"""

    @property
    def seconds(self) -> float:
        """At the dense network's pace; what reading, tests and checks take comes on top, what shrinking saves goes."""
        return self.step_seconds * self.steps


def forecast(run: Run) -> Forecast:
    """Time a few steps of another copy of the network on zeros; the run itself is not touched."""
    config, facts = run.config, run.data.facts
    passes = run.total_steps * config.batch_size / facts.train_size
    text = (
        f"trains {config.model.name} ({run.dense_cost.parameters:,} parameters) on {facts.name} ({facts.train_size:,} "
        f"images, {facts.num_classes} classes) with {config.method.name}: {run.total_steps:,} steps of "
        f"{config.batch_size}, {passes:.3g} passes over the images, on {run.device}"
    )
    published = PUBLISHED.get(config.recipe)
    paper_scale = published is not None and run.total_steps >= published[0]
    return Forecast(text, dense_step_seconds(run), run.total_steps, paper_scale)


def dense_step_seconds(run: Run) -> float:
    """Seconds of one training step of the dense network, the best of a few, the first aside."""
    config = run.config
    count = min(TIMED_IMAGES.get(run.device.type, 256), config.batch_size // config.accumulate)
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        model = build(**model_arguments(config.model, run.data.facts)).to(run.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        x = run.placed(torch.zeros(count, *run.example[0].shape[1:], device=run.device))
        targets = torch.zeros(count, dtype=torch.long, device=run.device)
        seconds = []
        for _ in range(1 + TIMED_STEPS):
            began = time.perf_counter()
            with run.autocast():
                logits = model(x)
            nn.functional.cross_entropy(logits.float(), targets).backward()
            optimizer.step()
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) * config.batch_size / count
