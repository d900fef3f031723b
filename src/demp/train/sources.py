"""From the name of a data set to its pictures and labels, through `datasets`.

A `Source` has a training and a test split. A split whose decoded pictures fit the byte budget is a
tensor of bytes; a larger one decodes on demand (`demp.train.stream`).
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.train import digits
from demp.train.extras import need
from demp.train.parts import DataConfig
from demp.train.pictures import LazyPictures, decode_all, picture_mode

HUB: dict[str, dict[str, Any]] = {
    "mnist": {"path": "ylecun/mnist"},
    "cifar10": {"path": "uoft-cs/cifar10"},
    "imagenette": {
        "path": "frgfm/imagenette",
        "revision": "refs/convert/parquet",
        "data_dir": "160px",
    },
    "imagenet-1k": {"path": "ILSVRC/imagenet-1k"},
}
"""What `datasets.load_dataset` is asked for under each short name."""
FOLDER_VARIABLE = "DEMP_DATA"
"""Environment variable: a folder with a folder for each short name, where the sets are looked for before the hub."""
FOLDER_NAMES = {"imagenette": ("imagenette", "imagenette160")}
"""Other names that the folder of a set may have."""
TEST_SPLIT = {"imagenet-1k": "validation"}
"""Where the split called test has no labels."""
STORE_SIZE = {"imagenette": 160}
"""Sets whose pictures have many sizes, and the side to which they are brought by default."""
TEST_NAMES = ("test", "validation", "valid", "val")
IMAGE_NAMES = ("image", "img", "picture", "pixel_values")
LABEL_NAMES = ("label", "labels", "fine_label", "target", "class")


def names() -> list[str]:
    """The data sets that have a short name."""
    return ["digits", *HUB]


@dataclass(frozen=True)
class Split:
    """Pictures with labels; ``pictures`` is a byte tensor (N, C, H, W) or decodes on demand."""

    pictures: Tensor | LazyPictures
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> "Split":
        """The pictures at ``rows``, in that order."""
        pictures = self.pictures[rows] if isinstance(self.pictures, Tensor) else self.pictures.select(rows)
        return Split(pictures, self.labels[rows])


@dataclass(frozen=True)
class Source:
    """A data set as it was found."""

    train: Split | None
    test: Split
    class_names: tuple[str, ...]
    num_classes: int
    channels: int


def load(config: DataConfig, *, train: bool = True) -> Source:
    """Read the data set that ``config`` names; without ``train`` only its test split."""
    source = _digits_of(config) if config.name == "digits" else _from_datasets(config, train)
    for split, name in ((source.train, config.train_split), (source.test, "test")):
        if split is not None:
            _check_labels(split.labels, source.num_classes, f"{config.name}, split {name}")
    return source


def _check_labels(labels: Tensor, num_classes: int, where: str) -> None:
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


def _digits_of(config: DataConfig) -> Source:
    whole = _digits()
    splits = {"train": whole.train, "test": whole.test}
    wanted = [config.train_split, config.test_split or "test"]
    for name in wanted:
        if name not in splits:
            raise UsageError(f"data set digits has no split {name!r}; it has {', '.join(splits)}")
    train, test = (splits[name] for name in wanted)
    assert test is not None
    return replace(whole, train=train, test=test)


@cache
def _digits() -> Source:
    train, test = (Split(pictures, labels) for pictures, labels in digits.splits())
    return Source(train=train, test=test, class_names=tuple("0123456789"), num_classes=10, channels=1)


def _from_datasets(config: DataConfig, with_train: bool) -> Source:
    found = _open(config.name)
    tables = {}
    if with_train:
        tables["train"] = _table(found, config.train_split, config.name)
    tables["test"] = _table(found, _test_split(found, config), config.name)
    first = next(iter(tables.values()))
    image = _image_column(first.features, config)
    label = _label_column(first.features, config)
    mode = picture_mode(first, image)
    channels = 1 if mode == "L" else 3
    labels = {name: _labels(table, label, config.name) for name, table in tables.items()}
    class_names = tuple(getattr(first.features[label], "names", None) or ())
    largest = 1 + max(int(values.max()) for values in labels.values())
    side = config.store_size or STORE_SIZE.get(config.name, 0)
    pictures = decode_all(tables, image, mode, side, config.memory_mb)
    splits = {name: Split(pictures[name], labels[name]) for name in tables}
    return Source(
        train=splits.get("train"),
        test=splits["test"],
        class_names=class_names,
        num_classes=config.num_classes or len(class_names) or largest,
        channels=channels,
    )


def _open(name: str) -> Any:
    """All splits that `datasets` finds under ``name``: short name, folder, file or hub name."""
    datasets = need("datasets")
    path = here(name) or Path(name).expanduser()
    local = path.exists()
    if local:
        request = _local_request(path)
    elif name in HUB:
        request = HUB[name]
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UsageError(_no_such(name))
    else:
        request = {"path": name}
    try:
        with _quiet(datasets):
            if local and (path / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(path))
            return datasets.load_dataset(**request)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(_why_not_opened(name, local, error)) from error
    except datasets.exceptions.DatasetGenerationError as error:
        cause = _first_line(error.__cause__ or error)
        raise UsageError(f"data set {name}: a file in it cannot be read: {cause}") from error


def here(name: str) -> Path | None:
    """The folder of a set with a short name on this machine, if the environment says where sets are."""
    parent = os.environ.get(FOLDER_VARIABLE, "")
    if not parent or name not in HUB:
        return None
    folders = [Path(parent).expanduser() / folder for folder in FOLDER_NAMES.get(name, (name,))]
    return next((folder for folder in folders if folder.is_dir()), None)


def find(name: str) -> None:
    """Raise a sentence that says where to get it unless the set can be opened; a large one is fetched."""
    if name == "digits":
        need("sklearn.datasets")
        return
    try:
        _open(name)
    except UsageError as error:
        if name not in HUB:
            raise
        folder = " or ".join(FOLDER_NAMES.get(name, (name,)))
        raise UsageError(
            f"the data set {name} is not at hand ({error}); it is {HUB[name]['path']} on the hub: go online once, or "
            f"put its files into a folder {folder} and name the folder above it with --data or {FOLDER_VARIABLE}"
        ) from None


def _local_request(path: Path) -> dict[str, Any]:
    if path.is_file():
        return {"path": path.suffix.lstrip("."), "data_files": {"train": str(path)}}
    return {"path": str(path)}


def _no_such(name: str) -> str:
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"there is no folder {name} with a data set; check data.name"
    close = get_close_matches(name, names(), 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(names())}"
    return f"unknown data set {name!r}; {hint}; others: a hub name (owner/name) or a local folder"


def _why_not_opened(name: str, local: bool, error: Exception) -> str:
    cause = _first_line(error)
    kind = type(error).__name__
    empty = re.search(r'Instruction "(.+)" corresponds to no data', cause)
    if empty:
        return f"data set {name}: the split {empty[1]!r} is empty; put rows into it"
    if local and kind in ("EmptyDatasetError", "DataFilesNotFoundError"):
        return f"the folder {name} holds no data files; put parquet files or pictures into it"
    if local:
        return f"data set {name}: a file in it cannot be read, download or copy it again: {cause}"
    if isinstance(error, ConnectionError):
        return f"data set {name!r}: there is no such folder, and the hub cannot be reached: {cause}"
    return f"data set {name!r} was found neither as a folder nor on the hub: {cause}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No progress bars unless a person watches, and none of the library's own log lines."""
    bars = datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


