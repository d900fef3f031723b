"""The training recipes of the paper (App. I) as functions that return a `TrainConfig`.

Each recipe is at paper scale unless ``steps`` or ``epochs`` says otherwise. ``width`` is a factor on
the network's hidden widths. A shorter run is not the same experiment in small; this is what it keeps:

* Times are shares of the run: milestones, the span of penalty and noise, the time between checks.
* The learning rate stays, so its sum over the run shrinks with the steps: for ResNet-18 with Adam, whose
  steps are about as long as the rate, from 187 in the paper to 3.8 in 2,000 steps.
* With SGD the strength grows by the ratio of steps, up to a bound (``MOST_SGD_STRENGTH``), so that learning
  rate x strength x steps stays. With Adam, whose steps do not depend on the size of the gradient, no
  strength makes up for the shorter way: it stays, and a short run needs strengths of its own.
* The noise keeps its standard deviation (``noise_keeps="rate"``), and so its ratio to the learning rate,
  for ResNet-18 with Adam at most 0.09. Noise then moves weights less far in all, by the square root of the
  ratio of steps. With ``noise_keeps="displacement"`` it grows by that square root and moves them as far;
  its ratio to the rate grows as well, to at most 0.65 in 2,000 steps and 1.0 in 800, where it is late in
  the run as large as a step of Adam. The shorter scales of the studies have this one.

>>> get("resnet18-cifar10", steps=4000, width=0.25).optimizer.lr
0.005
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypedDict, Unpack

from demp.errors import UsageError
from demp.files.checks import check_choice, check_choices
from demp.train.choices import NoiseKeeps, OptimizerName
from demp.train.config import (
    AugmentConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from demp.train.scale import PUBLISHED, Scale, check_length, of_recipe, scaled

PAPER_RATES = {"adamw": 0.005, "adam": 0.005, "sgdm": 0.1, "sgdw": 0.1}
"""Learning rates of the paper; the default is decoupled decay, as in its runs of DemP."""


class Wishes(TypedDict, total=False):
    """What every recipe may be asked for, by keyword."""

    optimizer: OptimizerName
    """adam, adamw, sgdm or sgdw, with the learning rate that the recipe has for it; adamw if none is named."""
    steps: int | None
    """Length in optimizer steps; without it and ``epochs``, the paper's."""
    epochs: float | None
    """Length in passes over the training split, in place of steps."""
    width: float
    """Factor on the network's hidden widths."""
    noise_keeps: NoiseKeeps
    """What the noise of a shorter run keeps: rate or displacement (see above)."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The `Wishes`, with what holds where they say nothing."""

    optimizer: OptimizerName = "adamw"
    steps: int | None = None
    epochs: float | None = None
    width: float = 1.0
    noise_keeps: NoiseKeeps = "rate"

    def __post_init__(self) -> None:
        check_choices(self)


def _optimizer(name: OptimizerName, choices: dict[str, float], **constants: Any) -> OptimizerConfig:
    check_choice("the optimizer of this recipe", name, choices)
    return OptimizerConfig(name=name, lr=choices[name], **constants)


def _by_optimizer(optimizer: str, adam: float, sgd: float) -> float:
    return adam if optimizer.startswith("adam") else sgd


def _demp(asked: _Asked, scale: Scale, strengths: tuple[float, float], period: int, **more: Any) -> MethodConfig:
    """DemP with these strengths for Adam and SGD, at the paper's length, and the paper's period."""
    options = {
        "peak_strength": scale.strength(_by_optimizer(asked.optimizer, *strengths), asked.optimizer),
        "peak_noise_std": scale.noise_std(asked.noise_keeps),
        "period": scale.period(period),
    }
    return MethodConfig(name="demp", options={**options, **more})


def resnet18_cifar10(**wishes: Unpack[Wishes]) -> TrainConfig:
    """ResNet-18 on CIFAR-10: 250 epochs, rate divided by 5 every 77; the figures of Sec. 4.2."""
    asked = _Asked(**wishes)
    scale = of_recipe("resnet18-cifar10", asked.steps, asked.epochs)
    return TrainConfig(
        recipe="resnet18-cifar10",
        model=ModelConfig(name="resnet18", width=asked.width),
        data=DataConfig(
            name="cifar10",
            normalize="image",
            augment=AugmentConfig(crop="pad", padding=4, padding_mode="reflect", flip=True),
        ),
        optimizer=_optimizer(asked.optimizer, PAPER_RATES, weight_decay=5e-4),
        schedule=ScheduleConfig(name="step", factor=0.2, milestones=(77 / 250, 154 / 250, 231 / 250)),
        method=_demp(asked, scale, (1e-3, 2e-4), 5000, span=0.87),
        batch_size=128,
        **scale.intervals(),
    )


