"""What a study costs before it is run: steps and FLOPs, which are exact, and seconds, which rest on a stated basis."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from demp.experiments.sweep.job import Job
from demp.files.run import FORWARD_AND_BACKWARD
from demp.graph.meta_kernels import MetaKernels
from demp.train.models import build

IMAGES = {
    "digits": (8, 1, 10),
    "mnist": (28, 1, 10),
    "cifar10": (32, 3, 10),
    "imagenette": (160, 3, 10),
    "imagenet-1k": (224, 3, 1000),
}
"""Side, channels and classes of each data set."""
CPU_FLOPS = {"resnet18": 1.2e11, "vgg16": 1.0e11, "resnet50": 6e10, "vit_b_16": 6e10}
"""FLOPs per second of processor time of dense training at scale cpu: ``benchmarks/study_steps.py``."""
OTHER_CPU_FLOPS = 6e10
SMOKE_RUN_SECONDS = 1.2
"""Of processor time, image and start of the process included."""
GPU_FLOPS = 2e13
"""Assumed: no GPU was at hand."""
BASIS = {
    "smoke": f"{SMOKE_RUN_SECONDS:g} s of processor time per run, measured over all studies on one busy core",
    "cpu": "processor time of dense steps on one core: "
    + ", ".join(f"{name} {flops / 1e9:g} GFLOP/s" for name, flops in CPU_FLOPS.items())
    + " (measured), others 60 (assumed); pruned networks take less, checks and scorings more",
    "paper": f"{GPU_FLOPS / 1e12:g} TFLOP/s on one GPU, assumed, not measured",
}
"""Where the seconds come from."""


@dataclass(frozen=True)
class StudyCost:
    """Of a number of jobs, all seeds together."""

    runs: int
    steps: int
    flops: float
    """Of training as if nothing were removed: three forwards per image, without checks, scorings and tests."""
    seconds: float
    """On one core, or on one GPU at scale paper: an estimate."""
    basis: str
    """What the seconds rest on."""

    def of_seeds(self, seeds: int) -> "StudyCost":
        """So many times the cost of one seed."""
        return StudyCost(seeds * self.runs, seeds * self.steps, seeds * self.flops, seeds * self.seconds, self.basis)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a dictionary ready for JSON."""
        return asdict(self)


def of_training(jobs: Sequence[Job], scale: str) -> StudyCost:
    """The cost of training jobs; others count as a run without steps."""
    configs = [job.arguments["config"] for job in jobs if "config" in job.arguments]
    each = [(config["model"]["name"], float(train_flops(config))) for config in configs]
    flops = sum(flops for _, flops in each)
    seconds = {
        "smoke": SMOKE_RUN_SECONDS * len(jobs),
        "cpu": sum(flops / CPU_FLOPS.get(model, OTHER_CPU_FLOPS) for model, flops in each),
        "paper": flops / GPU_FLOPS,
    }[scale]
    return StudyCost(len(jobs), sum(config["steps"] for config in configs), flops, seconds, BASIS[scale])


def train_flops(config: Mapping[str, Any]) -> int:
    """Return the FLOPs of training the dense network of a config."""
    side, channels, classes = IMAGES[config["data"]["name"]]
    side = config["data"]["image_size"] or side
    model = {**config["model"], "num_classes": classes, "in_channels": channels, "image_size": side}
    return FORWARD_AND_BACKWARD * config["steps"] * config["batch_size"] * forward_flops(json.dumps(model))


@cache
def forward_flops(model: str) -> int:
    """Of one image through a network, given as JSON, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    values = json.loads(model)
    options, activation = values.pop("options"), values.pop("activation") or None
    with torch.device("meta"):
        network = build(values.pop("name"), activation=activation, **values, **options).eval()
        images = torch.zeros(1, values["in_channels"], values["image_size"], values["image_size"])
    for module in list(network.modules()):  # norms cost nothing as torch counts, and are slow on meta
        for name, part in module.named_children():
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)):
                setattr(module, name, nn.Identity())
    with MetaKernels(), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return counter.get_total_flops()
