"""Architectures of other libraries with random weights and small inputs, each by one name."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from shim import install_torchvision_shim

install_torchvision_shim()

import timm  # noqa: E402
import torchvision  # noqa: E402

from language_models import TRANSFORMERS, Made, from_transformers  # noqa: E402

# name -> image size and options of the builder
TORCHVISION: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}),
    "convnext_tiny": (32, {}),
    "densenet121": (32, {}),
    "efficientnet_b0": (32, {}),
    "efficientnet_v2_s": (32, {}),
    "googlenet": (64, {"init_weights": False}),
    "inception_v3": (160, {"init_weights": False}),
    "mnasnet0_5": (32, {}),
    "mobilenet_v2": (32, {}),
    "mobilenet_v3_large": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "regnet_x_400mf": (32, {}),
    "regnet_y_400mf": (32, {}),
    "resnet18": (32, {}),
    "resnet50": (32, {}),
    "resnext50_32x4d": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "squeezenet1_0": (48, {}),
    "squeezenet1_1": (48, {}),
    "swin_t": (64, {}),
    "swin_v2_t": (64, {}),
    "vgg11": (32, {}),
    "vgg16_bn": (32, {}),
    "vit_b_32": (64, {"image_size": 64}),
    "wide_resnet50_2": (32, {}),
}
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18")

TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}),
    "cait_xxs24_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}),
    "coatnet_0_224": (64, {"img_size": 64}),
    "convit_tiny": (32, {"img_size": 32, "depth": 4}),
    "convnextv2_atto": (32, {}),
    "crossvit_9_240": (240, {}),
    "cspresnet50": (32, {}),
    "darknet53": (32, {}),
    "davit_tiny": (64, {}),
    "dla34": (64, {}),
    "dpn68": (32, {}),
    "ecaresnet26t": (32, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientvit_b0": (32, {}),
    "ese_vovnet19b_dw": (32, {}),
    "fastvit_t8": (64, {}),
    "fbnetc_100": (32, {}),
    "focalnet_tiny_srf": (64, {}),
    "ghostnet_100": (32, {}),
    "gmlp_s16_224": (32, {"img_size": 32}),
    "hardcorenas_a": (32, {}),
    "hrnet_w18_small": (64, {}),
    "inception_next_atto": (64, {}),
    "inception_v4": (80, {}),
    "lcnet_050": (32, {}),
    "levit_128s": (224, {}),
    "mambaout_femto": (32, {}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "mixnet_s": (32, {}),
    "mobilenetv4_conv_small": (32, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "nf_resnet26": (32, {}),
    "pit_ti_224": (224, {}),
    "poolformer_s12": (64, {}),
    "pvt_v2_b0": (64, {}),
    "repvgg_a0": (32, {}),
    "res2net50_26w_4s": (32, {}),
    "resmlp_12_224": (32, {"img_size": 32}),
    "resnest14d": (32, {}),
    "resnetv2_50": (32, {}),
    "rexnet_100": (32, {}),
    "selecsls42b": (64, {}),
    "seresnet18": (32, {}),
    "skresnet18": (32, {}),
    "starnet_s1": (32, {}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64}),
    "tiny_vit_5m_224": (224, {}),
    "tinynet_e": (32, {}),
    "twins_pcpvt_small": (64, {"img_size": 64}),
    "vit_tiny_patch16_224": (32, {"img_size": 32}),
    "visformer_tiny": (64, {"img_size": 64}),
    "xception41": (64, {}),
    "xcit_nano_12_p16_224": (32, {"img_size": 32}),
}


def names() -> list[str]:
    """Every architecture, by library."""
    found = [f"torchvision/{name}" for name in (*TORCHVISION, *SEGMENTATION, *VIDEO)]
    return found + [f"timm/{name}" for name in TIMM] + [f"transformers/{name}" for name in TRANSFORMERS]


def make(name: str) -> Made:
    """The model and example inputs, on the device that torch makes tensors on."""
    library, _, name = name.partition("/")
    builders: dict[str, Callable[[str], Made]] = {
        "torchvision": from_torchvision,
        "timm": from_timm,
        "transformers": from_transformers,
    }
    model, inputs = builders[library](name)
    return model.eval(), inputs


def from_torchvision(name: str) -> Made:
    models = torchvision.models
    if name in SEGMENTATION:
        options = {"weights": None, "weights_backbone": None, "num_classes": 5}
        return getattr(models.segmentation, name)(**options), (torch.rand(2, 3, 32, 32),)
    if name in VIDEO:
        return getattr(models.video, name)(weights=None, num_classes=7), (torch.rand(2, 3, 4, 16, 16),)
    size, options = TORCHVISION[name]
    return getattr(models, name)(weights=None, num_classes=7, **options), (torch.rand(2, 3, size, size),)


def from_timm(name: str) -> Made:
    size, options = TIMM[name]
    return timm.create_model(name, pretrained=False, num_classes=7, **options), (torch.rand(2, 3, size, size),)


@torch.no_grad()
def enliven(model: nn.Module, inputs: Any) -> Made:
    """Double precision, and as after some training: nothing is constant, and norms have seen the inputs."""
    model = model.double()
    inputs = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            if parameter.dim() > 1:  # a head that starts at zero
                parameter.normal_(std=0.02, generator=generator)
            else:
                parameter.uniform_(0.2, 0.6, generator=generator)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        model.train()
        model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    model.eval()
    model(**inputs) if isinstance(inputs, dict) else model(*inputs)  # some remember shapes in buffers
    return model, inputs