def vgg16_cifar10(**wishes: Unpack[Wishes]) -> TrainConfig:
    """VGG-16 on CIFAR-10 at 64 pixels: 80 epochs with a one-cycle rate; Fig. 14.

    As in the authors' code the last convolution has 1,024 channels, and images are cropped before they are resized.
    The paper's text resizes first: ``--set data.augment.crop=resize-pad``.
    """
    asked = _Asked(**wishes)
    scale = of_recipe("vgg16-cifar10", asked.steps, asked.epochs)
    return TrainConfig(
        recipe="vgg16-cifar10",
        model=ModelConfig(name="vgg16", width=asked.width, options={"last_conv": 1024}),
        data=DataConfig(
            name="cifar10",
            image_size=64,
            augment=AugmentConfig(crop="pad", padding=4, padding_mode="zeros", flip=True),
        ),
        optimizer=_optimizer(asked.optimizer, PAPER_RATES, weight_decay=5e-4),
        schedule=ScheduleConfig(name="one-cycle"),
        method=_demp(asked, scale, (1e-3, 5e-4), 1000, span=1.0),
        batch_size=256,
        **scale.intervals(),
    )


def _imagenet(augment: AugmentConfig) -> DataConfig:
    """Return the data of ImageNet at 224 pixels, with these augmentations."""
    return DataConfig(name="imagenet-1k", image_size=224, workers=8, probe_size=256, probe_batches=8, augment=augment)


def resnet50_imagenet(**wishes: Unpack[Wishes]) -> TrainConfig:
    """ResNet-50 on ImageNet: 100 epochs, rate divided by 10 at 30, 70 and 90; Tables 1 and 2.

    The paper gives 0.005 for both optimizers. SGD takes 0.1 here, as in the authors' code: 0.005
    would not reach the accuracy that the paper reports. Their baselines gave Adam 0.001: ``--lr``.
    No strength of theirs for Adam is known; 0.001 is the weakest of `demp study table1`.
    """
    asked = _Asked(**wishes)
    scale = of_recipe("resnet50-imagenet", asked.steps, asked.epochs)
    penalty = "l2" if asked.optimizer.startswith("adam") else "lasso"
    return TrainConfig(
        recipe="resnet50-imagenet",
        model=ModelConfig(name="resnet50", width=asked.width, options={"zero_init_last_scale": True}),
        data=_imagenet(AugmentConfig(crop="scales", flip=True)),
        optimizer=_optimizer(asked.optimizer, PAPER_RATES, weight_decay=1e-4),
        schedule=ScheduleConfig(name="step", factor=0.1, milestones=(0.3, 0.7, 0.9), warmup=0.05, warmup_lr=1e-6),
        method=_demp(asked, scale, (1e-3, 3e-4), 5000, span=0.3, penalty=penalty),
        batch_size=256,
        label_smoothing=0.1,
        precision="bf16",
        **scale.intervals(),
    )


def vit_b16_imagenet(**wishes: Unpack[Wishes]) -> TrainConfig:
    """ViT-B/16 on ImageNet: 150 epochs, cosine rate, RandAugment, mixup or cutmix; Table 3.

    Noise alone, no penalty, and neurons of the MLPs alone: heads of attention, which the paper leaves (App. H.1), are
    excluded. ReLU in the MLP (`--activation relu`) is the paper's second row.
    Cuts begin at 60 % of the run, after the neurons of the last block have come back to life.
    """
    asked = _Asked(**wishes)
    scale = of_recipe("vit-b16-imagenet", asked.steps, asked.epochs)
    extra = {"prune_after": round(0.6 * scale.steps), "criterion": "paper", "exclude": ["*.attention"]}
    return TrainConfig(
        recipe="vit-b16-imagenet",
        model=ModelConfig(name="vit_b_16", width=asked.width),
        data=_imagenet(
            AugmentConfig(
                crop="resized",
                flip=True,
                randaugment_ops=2,
                randaugment_magnitude=9.0,
                mixup_alpha=0.2,
                cutmix_alpha=1.0,
            )
        ),
        optimizer=_optimizer(asked.optimizer, {"adamw": 0.003, "adam": 0.003}, weight_decay=0.3, clip_norm=1.0),
        schedule=ScheduleConfig(name="cosine", warmup=16 / 150, warmup_lr=9.9e-5),
        method=_demp(asked, scale, (0.0, 0.0), 1000, **extra),
        batch_size=4096,
        accumulate=16,
        label_smoothing=0.11,
        precision="bf16",
        **scale.intervals(),
    )


