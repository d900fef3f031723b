"""VGG-16 with batch norm (Simonyan & Zisserman, 2015), in the form that the paper prunes."""

from collections import OrderedDict

from torch import Tensor, nn

from demp.train.choices import Activation, Initial
from demp.train.models.activations import activation_site, scaled
from demp.train.models.initial import Initialized, drawn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
HIDDEN = (4096, 4096)


class VGG(Initialized):
    """Five stages of 3x3 convolutions, average pool to 2x2, two hidden linear layers."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        width: float,
        activation: Activation,
        last_conv: int,
        dropout: float,
    ):
        super().__init__()
        features: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = in_channels
        for stage, widths in enumerate((*STAGES[:-1], (*STAGES[-1][:-1], last_conv)), start=1):
            for index, neurons in enumerate(widths, start=1):
                outputs = scaled(neurons, width)
                features[f"conv{stage}_{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
                features[f"bn{stage}_{index}"] = nn.BatchNorm2d(outputs)
                features[f"act{stage}_{index}"] = activation_site(activation)
                inputs = outputs
            # Rounding up changes nothing for multiples of 32 and lets smaller images through.
            features[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
        self.features = nn.Sequential(features)
        self.pool = nn.AdaptiveAvgPool2d(2)

        classifier: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        inputs *= 2 * 2
        for index, neurons in enumerate(HIDDEN, start=1):
            outputs = scaled(neurons, width)
            classifier[f"fc{index}"] = nn.Linear(inputs, outputs)
            classifier[f"bn{index}"] = nn.BatchNorm1d(outputs)
            classifier[f"act{index}"] = activation_site(activation)
            if dropout:
                classifier[f"dropout{index}"] = nn.Dropout(dropout)
            inputs = outputs
        classifier["head"] = nn.Linear(inputs, num_classes)
        self.classifier = nn.Sequential(classifier)
        self.initialize()

    def initialize(self) -> None:
        """Kaiming convolutions, small normal linear layers, as in torchvision."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images, (batch, classes)."""
        return self.classifier(self.pool(self.features(images)))


def vgg16(
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    activation: Activation = "relu",
    last_conv: int = 512,
    dropout: float = 0.0,
    initial: Initial = "fan-out",
) -> VGG:
    """VGG-16 for 32 or 64 pixels; 12,416 neurons at width 1.0.

    The authors' network has ``last_conv=1024`` (12,928 neurons); that of Rachwan et al. (2022) has
    dropout 0.3 behind the hidden linear layers and ``activation="leaky_relu"``. ``initial`` is ``fan-out``, ``fan-in``
    or ``haiku``, as the authors drew it (`demp.train.models.initial`).
    """
    return drawn(VGG(num_classes, in_channels, width, activation, last_conv, dropout), initial)
