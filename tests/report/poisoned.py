"""A sweep, a run and a study in which every free string is a payload."""

import json
from pathlib import Path

from runfolders import STUDY, write_run, write_sweep

PAYLOADS = (
    "<img src=x onerror='window.hit=1'>",
    '"><svg onload=window.hit=1>',
    "</script><script>window.hit=1</script>",
    "' onfocus=window.hit=1 autofocus tabindex=0 x='",
    "</title></style></textarea><iframe srcdoc='<script>parent.window.hit=1</script>'></iframe>",
    "=HYPERLINK(1)|`${window.hit=1}`\u2028&lt;script&gt;",
)
FIXED = {"status", "schema", "holds", "files", "began", "torch", "demp"}
"""What must be as it is, or the line is no result."""
NAMED = {"series", "layers", "setting", "kept"}
"""Objects whose keys are words of the user's, too."""


def poisoned(value, payload, key=""):
    """The same values; every string, and every key that is a name, holds the payload."""
    if isinstance(value, dict):
        entries = {k: v if k in FIXED else poisoned(v, payload, k) for k, v in value.items()}
        return {**entries, **({payload + k: v for k, v in entries.items()} if key in NAMED else {})}
    if isinstance(value, list):
        return [poisoned(one, payload, key) for one in value]
    return f"{payload}{value}" if isinstance(value, str) else value


def write_poisoned(folder: Path, payload: str) -> Path:
    """Files of every kind that a report reads."""
    write_sweep(folder, seeds=2)
    write_run(folder / "alone")
    (folder / "fig3.json").write_text(json.dumps(STUDY))
    for file in [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        file.write_text("\n".join(json.dumps(poisoned(json.loads(line), payload)) for line in lines) + "\n")
    (folder / "fig3.svg").write_text(f"<svg xmlns='http://www.w3.org/2000/svg'>{payload}</svg>")
    return folder
