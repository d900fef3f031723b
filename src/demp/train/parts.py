"""The parts of a `TrainConfig`: network, images, optimizer, learning rate, method."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from demp.activity.criteria import Criterion, CriterionKind
from demp.files.checks import check, check_above, check_at_least, check_choices, check_number
from demp.files.run import DENSE
from demp.files.schema import build
from demp.train.choices import Crop, Normalize, OptimizerName, PaddingMode, ScheduleName


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network is trained: its name, how wide it is, its activation, and what else its constructor takes."""

    name: str = "resnet18"
    """mlp, resnet18, vgg16, resnet50, vit_b_16, timm:NAME, torchvision:NAME, transformers:NAME, or
    module:function for your own."""
    width: float = 1.0
    """Factor on every hidden width; 1 is the network of the paper."""
    activation: str = ""
    """relu, leaky_relu (slope 0.05, as in the paper), silu or gelu; empty is the model's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that model's constructor."""

    def __post_init__(self) -> None:
        check(bool(self.name), "model.name", self.name, "name a model, for example resnet18")
        check_above("model.width", self.width)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied; test and probe images never are."""

    crop: Crop = "none"
    """none; pad (pad, then crop at random, at the size of the stored image); resize-pad (the same at the size that
    the network sees); resized (random area and aspect, resized back); scales (a random crop of the image at one of
    two sizes: the paper's 256 or 480 for 224)."""
    padding: int = 4
    """Pixels added on each side before the crop of ``pad`` and ``resize-pad``."""
    padding_mode: PaddingMode = "reflect"
    """reflect or zeros; zeros are put in after normalisation."""
    min_area: float = 0.08
    """Smallest share of the image that ``resized`` may show."""
    flip: bool = False
    """Mirror half of the images left to right."""
    randaugment_ops: int = 0
    """Operations of RandAugment per image; 0 is off."""
    randaugment_magnitude: float = 9.0
    """Magnitude of RandAugment, between 0 and 30."""
    mixup_alpha: float = 0.0
    """Parameter of mixup's Beta distribution; 0 is off."""
    cutmix_alpha: float = 0.0
    """Parameter of cutmix's Beta distribution; 0 is off. With mixup, a batch takes one of both."""

    def __post_init__(self) -> None:
        check_choices(self, "data.augment.")
        check_number("data.augment.padding", self.padding)
        check(0 < self.min_area <= 1, "data.augment.min_area", self.min_area, "give a share in (0, 1]")
        check_number("data.augment.randaugment_ops", self.randaugment_ops)
        magnitude = self.randaugment_magnitude
        check(0 < magnitude < 30, "data.augment.randaugment_magnitude", magnitude, "give 0 < m < 30")
        check_number("data.augment.mixup_alpha", self.mixup_alpha)
        check_number("data.augment.cutmix_alpha", self.cutmix_alpha)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they reach the network."""

    name: str = "digits"
    """digits, mnist, cifar10, imagenette, imagenet-1k, owner/name on the hub, a folder of images or tables, or a file
    (.parquet, .csv, .npz, .pt): see docs/data.md."""
    train_split: str = "train"
    """Split that is trained on."""
    test_split: str = ""
    """Split that is tested on; empty takes test, else validation."""
    validation: float = 0.0
    """Share of the training images that is held out, evenly over the classes, and takes the place of the test split
    in every test of the run: to choose settings without seeing the test set. 0 holds nothing out."""
    image_column: str = ""
    """Column of the images; empty finds it."""
    label_column: str = ""
    """Column of the labels; empty finds it."""
    num_classes: int = 0
    """Size of the head; 0 takes it from the data."""
    image_size: int = 0
    """Side of the image that the network sees; 0 is the side of the stored images."""
    store_size: int = 0
    """Short side to which images are resized when read, then cut square; 0 keeps their size."""
    normalize: Normalize = "dataset"
    """dataset (mean and deviation of the training split) or image (each image by its own)."""
    memory_mb: int = 1024
    """Sets whose decoded images fit in this live on the device as bytes; larger ones stream."""
    workers: int = 2
    """Processes that read images when the set streams."""
    probe_size: int = 512
    """Training images per batch of a death check (App. F.3), which looks at them in pieces, or of a scoring."""
    probe_batches: int = 3
    """Batches per death check; a neuron is dead if dead in each."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How training images are varied."""

    def __post_init__(self) -> None:
        check(
            bool(self.name),
            "data.name",
            self.name,
            "name a data set, for example digits or cifar10",
        )
        check_choices(self, "data.")
        for name in ("num_classes", "image_size", "store_size", "memory_mb", "workers"):
            check_number(f"data.{name}", getattr(self, name))
        below_one = 0.0 <= self.validation < 1.0
        check(below_one, "data.validation", self.validation, "give a share of at least 0 and below 1")
        check_at_least("data.probe_size", self.probe_size, 1)
        check_at_least("data.probe_batches", self.probe_batches, 1)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and its constants."""

    name: OptimizerName = "adamw"
    """adam, adamw, sgdm (decay in the gradient) or sgdw (decay after the momentum)."""
    lr: float = 0.0
    """Peak learning rate; 0 takes the paper's 0.005 for Adam(W) and 0.1 for SGD."""
    weight_decay: float = 5e-4
    """Constant decay of every parameter: coupled for adam and sgdm, else decoupled."""
    momentum: float = 0.9
    """Momentum of SGD."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's moments."""
    eps: float = 1e-8
    """Adam's epsilon (App. E: larger values keep neurons alive)."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        check_choices(self, "optimizer.")
        if self.lr == 0.0:
            object.__setattr__(self, "lr", 0.005 if self.name.startswith("adam") else 0.1)
        check_above("optimizer.lr", self.lr)
        check_above("optimizer.eps", self.eps)
        check_number("optimizer.weight_decay", self.weight_decay)
        check_number("optimizer.clip_norm", self.clip_norm)
        for name, value in [("momentum", self.momentum), *(("betas", beta) for beta in self.betas)]:
            check(0.0 <= value < 1.0, f"optimizer.{name}", value, "give a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run; times are shares of it, so that a recipe fits any length."""

    name: ScheduleName = "constant"
    """constant, step, cosine or one-cycle."""
    milestones: tuple[float, ...] = ()
    """Shares of the run at which ``step`` multiplies the rate by ``factor``."""
    factor: float = 0.1
    """Multiplier of ``step`` at each milestone."""
    warmup: float = 0.0
    """Share of the run of a linear rise to the peak; 0 is none. ``one-cycle`` rises on its own."""
    warmup_lr: float = 1e-6
    """Learning rate at the first step of the warm-up."""

    def __post_init__(self) -> None:
        check_choices(self, "schedule.")
        check_above("schedule.factor", self.factor)
        check_number("schedule.warmup_lr", self.warmup_lr)
        for milestone in self.milestones:
            check(0 <= milestone <= 1, "schedule.milestones", milestone, "give shares between 0 and 1")
        check(0 <= self.warmup <= 1, "schedule.warmup", self.warmup, "give a share between 0 and 1")
        rises_alone = self.name != "one-cycle" or not self.warmup
        check(rises_alone, "schedule.warmup", self.warmup, "one-cycle has its own rise: leave it 0")


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Which pruning method, and its options."""

    name: str = "demp"
    """dense (no pruning) or a name that `demp.methods.find` knows."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of that method's config, for demp those of `demp.DemPConfig`."""

    def __post_init__(self) -> None:
        if self.name == DENSE:
            check(not self.options, "method.options", self.options, "dense training takes no options")
            return
        from demp import methods

        known = methods.names()
        meant_dense = self.name not in known and get_close_matches(self.name, (DENSE, *known), 1) == [DENSE]
        check(not meant_dense, "method.name", self.name, f"did you mean {DENSE!r}?")
        methods.find(self.name)
        build(methods.config_class(self.name), self.options, "method.options")


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Dead neurons over time, in lines of their own in metrics.jsonl. The training does not change."""

    every_steps: int = 0
    """Steps between two looks, from step 0 on and at the end; 0 never looks."""
    examples: int = 512
    """Training images per look, without augmentation; 0 takes the whole training split."""
    whole_every_steps: int = 0
    """Steps between two looks at the whole training split besides, as ``dead/share_whole``; 0 never takes it."""
    resample: bool = True
    """Other images at every look, as a death check has; False: the same ones throughout."""
    criterion: CriterionKind = "auto"
    """When a neuron counts as dead or saturated: auto, paper, exact, saturated, negative-only, epsilon or sum
    (`demp.Criterion`)."""
    eps: float = 0.0
    """Threshold of ``saturated``, ``epsilon`` and ``sum``; 0 takes theirs: 0.1, 0.01 and 0."""
    relative: bool = True
    """``epsilon`` is measured in units of the layer's mean peak; False: absolutely, as in the paper's Fig. 1."""
    layers: bool = True
    """One number per layer, too."""

    def __post_init__(self) -> None:
        check_choices(self, "monitor.")
        for name in ("every_steps", "examples", "whole_every_steps", "eps"):
            check_number(f"monitor.{name}", getattr(self, name))
        fits = not self.whole_every_steps or (self.every_steps > 0 and self.whole_every_steps % self.every_steps == 0)
        remedy = "give a multiple of monitor.every_steps, which must be above 0"
        check(fits, "monitor.whole_every_steps", self.whole_every_steps, remedy)
        self.death_criterion()

    def death_criterion(self) -> Criterion:
        """Return the criterion by which neurons count as dead."""
        return Criterion(kind=self.criterion, eps=self.eps or None, relative=self.relative)
