"""Encoded images to bytes: all at once when they fit in memory, or one at a time on demand."""

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demp.errors import UsageError
from demp.train.extras import need

MEGABYTE = 2**20
LOOKED_AT = 64
"""Images that decide whether a set is grey or coloured."""


def image_mode(table: Any, column: str) -> str:
    """``L`` if the first images are all grey, else ``RGB``."""
    encoded = _encoded(table.select(range(min(LOOKED_AT, len(table)))), column)
    grey = {"1", "L", "LA", "I", "I;16", "F"}
    images = (_open(cell, f"{column}[{row}]") for row, cell in enumerate(encoded[column]))
    return "L" if all(image.mode in grey for image in images) else "RGB"


def decode_all(
    tables: Mapping[str, Any], column: str, mode: str, side: int, memory_mb: int
) -> dict[str, "Tensor | LazyImages"]:
    """Each split as one byte tensor if all fit in ``memory_mb``, else each decodes on demand."""
    lazy = {name: LazyImages(table, column, mode, side) for name, table in tables.items()}
    one = next(iter(lazy.values())).read(0)
    if one.numel() * sum(len(images) for images in lazy.values()) > memory_mb * MEGABYTE:
        return dict(lazy)
    return {name: images.read_all() for name, images in lazy.items()}


class LazyImages:
    """One image per read, as bytes (C, H, W); picklable, so that worker processes can read."""

    def __init__(self, table: Any, column: str, mode: str, side: int) -> None:
        self.table = _encoded(table, column)
        self.column = column
        self.mode = mode
        self.side = side

    def __len__(self) -> int:
        return len(self.table)

    def select(self, rows: Tensor) -> "LazyImages":
        """The images at ``rows``, in that order."""
        return LazyImages(self.table.select(rows.tolist()), self.column, self.mode, self.side)

    def open(self, index: int) -> Any:
        """The image at ``index`` as a PIL image in the set's mode, of its own size."""
        cell = self.table[int(index)][self.column]
        return _open(cell, f"{self.column}[{index}]").convert(self.mode)

    def read(self, index: int) -> Tensor:
        """The image, brought to ``side`` if there is one."""
        image = self.open(index)
        return to_bytes(fit(image, self.side) if self.side else image)

    def read_all(self) -> Tensor:
        """All images (N, C, H, W), which must have one size.

        Raises:
            UsageError: two differ in size, or one cannot be read.
        """
        first = self.read(0)
        stack = torch.empty(len(self), *first.shape, dtype=torch.uint8)
        row = 0
        for cells in self.table.iter(batch_size=1000):
            for cell in cells[self.column]:
                image = _open(cell, f"{self.column}[{row}]").convert(self.mode)
                image = to_bytes(fit(image, self.side) if self.side else image)
                if image.shape != first.shape:
                    raise UsageError(
                        f"image 0 is {_size(first)}, image {row} is {_size(image)}; "
                        "set data.store_size to the side that all shall have"
                    )
                stack[row] = image
                row += 1
        return stack


def fit(image: Any, side: int) -> Any:
    """Resize the short side to ``side`` and cut a square out of the centre."""
    across, down = image.size
    factor = side / min(across, down)
    across, down = max(side, round(across * factor)), max(side, round(down * factor))
    if (across, down) != image.size:
        image = image.resize((across, down), need("PIL.Image").Resampling.BILINEAR)
    left, top = (across - side) // 2, (down - side) // 2
    return image.crop((left, top, left + side, top + side))


def to_bytes(image: Any) -> Tensor:
    """A PIL image as a byte tensor (C, H, W)."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _size(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[2]}"


def _encoded(table: Any, column: str) -> Any:
    """The table with images left encoded; decoding is ours, without a copy of every column."""
    others = [name for name in table.column_names if name != column]
    return table.remove_columns(others).cast_column(column, need("datasets").Image(decode=False))


def _open(cell: Mapping[str, Any], where: str) -> Any:
    images = need("PIL.Image")
    if not cell["bytes"] and not os.path.isfile(cell["path"] or ""):
        raise UsageError(
            f"the image {where} is missing: there is no file {cell['path']}; mend the path or drop the row"
        )
    try:
        image = images.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])
        image.load()
    except (OSError, SyntaxError, TypeError) as error:
        raise UsageError(f"the image {where} cannot be decoded; mend or drop it") from error
    return image
