"""The images of a run, in an order that is a pure function of the seed and the step.

Step ``t`` reads examples ``t * batch_size`` to ``(t + 1) * batch_size`` of an endless stream: one
permutation of the training split after the other, each seeded by (seed, epoch). Augmentation is
seeded by (seed, step). A resumed run therefore sees what it would have seen, with nothing to store.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.train import sources
from demp.train.augment import augment, mix, normalise, resize, to_unit
from demp.train.facts import Facts
from demp.train.parts import DataConfig
from demp.train.seeds import derive, generator
from demp.train.stream import read_batches, read_fitted

PIECE = 128
"""Images that are looked at at once: enough to keep a GPU busy, few enough for the caches of a CPU."""
STATISTICS_SAMPLE = 2048
"""Images from which mean and deviation of a set that streams are estimated."""
CHUNK = 4096


Share = tuple[int, int]
"""(rank, world size): every world-size-th image from the rank on, what one of so many processes works on."""
ALL: Share = (0, 1)


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """The order of the training split in one epoch."""
    return torch.randperm(size, generator=generator("cpu", seed, "order", epoch))


def step_indices(size: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The training examples of one step; a batch may cross the end of an epoch."""
    parts, position, missing = [], step * batch_size, batch_size
    while missing:
        epoch, offset = divmod(position, size)
        part = epoch_order(size, seed, epoch)[offset : offset + missing]
        parts.append(part)
        position, missing = position + len(part), missing - len(part)
    return torch.cat(parts)


class TestSet:
    """Images to test on, prepared as the facts say, never augmented."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, split: sources.Split, facts: Facts, device: torch.device, share: Share = ALL) -> None:
        self.split, self.facts, self.device, self.share = split, facts, device, share

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of this process's share once, in order, in batches of ``size``."""
        rank, world_size = self.share
        for rows in torch.arange(rank, len(self), world_size).split(size):
            labels = self.split.labels[rows].to(self.device)
            yield prepare(self.split, rows, self.facts, self.device), labels


def prepare(split: sources.Split, rows: Tensor, facts: Facts, device: torch.device) -> Tensor:
    """Un-augmented images, normalised: what tests and death checks see."""
    if isinstance(split.images, Tensor):
        images = split.images[rows.to(split.images.device)].to(device)
    else:
        images = read_fitted(split.images, rows, facts.image_size).to(device)
    x = normalise(to_unit(images), facts)
    return resize(x, facts.image_size)


def hold_out(source: sources.Source, share: float) -> sources.Source:
    """A share of the training images in place of the test split: the same ones in every run, evenly over the classes.

    Every 1/share-th image of the split sorted by class goes, so that a class gives its share to within one image.

    Raises:
        UsageError: the share is less than one image.
    """
    train = source.train
    assert train is not None
    by_class = train.labels.argsort(stable=True)
    steps = (torch.arange(len(train) + 1, dtype=torch.float64) * share).floor()
    goes = torch.zeros(len(train), dtype=torch.bool)
    goes[by_class] = steps[1:] > steps[:-1]
    if not goes.any():  # the first image always stays, so that the other part is never empty
        raise UsageError(
            f"data.validation is {share:g} of {len(train)} training images, not one whole image; give a larger one"
        )
    kept, held = (train.select(rows.nonzero().flatten()) for rows in (~goes, goes))
    return replace(source, train=kept, test=held)


