"""One HTML file from runs, sweeps and studies; reads files only and needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demp import files
from demp.errors import UsageError
from demp.experiments.report.page import page
from demp.experiments.report.sources import Material, gather

__all__ = ["Material", "gather", "page", "write"]


def write(paths: Sequence[str | Path], out: str | Path, *, refresh: float | None = None) -> dict[str, Any]:
    """Read what is in ``paths`` and write the page; what was read and skipped, JSON-ready.

    Raises:
        UsageError: there is nothing to report, or ``out`` cannot be written.
    """
    material = gather(paths)
    return written(material, Path(out), refresh)


def written(material: Material, out: Path, refresh: float | None = None) -> dict[str, Any]:
    """Write the page of what was gathered.

    Raises:
        UsageError: ``out`` cannot be written.
    """
    if out.is_dir():
        raise UsageError(f"{out} is a folder; give a file, for example -o {out / 'report.html'}")
    text = page(material, refresh=refresh)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write(out, text)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}; give another file with -o") from error
    return {
        "out": str(out),
        "bytes": out.stat().st_size,
        "runs": len(material.runs),
        "claims": sum(len(study.claims) for study in material.studies),
        "skipped_lines": material.lines_skipped,
        "skipped": [str(fault) for fault in material.skipped],
        "live": material.live,
    }
