"""Every single string of every file that a report reads, one after the other, is a payload: it is text on the page."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
from reading_pages import made
from runfolders import STUDY, write_sweep

from demp.errors import UsageError
from hostile import changed, leaves

pytestmark = pytest.mark.slow
PAYLOAD = "\"'></script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028\ud800|=1"


def at(values, path):
    for key in path:
        values = values[key]
    return values


def test_every_string_alone(tmp_path):
    folder, tried = write_sweep(tmp_path / "sweep", seeds=1, steps=20), 0
    (folder / "fig3.json").write_text(json.dumps(STUDY))
    for file in sorted([*folder.rglob("*.json"), *folder.rglob("*.jsonl")]):
        text = file.read_text()
        lines = [json.loads(line) for line in (text.splitlines() if file.suffix == ".jsonl" else [text])]
        for number, values in enumerate(lines[:2]):
            for path in leaves(values):
                for change in (PAYLOAD, ("rename", PAYLOAD)):
                    if change == PAYLOAD and not isinstance(at(values, path), str):
                        continue
                    if change != PAYLOAD and not isinstance(at(values, path[:-1]), dict):
                        continue
                    spoiled = [*lines[:number], changed(values, path, change), *lines[number + 1 :]]
                    file.write_text("".join(json.dumps(one) + "\n" for one in spoiled))
                    tried += 1
                    try:
                        _, reader, _ = made([folder])
                    except UsageError as error:
                        assert "\n" not in str(error)
                        continue
                    kinds = [kind for kind, _ in reader.elements]
                    assert kinds.count("script") == 2 and "iframe" not in kinds and kinds.count("img") == 0, path
                    names = {name for _, attributes in reader.elements for name in attributes}
                    assert not [name for name in names if name.startswith("on")], path
        file.write_text(text)
    assert tried > 200
