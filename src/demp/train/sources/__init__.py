"""From the name of a data set to its images and labels.

`splits` says what a set is, `opening` finds tables by name, `tables` and `arrays` read the two kinds. A split whose
decoded images fit the byte budget is a tensor of bytes; a larger one decodes on demand (`demp.train.stream`).
"""

from dataclasses import replace
from functools import cache

from demp.errors import UsageError
from demp.train import digits
from demp.train.extras import need
from demp.train.parts import DataConfig
from demp.train.sources.arrays import from_arrays, is_of_arrays
from demp.train.sources.opening import FOLDER_NAMES, FOLDER_VARIABLE, HUB, here, names, open_tables
from demp.train.sources.splits import Source, Split, check_labels, chosen_splits
from demp.train.sources.tables import from_tables

__all__ = ["FOLDER_VARIABLE", "HUB", "Source", "Split", "find", "here", "load", "names"]


def load(config: DataConfig, *, train: bool = True) -> Source:
    """Read the data set that ``config`` names; without ``train`` only its test split."""
    if config.name == "digits":
        source = _digits_of(config)
    elif is_of_arrays(config.name):
        source = from_arrays(config, train=train)
    else:
        source = from_tables(config, train=train)
    for split, name in ((source.train, config.train_split), (source.test, "test")):
        if split is not None:
            check_labels(split.labels, source.num_classes, f"{config.name}, split {name}")
    return source


def find(name: str) -> None:
    """Make sure that the set can be opened; a large one is fetched.

    Raises:
        UsageError: it cannot; says where to get it.
    """
    if name == "digits":
        need("sklearn.datasets")
        return
    if is_of_arrays(name):
        return
    try:
        open_tables(name)
    except UsageError as error:
        if name not in HUB:
            raise
        folder = " or ".join(FOLDER_NAMES.get(name, (name,)))
        raise UsageError(
            f"the data set {name} is not at hand ({error}); it is {HUB[name]['path']} on the hub: go online once, or "
            f"put its files into a folder {folder} and name the folder above it with --data or {FOLDER_VARIABLE}"
        ) from None


def _digits_of(config: DataConfig) -> Source:
    whole = _digits()
    splits = {"train": whole.train, "test": whole.test}
    wanted = chosen_splits(splits, config, train=True)
    return replace(whole, train=splits[wanted["train"]], test=splits[wanted["test"]])


@cache
def _digits() -> Source:
    train, test = (Split(images, labels) for images, labels in digits.splits())
    return Source(train=train, test=test, class_names=tuple("0123456789"), num_classes=10, channels=1)
