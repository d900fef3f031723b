"""In which memory layout a network trains: channels_last, unless this machine cannot.

On x86 processors without AVX-512, torch 2.13 with its oneDNN writes beyond its memory where it makes the gradient of
the weight of a 1x1 convolution with a stride, fewer than 8 input channels and channels_last tensors, and the process
dies. A network that shrinks comes to such a convolution sooner than others. The plain layout is right.
"""

import torch
from torch import nn

SAFE_CHANNELS = 8


def layout_of(model: nn.Module, channels_last: bool) -> torch.memory_format:
    """The layout for a model at its present widths."""
    if channels_last and not (is_affected() and any(is_risky(module) for module in model.modules())):
        return torch.channels_last
    return torch.contiguous_format


def is_affected() -> bool:
    """Does this processor take the wrong code?"""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


def is_risky(module: nn.Module) -> bool:
    """Is this one of the convolutions?"""
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels < SAFE_CHANNELS
        and module.weight.device.type == "cpu"
    )