def _table(found: Any, split: str, name: str) -> Any:
    if split not in found:
        raise UsageError(f"data set {name} has no split {split!r}; it has {', '.join(found)}")
    if len(found[split]) == 0:
        raise UsageError(f"data set {name}: the split {split!r} is empty; choose another split")
    return found[split]


def _test_split(found: Any, config: DataConfig) -> str:
    wanted = config.test_split or TEST_SPLIT.get(config.name)
    if wanted:
        return wanted
    for name in TEST_NAMES:
        if name in found:
            return name
    raise UsageError(
        f"data set {config.name} has no split to test on, only {', '.join(found)}; "
        "set data.test_split to the split to test on"
    )


def _image_column(features: Any, config: DataConfig) -> str:
    Image = need("datasets").Image
    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    named = [name for name in IMAGE_NAMES if name in images]
    return _column(config.image_column, named or images, features, "image", config.name)


def _label_column(features: Any, config: DataConfig) -> str:
    ClassLabel = need("datasets").ClassLabel
    classes = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    named = [name for name in LABEL_NAMES if name in features]
    return _column(config.label_column, named or classes, features, "label", config.name)


def _column(wanted: str, found: list[str], features: Any, what: str, name: str) -> str:
    known = f"the columns are {', '.join(features)}"
    if wanted and wanted not in features:
        raise UsageError(f"data.{what}_column is {wanted!r}, not in data set {name}; {known}")
    if not wanted and not found:
        raise UsageError(f"data set {name} has no {what} column that demp knows; {known}; set data.{what}_column")
    return wanted or found[0]


def _labels(table: Any, column: str, name: str) -> Tensor:
    values = table.with_format("numpy")[column][:]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UsageError(
            f"data set {name}: column {column!r} does not hold one whole number per picture; "
            "name another with data.label_column, or encode it with datasets' class_encode_column"
        )
    return torch.from_numpy(values.astype("int64"))
