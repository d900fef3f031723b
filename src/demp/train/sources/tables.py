"""From tables to images and labels: which columns they are, and what their cells hold.

An image is an image of `datasets`, the bytes of a file (what pandas writes to parquet), or a path, relative to the
folder of the table. A label is a whole number or a word.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demp.errors import UsageError
from demp.train.extras import need
from demp.train.images import decode_all, image_mode
from demp.train.parts import DataConfig
from demp.train.sources.opening import open_tables
from demp.train.sources.splits import Source, Split, chosen_splits, encoded

STORE_SIZE = {"imagenette": 160}
"""Sets whose images have many sizes, and the side to which they are brought by default."""
IMAGE_NAMES = ("image", "img", "picture", "pixel_values")
PATH_NAMES = ("path", "file", "file_name", "filename", "filepath", "image_path")
LABEL_NAMES = ("label", "labels", "fine_label", "target", "class", "category", "y")
TEXTS = ("string", "large_string")
BYTES = ("binary", "large_binary")


def from_tables(config: DataConfig, *, train: bool) -> Source:
    """The set that `datasets` opens under the config's name."""
    found = open_tables(config.name)
    wanted = chosen_splits(found, config, train=train)
    tables = {name: _table(found, split, config.name) for name, split in wanted.items()}
    first = next(iter(tables.values()))
    image = _image_column(first.features, config)
    label = _label_column(first.features, config)
    tables = {name: _with_images(table, image, config.name) for name, table in tables.items()}
    mode = image_mode(next(iter(tables.values())), image)
    labels, words = _all_labels(tables, label, config.name)
    class_names = words or tuple(getattr(first.features[label], "names", None) or ())
    largest = 1 + max(int(values.max()) for values in labels.values())
    side = config.store_size or STORE_SIZE.get(config.name, 0)
    images = decode_all(tables, image, mode, side, config.memory_mb)
    splits = {name: Split(images[name], labels[name]) for name in tables}
    return Source(
        train=splits.get("train"),
        test=splits.get("test"),
        class_names=class_names,
        num_classes=config.num_classes or len(class_names) or largest,
        channels=1 if mode == "L" else 3,
    )


def _table(found: Any, split: str, name: str) -> Any:
    if len(found[split]) == 0:
        raise UsageError(f"data set {name}: the split {split!r} is empty; choose another split")
    return found[split]


def _image_column(features: Any, config: DataConfig) -> str:
    Image = need("datasets").Image
    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    named = [name for name in IMAGE_NAMES if name in images]
    others = [name for name in (*IMAGE_NAMES, *PATH_NAMES) if name in features]
    return _column(config.image_column, named or images or others, features, "image", config.name)


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


def _with_images(table: Any, column: str, name: str) -> Any:
    """The table whose column of bytes, paths or both is one of images."""
    datasets = need("datasets")
    kind = table.features[column]
    if isinstance(kind, datasets.Image):
        return table
    dtype = getattr(kind, "dtype", "")
    if dtype in TEXTS:
        home = Path(name).expanduser()
        home = home if home.is_dir() else home.parent
        paths = [str(home / path) if path else path for path in table[column][:]]
        table = table.remove_columns(column).add_column(column, paths)
    elif dtype not in BYTES and not (isinstance(kind, dict) and {"bytes", "path"} <= kind.keys()):
        raise UsageError(
            f"data set {name}: column {column!r} holds {dtype or type(kind).__name__}, no images; store the bytes of "
            "image files or their paths in it (or arrays in an .npz file), or name another with data.image_column"
        )
    return table.cast_column(column, datasets.Image(decode=False))


def _all_labels(tables: dict[str, Any], column: str, name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The labels of each split as numbers, and the words that they were."""
    if all(getattr(table.features[column], "dtype", "") in TEXTS for table in tables.values()):
        texts = {split: list(table[column][:]) for split, table in tables.items()}
        if any(text is None for values in texts.values() for text in values):
            raise UsageError(
                f"data set {name}: column {column!r} has cells without a label; fill them or drop the rows"
            )
        return encoded(texts)
    return {split: _numbers(table, column, name) for split, table in tables.items()}, ()


def _numbers(table: Any, column: str, name: str) -> Tensor:
    values = table.with_format("numpy")[column][:]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UsageError(
            f"data set {name}: column {column!r} does not hold one whole number or word per image; "
            "name another with data.label_column"
        )
    return torch.from_numpy(values.astype("int64"))
