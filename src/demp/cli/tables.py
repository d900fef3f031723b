"""Tables on a screen, and what their runs share."""

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demp.train.config import TrainConfig

WIDE = 190
"""Characters that the widest table needs."""
HEADING = 10
"""Characters of a line of a heading."""


def widen(console: Console) -> bool:
    """Is there room for the widest table? Off a terminal there always is."""
    if not console.is_terminal:
        console.width = WIDE
    return console.width >= WIDE


def draw(console: Console, columns: Sequence[tuple[str, Sequence[str]]], *, left: int) -> None:
    """Headings and cells; the first ``left`` columns hold texts, the others numbers."""
    drawn = Table(pad_edge=False, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for index, (heading, _) in enumerate(columns):
        words = textwrap.wrap(heading, HEADING, break_long_words=False)
        side = "left" if index < left else "right"
        drawn.add_column("\n".join(words), justify=side, vertical="bottom", no_wrap=True)
    for cells in zip(*(cells for _, cells in columns), strict=True):
        drawn.add_row(*cells)
    console.print(drawn, soft_wrap=False)


def about(base: TrainConfig, varied: Collection[str] = ()) -> str:
    """What all runs share, in a sentence; ``varied`` are config keys that they do not."""
    parts = {
        "model.name": base.model.name,
        "model.width": f"width {base.model.width:g}",
        "data.name": f"on {Path(base.data.name).name}",
        "steps" if base.steps else "epochs": f"{base.steps} steps" if base.steps else f"{base.epochs:g} epochs",
        "batch_size": f"{base.batch_size} images a step",
        "optimizer.name": base.optimizer.name,
        "optimizer.lr": f"learning rate {base.optimizer.lr:g}",
        "precision": base.precision,
    }
    if "optimizer.name" in varied:
        parts.pop("optimizer.lr")  # each has its own
    same = [words for key, words in parts.items() if key not in varied]
    start = "" if any(key.startswith("model.") for key in varied) else "the same weights at the start and "
    order = f"for each seed {start}the same images in the same order"
    kept = not any(key.startswith("data.") or key == "batch_size" for key in varied)
    return f"All runs: {', '.join(same)}{f'; {order}' if kept else ''}."
