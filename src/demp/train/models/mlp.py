"""The multilayer perceptron of the paper's study of dying neurons (Fig. 9): 100-300-10 on MNIST."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from demp.train.choices import Activation
from demp.train.models.activations import activation_site, scaled
from demp.train.models.initial import Initialized


class Perceptron(Initialized, nn.Sequential):
    """Linear layers, each but the last with an activation site behind it."""

    def initialize(self) -> None:
        """Draw Kaiming normal weights and set all biases to zero."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)


def mlp(
    num_classes: int = 10,
    *,
    in_channels: int = 1,
    image_size: int = 28,
    width: float = 1.0,
    activation: Activation = "relu",
    hidden: Sequence[int] = (100, 300),
) -> Perceptron:
    """A perceptron without normalization; ``hidden`` lists the neurons of its layers.

    Inputs are flattened: any shape with ``in_channels * image_size**2`` numbers per example fits.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = in_channels * image_size**2
    for index, neurons in enumerate(hidden, start=1):
        outputs = scaled(neurons, width)
        layers[f"fc{index}"] = nn.Linear(inputs, outputs)
        layers[f"act{index}"] = activation_site(activation)
        inputs = outputs
    layers["head"] = nn.Linear(inputs, num_classes)
    model = Perceptron(layers)
    model.initialize()
    return model
