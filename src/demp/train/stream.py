"""Sets too large for memory: worker processes decode, cut out regions and resize."""

import os
import signal
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from demp.train.augment import crop_boxes
from demp.train.extras import need
from demp.train.images import LazyImages, fit, to_bytes
from demp.train.parts import AugmentConfig, DataConfig
from demp.train.seeds import generator

MARGIN = 256 / 224
"""An image is resized to this multiple of its final side before the centre is cut out."""

Key = tuple[int, int, int]
"""Row of the table, step, place in the batch."""


def read_batches(
    images: LazyImages,
    steps: Iterable[tuple[int, Tensor]],
    config: DataConfig,
    size: int,
    seed: int,
    places: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and bytes (B, C, size, size) of each step at the given places; regions are seeded by (seed, step, place)."""
    loader = DataLoader(
        _Reader(images, config.augment, size, seed),
        batch_sampler=_Keys(steps, places),  # pyright: ignore[reportArgumentType]
        num_workers=min(config.workers, usable_cores()),
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals,
    )
    yield from loader


def usable_cores() -> int:
    """Processors that this process may run on; more workers would only take turns."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_fitted(images: LazyImages, rows: Tensor, size: int) -> Tensor:
    """Un-augmented bytes (N, C, size, size): short side to a little more than ``size``, centre."""
    return torch.stack([_centre(images.open(row), images.side, size) for row in rows.tolist()])


def _leave_signals(_worker: int) -> None:
    """Ctrl-C reaches the whole process group: the main process decides, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Keys:
    """The batches of keys that the loader asks its workers for."""

    def __init__(self, steps: Iterable[tuple[int, Tensor]], places: slice) -> None:
        self.steps, self.places = steps, places

    def __iter__(self) -> Iterator[list[Key]]:
        for step, rows in self.steps:
            yield [(row, step, place) for place, row in list(enumerate(rows.tolist()))[self.places]]


class _Reader(Dataset[tuple[int, Tensor]]):
    """What a worker process reads: the row and the bytes of one image, cut and resized, by its key."""

    def __init__(self, images: LazyImages, config: AugmentConfig, size: int, seed: int) -> None:
        self.images, self.config, self.size, self.seed = images, config, size, seed

    def __getitem__(self, key: Key) -> tuple[int, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        row, step, place = key
        image = self.images.open(row)
        if self.config.crop not in ("resized", "scales"):
            return row, _centre(image, self.images.side, self.size)
        draw = generator("cpu", self.seed, step, place)
        across, down = image.size
        box = crop_boxes(self.config, 1, down, across, draw)[0].tolist()
        bilinear = need("PIL.Image").Resampling.BILINEAR
        return row, to_bytes(image.resize((self.size, self.size), bilinear, box=tuple(box)))


def _centre(image: object, side: int, size: int) -> Tensor:
    around = fit(image, side or round(size * MARGIN))
    return to_bytes(fit_centre(around, size))


def fit_centre(image: object, size: int) -> object:
    """The centre of ``size`` squared of a square image that is larger; else it is resized."""
    side = image.size[0]  # pyright: ignore[reportAttributeAccessIssue]
    if side < size:
        return fit(image, size)
    edge = (side - size) // 2
    return image.crop((edge, edge, edge + size, edge + size))  # pyright: ignore[reportAttributeAccessIssue]
