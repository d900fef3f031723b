"""Images and labels in arrays: an .npz file, a folder of .npy files, tensors that `torch.save` wrote.

Names say what an array is: ``images`` or ``x`` and ``labels`` or ``y``, with a split before or behind it, as in
``x_train``, ``train_images``, ``test_labels``; without one they are the split train.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demp.errors import UsageError
from demp.train.parts import DataConfig
from demp.train.sources.opening import SPLIT_OF_FILE
from demp.train.sources.splits import Source, Split, chosen_splits, encoded

FILES = (".npz", ".npy", ".pt", ".pth")
IMAGES = ("images", "image", "x", "pictures", "data", "inputs")
LABELS = ("labels", "label", "y", "targets", "target", "classes")
NAMES = "name them x_train, y_train, x_test and y_test, or images and labels"


def is_of_arrays(name: str) -> bool:
    """Does this name a file of arrays, or a folder of .npy files?"""
    path = Path(name).expanduser()
    return (path.is_file() and path.suffix in FILES) or (path.is_dir() and any(path.glob("*.npy")))


def from_arrays(config: DataConfig, *, train: bool) -> Source:
    """The set in the arrays of a file or folder.

    Raises:
        UsageError: arrays are missing, are no images or labels, or differ in length.
    """
    if config.store_size:
        raise UsageError("data.store_size is for encoded images; arrays have their size: set data.image_size")
    where = f"data set {config.name}"
    pairs = _by_split(_read(Path(config.name).expanduser(), where), where)
    wanted = chosen_splits(pairs, config, train=train)
    images = {name: as_images(pairs[split]["images"], f"{where}, {split}") for name, split in wanted.items()}
    labels, words = _labels({name: pairs[split]["labels"] for name, split in wanted.items()}, where)
    for name, split in wanted.items():
        if not 0 < len(images[name]) == len(labels[name]):
            raise UsageError(
                f"{where}, {split}: {len(images[name])} images and {len(labels[name])} labels; give as many of both"
            )
    splits = {name: Split(images[name], labels[name]) for name in wanted}
    largest = 1 + max(int(values.max()) for values in labels.values())
    return Source(
        train=splits.get("train"),
        test=splits.get("test"),
        class_names=words,
        num_classes=config.num_classes or len(words) or largest,
        channels=next(iter(images.values())).shape[1],
    )


def _read(path: Path, where: str) -> Mapping[str, Any]:
    """Name -> array; nothing in a file is run."""
    try:
        if path.is_dir():
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        if path.suffix in (".pt", ".pth"):
            return _flat(torch.load(path, map_location="cpu", weights_only=True))
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            with found:
                return dict(found)
    except Exception as error:  # numpy and torch raise whatever a damaged file makes of them
        raise UsageError(f"{where} cannot be read: {str(error).strip().splitlines()[0]}") from error
    raise UsageError(f"{where} is one array; put {path.name} into a folder with its labels, and {NAMES}")


def _flat(found: Any) -> Mapping[str, Any]:
    """Pairs of images and labels by name, whether the file has a pair, one per split, or tensors by name."""
    if isinstance(found, (tuple, list)):
        found = {"train": found}
    flat: dict[str, Any] = {}
    for name, value in found.items() if isinstance(found, Mapping) else ():
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        flat |= {f"{name}_x": value[0], f"{name}_y": value[1]} if pair else {str(name): value}
    return flat


def _by_split(arrays: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in arrays:
        words = re.split(r"[^a-z0-9]+", name.lower())
        split = next((SPLIT_OF_FILE[word] for word in words if word in SPLIT_OF_FILE), "train")
        for part, known in (("images", IMAGES), ("labels", LABELS)):
            if any(word in known for word in words):
                found.setdefault(split, {})[part] = arrays[name]
    complete = {split: parts for split, parts in found.items() if len(parts) == 2}
    if not complete:
        there = ", ".join(arrays) or "nothing"
        raise UsageError(f"{where} has no images with labels that demp knows by name; it has {there}; {NAMES}")
    return complete


def as_images(values: Any, where: str) -> Tensor:
    """Bytes (N, C, H, W) from (N, H, W), (N, H, W, C) or (N, C, H, W): bytes, or floats from 0 to 1.

    Raises:
        UsageError: the array has another shape, or other numbers.
    """
    found = torch.as_tensor(values)
    found = found.unsqueeze(1) if found.ndim == 3 else found
    if found.ndim == 4 and found.shape[1] not in (1, 3) and found.shape[3] in (1, 3):
        found = found.permute(0, 3, 1, 2)
    if found.ndim != 4 or found.shape[1] not in (1, 3):
        shape = " x ".join(map(str, torch.as_tensor(values).shape))
        raise UsageError(
            f"{where}: an array of {shape} is no set of images; give N x H x W, N x H x W x 3 or N x 3 x H x W"
        )
    if found.dtype == torch.uint8 or not found.numel():
        return found.to(torch.uint8).contiguous()
    low, high = float(found.min()), float(found.max())
    if found.is_floating_point() and 0 <= low <= high <= 1:
        return (found.double() * 255).round().to(torch.uint8).contiguous()
    if not found.is_floating_point() and 0 <= low <= high <= 255:
        return found.to(torch.uint8).contiguous()
    raise UsageError(f"{where}: images from {low:g} to {high:g}; give bytes from 0 to 255, or floats from 0 to 1")


def _labels(values: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    arrays = {name: np.asarray(value) for name, value in values.items()}
    arrays = {name: a[:, 0] if a.ndim == 2 and a.shape[1] == 1 else a for name, a in arrays.items()}
    if any(a.ndim != 1 or a.dtype.kind not in "iuUb" for a in arrays.values()):
        raise UsageError(f"{where}: labels are not one whole number or word per image; give N of them")
    if all(a.dtype.kind == "U" for a in arrays.values()):
        return encoded({name: a.tolist() for name, a in arrays.items()})
    return {name: torch.from_numpy(a.astype("int64")) for name, a in arrays.items()}, ()
