"""Reference models of the paper, and models of other libraries, by name."""

from demp.train.models.activations import ACTIVATIONS
from demp.train.models.examples import example_inputs
from demp.train.models.mlp import mlp
from demp.train.models.names import build, names, usual_images
from demp.train.models.resnet import ResNet, resnet18, resnet50
from demp.train.models.vgg import VGG, vgg16
from demp.train.models.vit import VisionTransformer, vit_b_16

__all__ = [
    "ACTIVATIONS",
    "ResNet",
    "VGG",
    "VisionTransformer",
    "build",
    "example_inputs",
    "mlp",
    "names",
    "resnet18",
    "resnet50",
    "usual_images",
    "vgg16",
    "vit_b_16",
]
