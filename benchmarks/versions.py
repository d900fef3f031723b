"""Two versions side by side: the step between cuts, a check, surgery and the trace, each version in turns.

    git worktree add /tmp/before 02444af
    .venv/bin/python benchmarks/versions.py --before /tmp/before

Every turn runs the benchmark of each version with that version's sources, which of the two first alternates. A row is
the median over turns of both versions, and the median ratio of today over before, turn by turn. To reach: 1.03.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Ratio, arguments, parsed, show

LIMIT = 1.03
TODAY = Path(__file__).parent.parent
COMMANDS = {
    "step": ("step_overhead", "--widths 16 --pairs 15"),
    "check": ("check_time", "--widths 16 --pairs 5"),
    "surgery": ("surgery_time", "--repeats 5"),
    "trace": ("trace_time", ""),
}
SECONDS = ("demp_cut_s", "surgery_alone_s", "first_call_s", "later_s")
"""What a benchmark that is no ratio says in seconds."""


def main() -> None:
    """Measure every kind, in turns."""
    parser = arguments(
        __doc__,
        before={"type": Path, "required": True, "help": "a checkout of the version before"},
        kinds={"nargs": "+", "choices": list(COMMANDS), "default": list(COMMANDS)},
        turns={"type": int, "default": 3},
    )
    chosen = parsed(parser)
    threads = chosen.threads or 1
    for kind in chosen.kinds:
        show(measure(kind, chosen.before, chosen.turns, threads), chosen.json)


def measure(kind: str, before: Path, turns: int, threads: int) -> list[Ratio]:
    """The rows of one benchmark."""
    taken: dict[Path, list[dict[str, float]]] = {before: [], TODAY: []}
    for turn in range(turns):
        for checkout in (before, TODAY) if turn % 2 == 0 else (TODAY, before):
            taken[checkout].append(once(kind, checkout, threads))
    names = [name for name in taken[before][0] if name in taken[TODAY][0]]
    return [
        Ratio(name, [old[name] for old in taken[before]], [new[name] for new in taken[TODAY]], limit=LIMIT)
        for name in names
    ]


def once(kind: str, checkout: Path, threads: int) -> dict[str, float]:
    """What one process of one version measured, by name: of a ratio its median, else seconds."""
    script, options = COMMANDS[kind]
    command = [sys.executable, str(checkout / "benchmarks" / f"{script}.py"), "--json", "--threads", str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    printed = subprocess.check_output([*command, *options.split()], env=environment, text=True, cwd=checkout)
    return dict(pair for result in json.loads(printed)["results"] for pair in numbers(result))


def numbers(result: dict[str, Any]) -> list[tuple[str, float]]:
    """The numbers of one result."""
    if "ours_seconds" in result:
        ours = statistics.median(result["ours_seconds"])
        return [(f"{result['name']}, over plain", result["median"]), (f"{result['name']}, seconds", ours)]
    return [(f"{result['name']}, {key}", result[key]) for key in SECONDS if key in result]


if __name__ == "__main__":
    main()
