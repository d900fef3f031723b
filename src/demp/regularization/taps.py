"""How much of a convolution's output each entry of its kernel reaches: at borders and between strides it is less."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PLAIN = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | Transposed


def reach(module: nn.Module, size: tuple[int, ...]) -> Tensor | None:
    """Share of the output's positions at which each entry of the kernel meets a map of this size, in float64.

    None: every entry meets it everywhere. It is the derivative of the mean output by the kernel, for an input of ones.
    """
    if not isinstance(module, Convolution) or len(size) != len(module.kernel_size) or module.padding_mode != "zeros":
        return None
    kernel = torch.zeros(1, 1, *module.kernel_size, dtype=torch.float64, requires_grad=True, device="cpu")
    ones = torch.ones(1, 1, *size, dtype=torch.float64, device="cpu")
    with torch.enable_grad():
        if isinstance(module, Transposed):
            how: tuple[Any, ...] = (module.stride, module.padding, module.output_padding, 1, module.dilation)
            out = TRANSPOSED[len(size) - 1](ones, kernel, None, *how)
        else:
            out = PLAIN[len(size) - 1](ones, kernel, None, module.stride, module.padding, module.dilation)
        (found,) = torch.autograd.grad(out.mean(), kernel)
    return None if bool((found == 1).all()) else found[0, 0]
