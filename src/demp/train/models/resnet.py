"""Residual networks with post-activation blocks (He et al., 2016).

ResNet-18 in the CIFAR form and ResNet-50 v1.5, whose stride sits on the 3x3 convolution. Module
names follow torchvision, so that its checkpoints load.
"""

from typing import NamedTuple

from torch import Tensor, nn

from demp.train.choices import Activation, Initial
from demp.train.models.activations import activation_site, scaled
from demp.train.models.initial import Initialized, drawn


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image size, up to its stride; the bias is the norm's."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity, or a projection where a stage changes the shape."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A block: a branch of convolutions, added to what goes into it or to a projection of that."""

    expansion: int
    """Output channels per channel of the branch."""
    last: str
    """Name of the norm that scales the branch."""

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm that scales the branch."""
        return getattr(self, self.last)


class BasicBlock(Residual):
    """Two 3x3 convolutions; ``act2`` is the output of the block."""

    expansion, last = 1, "bn2"

    def __init__(self, inputs: int, channels: int, stride: int, activation: Activation):
        super().__init__()
        self.conv1 = conv(inputs, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation_site(activation)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(inputs, channels, stride)
        self.act2 = activation_site(activation)

    def forward(self, x: Tensor) -> Tensor:
        """The activated sum of branch and shortcut."""
        out = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(Residual):
    """Convolutions 1x1, 3x3 and 1x1, the last four times as wide; ``act3`` is the output."""

    expansion, last = 4, "bn3"

    def __init__(self, inputs: int, channels: int, stride: int, activation: Activation):
        super().__init__()
        outputs = self.expansion * channels
        self.conv1 = conv(inputs, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = activation_site(activation)
        self.conv2 = conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = activation_site(activation)
        self.conv3 = conv(channels, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)
        self.act3 = activation_site(activation)

    def forward(self, x: Tensor) -> Tensor:
        """The activated sum of branch and shortcut."""
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        return self.act3(self.bn3(self.conv3(out)) + self.downsample(x))


class Stages(NamedTuple):
    """What the four stages of a network are made of."""

    block: type[Residual]
    depths: tuple[int, ...]
    """Blocks of each stage."""


class ResNet(Initialized):
    """Stem, four stages of residual blocks, global average pool, linear head."""

    def __init__(
        self,
        plan: Stages,
        num_classes: int,
        in_channels: int,
        width: float,
        activation: Activation,
        image_stem: bool,
        zero_init_last_scale: bool,
    ):
        super().__init__()
        inputs = scaled(64, width)
        self.conv1 = conv(in_channels, inputs, 7, 2) if image_stem else conv(in_channels, inputs, 3)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act = activation_site(activation)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if image_stem else nn.Identity()
        stages = []
        for stage, depth in enumerate(plan.depths):
            channels = scaled(64 * 2**stage, width)
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(plan.block(inputs, channels, stride, activation))
                inputs = plan.block.expansion * channels
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(inputs, num_classes)
        self.zero_init_last_scale = zero_init_last_scale
        self.initialize()

    def initialize(self) -> None:
        """Kaiming weights; every branch starts as zero if its last scale does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Residual) and self.zero_init_last_scale:
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images, (batch, classes)."""
        x = self.pool(self.act(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet18(
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    activation: Activation = "relu",
    image_stem: bool = False,
    zero_init_last_scale: bool = False,
    initial: Initial = "fan-out",
) -> ResNet:
    """ResNet-18 for small images: 3x3 stem of stride 1, no max-pool.

    ``image_stem`` has the 7x7 stem and max-pool of ImageNet. Width 1.0 has 64 channels in the stem
    and 3,904 neurons. ``initial`` is ``fan-out``, ``fan-in`` or ``haiku`` (`demp.train.models.initial`).
    """
    shape = (num_classes, in_channels, width, activation)
    return drawn(ResNet(Stages(BasicBlock, (2, 2, 2, 2)), *shape, image_stem, zero_init_last_scale), initial)


def resnet50(
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    activation: Activation = "relu",
    cifar_stem: bool = False,
    zero_init_last_scale: bool = False,
    initial: Initial = "fan-out",
) -> ResNet:
    """ResNet-50 v1.5 for ImageNet: 7x7 stem and max-pool, or ``cifar_stem`` for small images.

    Width 1.0 has 22,720 neurons. ``zero_init_last_scale`` starts every branch as zero; methods that
    score the untrained network then see no gradient inside the blocks. ``initial`` as in `resnet18`.
    """
    shape = (num_classes, in_channels, width, activation)
    return drawn(ResNet(Stages(Bottleneck, (3, 4, 6, 3)), *shape, not cifar_stem, zero_init_last_scale), initial)