class Data:
    """Training batches, test set and death-check examples of one run, or of one process's share of it.

    ``tested_on`` says what the test set is: the test split, or the validation share of the training images.

    Every process makes the whole batch and keeps its share: order and augmentation do not depend on their number.
    """

    def __init__(
        self, config: DataConfig, *, batch_size: int, seed: int, device: torch.device | str, share: Share = ALL
    ) -> None:
        self.config, self.batch_size, self.seed, self.share = config, batch_size, seed, share
        self.device = torch.device(device)
        source = sources.load(config)
        if config.validation:
            source = hold_out(source, config.validation)
        assert source.train is not None and source.test is not None
        self.facts = _facts(config, source)
        self.train = _on_device(source.train, self.device)
        self.test = TestSet(_on_device(source.test, self.device), self.facts, self.device, share)
        self.tested_on = "validation" if config.validation else "test"

    def train_batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches of steps ``start`` to ``stop``; mixed labels are shares of classes."""
        for step, (images, labels) in enumerate(self._read(start, stop), start):
            draw = generator(self.device, self.seed, "augment", step)
            regions = isinstance(self.train.images, Tensor)
            x = augment(images, self.config.augment, self.facts, draw, regions=regions)
            x, targets = mix(x, labels, self.facts.num_classes, self.config.augment, draw)
            yield x[self._mine], targets[self._mine]

    @property
    def _mine(self) -> slice:
        rank, world_size = self.share
        return slice(rank, None, world_size)

    def _read(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        images, size = self.train.images, len(self.train)
        if not isinstance(images, Tensor):
            steps = ((step, step_indices(size, self.batch_size, self.seed, step)) for step in range(start, stop))
            seed = derive(self.seed, "regions")
            mixes = self.config.augment.mixup_alpha > 0 or self.config.augment.cutmix_alpha > 0
            mine = slice(None) if mixes else self._mine  # reading is dear: without mixing, only the share is read
            batches = read_batches(images, steps, self.config, self.facts.image_size, seed, places=mine)
            for step, (_, read) in enumerate(batches, start):
                whole = read.new_zeros((self.batch_size, *read.shape[1:]))
                whole[mine] = read
                rows = step_indices(size, self.batch_size, self.seed, step)
                yield whole.to(self.device), self.train.labels[rows].to(self.device)
            return
        for step in range(start, stop):
            rows = step_indices(size, self.batch_size, self.seed, step).to(self.device)
            yield images[rows], self.train.labels[rows]

    def labelled_batches(self, check_seed: int, *, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Un-augmented training examples of one check with their labels, drawn by ``check_seed`` (App. F.3).

        They come in pieces, since a check ends as soon as no neuron is dead. ``whole``: batches of ``probe_size`` that
        go on to the end of the training split. Labels are whole numbers whatever the mixing of the training batches.
        """
        size, draw = self.config.probe_size, generator("cpu", check_seed, "probe")
        count = max(self.config.probe_batches, len(self.train) // size) if whole else self.config.probe_batches
        yield from self.drawn(size * count, draw, at_once=size if whole else None)

    def drawn(
        self, count: int, draw: torch.Generator, *, at_once: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """So many un-augmented training examples with their labels, or all there are; in pieces by default."""
        rows = torch.randperm(len(self.train), generator=draw)[:count]
        for part in rows.split(at_once or min(self.config.probe_size, PIECE)):
            mine = part[self._mine]
            if len(mine):
                labels = self.train.labels[mine.to(self.train.labels.device)].to(self.device)
                yield prepare(self.train, mine, self.facts, self.device), labels

    def example(self, count: int = 1) -> Tensor:
        """The first training images as the model sees them in a test."""
        rows = torch.arange(min(count, len(self.train)))
        return prepare(self.train, rows, self.facts, self.device)


def load_test_set(config: DataConfig, facts: Facts, device: torch.device | str) -> TestSet:
    """The test split of ``config`` alone, prepared for a model that was trained with ``facts``.

    Raises:
        UsageError: its images have other channels, or a label is no class of the model's head.
    """
    source = sources.load(config, train=False)
    assert source.test is not None
    if source.channels != facts.channels:
        raise UsageError(
            f"data set {config.name} has {source.channels} channels, the model reads "
            f"{facts.channels}; test it on data of the kind it was trained on"
        )
    highest = int(source.test.labels.max())
    if highest >= facts.num_classes:
        raise UsageError(
            f"data set {config.name} has a label {highest}, but the model's head has "
            f"{facts.num_classes} classes; test it on data with the same classes"
        )
    return TestSet(_on_device(source.test, torch.device(device)), facts, torch.device(device))


def _on_device(split: sources.Split, device: torch.device) -> sources.Split:
    if not isinstance(split.images, Tensor):
        return split
    return sources.Split(split.images.to(device), split.labels.to(device))


def _facts(config: DataConfig, source: sources.Source) -> Facts:
    split = source.train
    assert split is not None
    if isinstance(split.images, Tensor):
        height, width = split.images.shape[-2:]
        if height != width and not config.image_size:
            raise UsageError(
                f"images of {config.name} are {height} x {width}; set data.store_size, or "
                "data.image_size for the side of the square that the network sees"
            )
        own, sample = height, split.images
    else:
        own = config.image_size or split.images.side
        if not own:
            raise UsageError(
                f"images of {config.name} are too many for data.memory_mb ({config.memory_mb}) "
                "and stream; set data.image_size to the side that the network shall see"
            )
        draw = generator("cpu", 0, "statistics")
        rows = torch.randperm(len(split), generator=draw)[:STATISTICS_SAMPLE]
        sample = read_fitted(split.images, rows, own)
    mean, std = statistics(sample)
    return Facts(
        name=config.name,
        num_classes=source.num_classes,
        channels=source.channels,
        image_size=config.image_size or own,
        mean=mean,
        std=std,
        normalize=config.normalize,
        store_size=config.store_size,
        train_size=len(split),
    )


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel of byte images, on the scale from 0 to 1."""
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for part in images.split(CHUNK):
        values = part.double() / 255
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
