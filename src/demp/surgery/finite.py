"""Is a model still made of numbers? From one that has diverged nothing follows about its neurons."""

import torch
from torch import Tensor, nn

from demp.errors import CutError
from demp.parallel import local_piece


def raise_if_not_finite(model: nn.Module) -> None:
    """Trained weights and statistics of batch norms must be numbers.

    It costs one look at every such tensor, and one wait for the device.

    Raises:
        CutError: some are infinite or no number; it names the first, in the order of the modules.
    """
    named = list(watched(model))
    if not named:
        return
    device = named[0][1].device
    finite = torch.stack([tensor.isfinite().all().to(device, non_blocking=True) for _, tensor in named]).tolist()
    broken = [name for (name, _), fine in zip(named, finite, strict=True) if not fine]
    if broken:
        more = f" and {len(broken) - 1} more tensors" if broken[1:] else ""
        raise CutError(
            f"{broken[0]}{more} of {len(named)} hold values that are not finite: the training has diverged, and "
            "no dead neuron can be found. Go back to a checkpoint, and look at the loss, the learning rate and the "
            "gradients before it; nothing was cut"
        )


def watched(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Trained parameters and running statistics, by name, in the order of the modules; of those in pieces, the own."""
    found, seen = [], set()
    for path, module in model.named_modules():
        stats = module._buffers if isinstance(module, nn.modules.batchnorm._NormBase) else {}
        for leaf, tensor in (*module._parameters.items(), *stats.items()):
            if tensor is None or id(tensor) in seen or not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            seen.add(id(tensor))
            if tensor.requires_grad or leaf in stats:
                found.append((f"{path}.{leaf}" if path else leaf, local_piece(tensor.detach())))
    return found
