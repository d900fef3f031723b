"""The tables that `datasets` finds under a name: a short name, a folder, a file, or a set on the hub."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.train.extras import need

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
TABLE_KINDS = {".csv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
"""Files with one row per image, and the reader of `datasets` for each."""
SPLIT_OF_FILE = {"train": "train", "test": "test"} | dict.fromkeys(("validation", "valid", "val"), "validation")
"""Names of files and arrays that are splits."""


def names() -> list[str]:
    """The data sets that have a short name."""
    return ["digits", *HUB]


def open_tables(name: str) -> Any:
    """All splits that `datasets` finds under ``name``: short name, folder, file or hub name.

    Raises:
        UsageError: there is no such set, or it cannot be read; says why.
    """
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


def tables_in(path: Path) -> list[Path]:
    """CSV files that lie in a folder as its splits; ``metadata.csv`` of a folder of images is `datasets`' own."""
    files = sorted(file for file in path.glob("*.csv") if file.name != "metadata.csv") if path.is_dir() else []
    return files if len(files) == 1 else [file for file in files if file.stem in SPLIT_OF_FILE]


def _local_request(path: Path) -> dict[str, Any]:
    if path.is_file():
        if path.suffix not in TABLE_KINDS:
            kinds = ", ".join([*TABLE_KINDS, ".npz", ".pt"])
            raise UsageError(f"{path} is no file of images and labels that demp reads; it reads {kinds}, and folders")
        return {"path": TABLE_KINDS[path.suffix], "data_files": {"train": str(path)}}
    if files := tables_in(path):
        return {"path": "csv", "data_files": {SPLIT_OF_FILE.get(file.stem, "train"): str(file) for file in files}}
    return {"path": str(path)}


def _no_such(name: str) -> str:
    if Path(name).suffix in (*TABLE_KINDS, ".npz", ".npy", ".pt"):
        return f"there is no file {name}; check data.name"
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
        return f"the folder {name} holds no data files; put parquet files or images into it"
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
