"""Training runs of studies: the recipes of the paper at each scale, and a method on top."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from demp import methods, recipes
from demp.experiments.studies.base import job
from demp.experiments.sweep.job import Job
from demp.files.results import TRAINING
from demp.files.schema import build
from demp.train.choices import OptimizerName
from demp.train.config import DENSE, MethodConfig, TrainConfig
from demp.train.scale import DISPLACEMENT, PAPER_NOISE_STD, PUBLISHED, Scale

RECIPES = {
    "resnet18": "resnet18-cifar10",
    "vgg16": "vgg16-cifar10",
    "resnet50": "resnet50-imagenet",
    "vit_b_16": "vit-b16-imagenet",
}
"""The recipe of each network."""
CPU = {
    "resnet18": {"steps": 2000, "width": 0.25},
    "vgg16": {"steps": 1000, "width": 0.25, "data": {"image_size": 32}, "batch_size": 128},
    "resnet50": {
        "steps": 1000,
        "width": 0.25,
        "data": {"name": "imagenette", "image_size": 64, "probe_batches": 2},
        "batch_size": 64,
    },
    "vit_b_16": {
        "steps": 1000,
        "width": 0.125,
        "data": {"name": "imagenette", "image_size": 64, "probe_batches": 2, "augment": {"randaugment_ops": 0}},
        "model": {"options": {"patch": 8, "depth": 12}},
        "batch_size": 64,
        "accumulate": 1,
    },
}
"""Real data, networks of a quarter or an eighth of the width, small images."""
SMOKE = {
    "resnet18": {"width": 1 / 16},
    "vgg16": {"width": 1 / 32, "data": {"image_size": 16}},
    "resnet50": {"width": 1 / 16, "data": {"image_size": 16}},
    "vit_b_16": {
        "width": 1 / 24,
        "data": {"image_size": 16, "augment": {"randaugment_ops": 0}},
        "model": {"options": {"patch": 4, "depth": 3}},
    },
}
SMOKE_STEPS = 8


def base(network: str, scale: str, optimizer: OptimizerName = "adamw", *, cpu_steps: int = 0) -> TrainConfig:
    """The paper's recipe for a network at a scale; its method is DemP with the recipe's own options.

    All fractions of the run are the recipe's; the noise of a shorter one moves weights as far (`demp.recipes`). A smoke
    run checks for the dead twice rather than twenty times. ``cpu_steps`` is another length at scale cpu, for a study
    with many runs.
    """
    recipe = RECIPES[network]
    shared = {"eval_every_steps": 0}
    if scale == "paper":
        return recipes.get(recipe, optimizer=optimizer).merged(shared)
    if scale == "cpu":
        change = dict(CPU[network])
        steps = cpu_steps or change["steps"]
        config = recipes.get(recipe, optimizer=optimizer, steps=steps, width=change["width"], noise_keeps=DISPLACEMENT)
        change = {name: value for name, value in change.items() if name not in ("steps", "width")}
        return config.merged({"precision": "bf16", **shared}).merged(change)
    change = dict(SMOKE[network])
    width = change.pop("width")
    config = recipes.get(recipe, optimizer=optimizer, steps=SMOKE_STEPS, width=width, noise_keeps=DISPLACEMENT)
    small = {
        "data": {"name": "digits", "probe_size": 64, "probe_batches": 1, "augment": {"padding": 1}},
        "method": {"options": {"period": SMOKE_STEPS // 2}},
        "batch_size": 32,
        "accumulate": 1,
        "precision": "fp32",
        "log_every_steps": SMOKE_STEPS,
        "checkpoint_every_steps": SMOKE_STEPS,
    }
    return config.merged(small).merged(change).merged(shared)


def length(network: str, config: TrainConfig) -> Scale:
    """The length of the run in relation to the paper's."""
    return Scale(PUBLISHED[RECIPES[network]][0], config.steps)


def noise(network: str, config: TrainConfig, paper_std: float) -> float:
    """The standard deviation that moves weights as far in this run as ``paper_std`` does in the paper's."""
    return paper_std / PAPER_NOISE_STD * length(network, config).noise_std(DISPLACEMENT)


def complete(config: TrainConfig) -> TrainConfig:
    """The config with every option of its method written out, so that equal runs are equal in writing."""
    if config.method.name == DENSE:
        return config
    options = asdict(build(methods.config_class(config.method.name), config.method.options, "method.options"))
    given = {name: value for name, value in options.items() if value is not None}
    return replace(config, method=MethodConfig(name=config.method.name, options=given))


def training(
    config: TrainConfig,
    method: str,
    options: Mapping[str, Any] | None = None,
    *,
    seed: int,
    labels: Mapping[str, Any],
    series: Sequence[str] = (),
    beside_dense: bool = False,
) -> Job:
    """A job that trains ``config`` with a method; DemP keeps the recipe's options where these do not say otherwise.

    ``series`` and ``beside_dense`` as in `demp.experiments.sweep.training`.
    """
    own = config.method.options if method.split("+")[0] == config.method.name else {}
    chosen = {} if method == DENSE else {**own, **(options or {})}
    changed = complete(replace(config, method=MethodConfig(name=method, options=chosen), seed=seed))
    stem = f"{config.model.name}-{config.optimizer.name}-{method}-s{seed}"
    arguments: dict[str, Any] = {"config": changed.to_dict()}
    arguments |= {"series": list(series)} if series else {}
    arguments |= {"beside_dense": True} if beside_dense else {}
    return job(TRAINING, arguments, {"method": method, "seed": seed, **labels}, stem)
