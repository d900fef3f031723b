"""What a data set is once it was read: images with labels, in a split to train on and one to test on."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.train.images import LazyImages
from demp.train.parts import DataConfig

TEST_SPLIT = {"imagenet-1k": "validation"}
"""Where the split called test has no labels."""
TEST_NAMES = ("test", "validation", "valid", "val")


@dataclass(frozen=True)
class Split:
    """Images with labels; ``images`` is a byte tensor (N, C, H, W) or decodes on demand."""

    images: Tensor | LazyImages
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> "Split":
        """The images at ``rows``, in that order."""
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.select(rows)
        return Split(images, self.labels[rows])


@dataclass(frozen=True)
class Source:
    """A data set as it was found; ``test`` is None where there is none and a part of ``train`` is to be held out."""

    train: Split | None
    test: Split | None
    class_names: tuple[str, ...]
    num_classes: int
    channels: int


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Make sure that every label is a class of the head.

    Raises:
        UsageError: one is not.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise UsageError(
            f"{where}: there are labels of {low}, which means unlabelled; "
            "set data.test_split to a split that has labels"
        )
    if high >= num_classes:
        raise UsageError(
            f"{where}: there is a label {high}, but the head has {num_classes} classes "
            f"(labels 0 to {num_classes - 1}); set data.num_classes to {high + 1}"
        )


def chosen_splits(found: Iterable[str], config: DataConfig, *, train: bool) -> dict[str, str]:
    """Which of the splits that there are is ``train``, and which ``test``.

    Raises:
        UsageError: a split is not there; there is none to test on, and nothing is to be held out.
    """
    there = list(found)
    wanted = {"train": config.train_split} if train else {}
    tested = config.test_split or TEST_SPLIT.get(config.name) or next((s for s in TEST_NAMES if s in there), "")
    if tested:
        wanted["test"] = tested
    elif not (train and config.validation):
        raise UsageError(
            f"data set {config.name} has no split to test on, only {', '.join(there)}; set data.test_split to the "
            "split to test on, or data.validation=0.1 to hold out a tenth of the training images"
        )
    for split in wanted.values():
        if split not in there:
            raise UsageError(f"data set {config.name} has no split {split!r}; it has {', '.join(there)}")
    return wanted


def encoded(texts: dict[str, list[str]]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Labels that are words as numbers in alphabetical order over all splits, and the words."""
    names = tuple(sorted({text for values in texts.values() for text in values}))
    number = {name: i for i, name in enumerate(names)}
    return {split: torch.tensor([number[text] for text in values]) for split, values in texts.items()}, names
