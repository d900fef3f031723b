"""Batched augmentation on the device; every random choice comes from the generator passed in.

The order is fixed: cut out a region, RandAugment, normalise, pad and crop, mirror, resize, mix; but
``resize-pad`` resizes before it pads.
Cutting, padding and mirroring happen per image, for the whole batch at once. B is the batch, C
the channels, H and W the sides.
"""

import math
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from demp.errors import UsageError
from demp.train.extras import need
from demp.train.facts import Facts
from demp.train.parts import AugmentConfig

LOG_ASPECT = math.log(4 / 3)
"""``resized`` draws width over height between 3/4 and 4/3, evenly in the logarithm."""
SCALES = (256 / 224, 480 / 224)
"""``scales`` sees the image at one of these multiples of its own size (App. I.1)."""
SMALLEST_DEVIATION = 1e-3
"""Floor of the deviation of one image, so that an even image does not become infinite."""


def to_unit(images: Tensor) -> Tensor:
    """Bytes as numbers between 0 and 1."""
    return images.float().div_(255.0)


def normalise(x: Tensor, facts: Facts) -> Tensor:
    """Zero mean, unit deviation: per channel of the data set, or of each image (``image``)."""
    if facts.normalize == "image":
        centre = x.mean(dim=(1, 2, 3), keepdim=True)
        spread = x.std(dim=(1, 2, 3), keepdim=True, correction=0)
        return (x - centre) / spread.clamp(min=SMALLEST_DEVIATION)
    centre, spread = x.new_tensor(facts.mean), x.new_tensor(facts.std).clamp(min=SMALLEST_DEVIATION)
    return (x - centre.view(1, -1, 1, 1)) / spread.view(1, -1, 1, 1)


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear, to ``size`` squared; the same tensor when it has that size."""
    if x.shape[-2:] == (size, size):
        return x
    shrinks = size < max(x.shape[-2:])
    return F.interpolate(x, (size, size), mode="bilinear", antialias=shrinks)


def crop_boxes(config: AugmentConfig, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """``count`` random regions for ``resized`` or ``scales``: left, top, right, bottom."""
    draw = torch.rand(4, count, generator=generator, device=generator.device)
    if config.crop == "resized":
        area = (config.min_area + (1 - config.min_area) * draw[0]) * height * width
        aspect = torch.exp(LOG_ASPECT * (2 * draw[1] - 1))
        across = (area * aspect).sqrt().clamp(max=width)
        down = (area / aspect).sqrt().clamp(max=height)
    else:
        scale = torch.where(draw[0] < 0.5, SCALES[0], SCALES[1])
        across = down = min(height, width) / scale
    left, top = draw[2] * (width - across), draw[3] * (height - down)
    return torch.stack([left, top, left + across, top + down], dim=1)


def cut_regions(x: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Each image's box, resized to ``size``."""
    geometry = need("kornia.geometry.transform")
    left, top, right, bottom = boxes.to(x.dtype).unbind(1)
    right, bottom = right - 1, bottom - 1  # kornia's corners are pixel centres
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    quads = torch.stack([torch.stack(corner, dim=1) for corner in corners], dim=1)
    return geometry.crop_and_resize(x, quads, (size, size))


def randaugment(x: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """RandAugment by kornia, which draws from torch's global generator: seeded, then restored."""
    auto = need("kornia.augmentation.auto")
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    policy = auto.RandAugment(n=config.randaugment_ops, m=config.randaugment_magnitude)
    colour = x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        varied = policy(colour.contiguous())
    return varied if x.shape[1] == 3 else varied.mean(dim=1, keepdim=True)


def pad_crop(x: Tensor, padding: int, mode: str, generator: torch.Generator) -> Tensor:
    """Pad every side, then cut the original size out of each image at its own random place.

    Raises:
        UsageError: the padding is too wide to be reflected.
    """
    B, C, H, W = x.shape
    if mode == "reflect" and padding >= min(H, W):
        raise UsageError(
            f"data.augment.padding is {padding}, images are {H} x {W}; "
            "reflection needs less padding than the side: lower it or set padding_mode to zeros"
        )
    padded = F.pad(x, (padding,) * 4, mode="constant" if mode == "zeros" else mode)
    draw = torch.randint(2 * padding + 1, (2, B), generator=generator, device=generator.device)
    rows = draw[0].view(B, 1, 1, 1) + torch.arange(H, device=x.device).view(1, 1, H, 1)
    columns = draw[1].view(B, 1, 1, 1) + torch.arange(W, device=x.device).view(1, 1, 1, W)
    image = torch.arange(B, device=x.device).view(B, 1, 1, 1)
    channel = torch.arange(C, device=x.device).view(1, C, 1, 1)
    return padded[image, channel, rows, columns]


def mirror(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image left to right with probability one half."""
    flips = torch.rand(len(x), generator=generator, device=generator.device) < 0.5
    return torch.where(flips.view(-1, 1, 1, 1), x.flip(-1), x)


def augment(
    images: Tensor, config: AugmentConfig, facts: Facts, generator: torch.Generator, *, regions: bool = True
) -> Tensor:
    """Training images (B, C, H, W) from bytes; ``regions=False`` if the reader cut them."""
    x, size = to_unit(images), facts.image_size
    if regions and config.crop in ("resized", "scales"):
        x = cut_regions(x, crop_boxes(config, len(x), *x.shape[-2:], generator), size)
    if config.randaugment_ops:
        x = randaugment(x, config, generator)
    x = normalise(x, facts)
    if config.crop == "resize-pad":
        x = resize(x, size)
    if config.crop in ("pad", "resize-pad") and config.padding:
        x = pad_crop(x, config.padding, config.padding_mode, generator)
    if config.flip:
        x = mirror(x, generator)
    return resize(x, size)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha); torch has none that takes a generator."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return Random(int(seed)).betavariate(alpha, alpha)


def mix(
    x: Tensor, labels: Tensor, num_classes: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix with the batch in another order; labels become shares of classes (B, K).

    Done by hand: kornia's mixup draws its share evenly, the recipe needs Beta(alpha, alpha).
    """
    choices = [name for name in ("mixup_alpha", "cutmix_alpha") if getattr(config, name) > 0]
    if not choices:
        return x, labels
    device = generator.device
    which = choices[int(torch.randint(len(choices), (), generator=generator, device=device))]
    share = _beta(getattr(config, which), generator)
    other = torch.randperm(len(x), generator=generator, device=device)
    if which == "mixup_alpha":
        x = share * x + (1 - share) * x[other]
    else:
        x, share = _paste(x, x[other], share, generator)
    targets = F.one_hot(labels, num_classes).to(x.dtype)
    return x, share * targets + (1 - share) * targets[other]


def _paste(x: Tensor, other: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Put a box of about 1 - share of ``other`` into ``x``; the true share comes back."""
    H, W = x.shape[-2:]
    side = math.sqrt(1 - share)
    row, column = torch.rand(2, generator=generator, device=generator.device).tolist()
    top, bottom = (round(min(max(row * H + s * side * H / 2, 0), H)) for s in (-1, 1))
    left, right = (round(min(max(column * W + s * side * W / 2, 0), W)) for s in (-1, 1))
    x = x.clone()
    x[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return x, 1 - (bottom - top) * (right - left) / (H * W)
