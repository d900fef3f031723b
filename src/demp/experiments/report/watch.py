"""Follow what is under way: the page is written again when files changed, until every run has ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from demp.errors import UsageError
from demp.experiments.report import gather, written
from demp.experiments.report.runs import UNFINISHED
from demp.experiments.report.sources import Material
from demp.files.run import RunFiles

SECONDS = 3.0
"""Between two looks."""
QUIET = 5
"""Looks at a sweep that find nothing new and nothing under way, before it counts as ended."""


def watch(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda text: None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Write the page now and whenever something is new; once all has ended, one that no longer loads itself again.

    A single run has ended when it has its summary; a folder that may get more runs, when nothing is under way in it and
    it was quiet for a while. An interrupt leaves such a last page, too, and goes on.

    Raises:
        UsageError: there is nothing to report, or ``seconds`` is not above 0.
    """
    if not seconds > 0:
        raise UsageError(f"every is {seconds:g}; give seconds above 0")
    out, quiet = Path(out), 0
    patience = 0 if all(RunFiles(path).exist() for path in paths) else QUIET
    seen, material = state(paths, out), gather(paths)
    try:
        while material.live or quiet < patience:
            if quiet == 0:
                written(material, out, refresh=seconds)
                say(f"{out}: {progress(material)}")
            sleep(seconds)
            now = state(paths, out)
            quiet = quiet + 1 if now == seen else 0
            if quiet == 0:
                seen, material = now, gather(paths)
    except KeyboardInterrupt:
        written(material, out)
        raise
    say(f"{out}: all has ended")
    return written(material, out)


def progress(material: Material) -> str:
    """Return one line on how far the runs are."""
    running = [run for run in material.runs if run.status == UNFINISHED]
    ended = len(material.runs) - len(running)
    first = ", ".join(f"{run.name} at step {run.step:,} of {run.steps:,}" for run in running[:2])
    under_way = f"; {first}{', ...' if len(running) > 2 else ''}" if running else ""
    return f"{ended} of {len(material.runs)} runs ended{under_way}"


def state(paths: Sequence[str | Path], out: Path) -> tuple[tuple[str, int, int], ...]:
    """Return names, sizes and times of the files that a report reads."""
    return tuple(sorted((str(f), s.st_size, s.st_mtime_ns) for f in files(paths) if (s := stat(f)) and f != out))


def files(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Yield the lines, configs and summaries in the paths; weights do not matter."""
    for path in map(Path, paths):
        if path.is_file():
            yield path
        else:
            for kind in ("*.jsonl", "*.json", "*.toml"):
                yield from path.rglob(kind)


def stat(file: Path) -> Any:
    """Return size and time of a file; None where it was just deleted."""
    try:
        return file.stat()
    except OSError:
        return None