def digits(**wishes: Unpack[Wishes]) -> TrainConfig:
    """A narrow ResNet-18 on scikit-learn's digits: the demo, a minute on two cores.

    Pressed harder than the recipes of the paper, since the task is easy: twice the noise that moves weights as
    far as the paper's.
    """
    batch_size, train_size, own_steps = 128, 1442, 400
    asked = _Asked(**{"width": 0.5, "noise_keeps": "displacement", **wishes})
    scale = scaled(own_steps, own_steps * batch_size / train_size, asked.steps, asked.epochs)
    return TrainConfig(
        recipe="digits",
        model=ModelConfig(name="resnet18", width=asked.width),
        data=DataConfig(
            name="digits",
            probe_size=256,
            augment=AugmentConfig(crop="pad", padding=1, padding_mode="zeros"),
        ),
        optimizer=_optimizer(asked.optimizer, PAPER_RATES | {"adamw": 0.01, "adam": 0.01}, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine"),
        method=MethodConfig(
            name="demp",
            options={
                "peak_strength": _by_optimizer(asked.optimizer, 0.05, 0.01),
                "peak_noise_std": 2 * Scale(PUBLISHED["resnet18-cifar10"][0], scale.steps).noise_std(asked.noise_keeps),
                "period": scale.period(20),
            },
        ),
        batch_size=batch_size,
        **scale.intervals(),
    )


def plain(**wishes: Unpack[Wishes]) -> TrainConfig:
    """Any network on any images, nothing assumed: what `demp train` does without a recipe.

    Strength and noise are those of the ResNet-18 recipe for a run of as many steps; for a run in
    epochs, whose steps depend on the data, they are the defaults of `demp.DemPConfig`.
    """
    asked = _Asked(**wishes)
    check_length(asked.steps, asked.epochs)
    shared: dict[str, Any] = {
        "recipe": "plain",
        "model": ModelConfig(name="resnet18", width=asked.width),
        "optimizer": _optimizer(asked.optimizer, PAPER_RATES, weight_decay=5e-4),
        "schedule": ScheduleConfig(name="cosine"),
    }
    if asked.epochs is not None:
        return TrainConfig(epochs=asked.epochs, **shared)
    scale = Scale(PUBLISHED["resnet18-cifar10"][0], asked.steps or 1000)
    method = _demp(asked, scale, (1e-3, 2e-4), 5000, span=0.87)
    return TrainConfig(method=method, **shared, **scale.intervals())


RECIPES: dict[str, Callable[..., TrainConfig]] = {
    "plain": plain,
    "digits": digits,
    "resnet18-cifar10": resnet18_cifar10,
    "vgg16-cifar10": vgg16_cifar10,
    "resnet50-imagenet": resnet50_imagenet,
    "vit-b16-imagenet": vit_b16_imagenet,
}


def names() -> list[str]:
    """Return the names of all recipes."""
    return list(RECIPES)


def get(name: str, **wishes: Unpack[Wishes]) -> TrainConfig:
    """The config of recipe ``name``, as the `Wishes` say: optimizer, steps or epochs, width and noise_keeps.

    Raises:
        UsageError: there is no such recipe, or it cannot be had like that.
    """
    function = RECIPES.get(name.replace("_", "-"))
    if function is None:
        close = get_close_matches(name, names(), 1)
        hint = f"did you mean {close[0]!r}?" if close else f"recipes: {', '.join(names())}"
        raise UsageError(f"unknown recipe {name!r}; {hint}")
    return function(**wishes)


def summary(name: str) -> str:
    """The first sentence about a recipe."""
    return (inspect.getdoc(RECIPES[name]) or "").splitlines()[0]
