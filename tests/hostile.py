"""Saved models that someone has tampered with: parts of the JSON are what they should not be, hashes fit."""

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demp.artifact.architecture import content_hash

OLD = Path(__file__).parent / "old" / "model"
VALUES = (
    *(
        None,
        True,
        -1,
        0,
        1,
        3,
        2**31,
        2**62,
        10**30,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "os:system",
        "__class__",
    ),
    *([], [1], [[]], [-1], [2**40], {}, {"": 0}, {"x": {"y": 1}}, [{"shape": [2**33], "dtype": "float32"}], "float31"),
)
Path_ = tuple[Any, ...]


def leaves(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The place of every value, those that hold others among them."""
    if at:
        yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from leaves(inner, (*at, key))


def changed(architecture: dict[str, Any], at: Path_, change: Any) -> dict[str, Any]:
    """One value set, removed (``...``), or its key renamed (``("rename", NAME)``)."""
    whole = copy.deepcopy(architecture)
    place: Any = whole
    for key in at[:-1]:
        place = place[key]
    if change is ...:
        del place[at[-1]]
    elif isinstance(change, tuple):
        if isinstance(place, dict):
            place[change[1]] = place.pop(at[-1])
        else:
            place.insert(0, change[1])
    else:
        place[at[-1]] = change
    return whole


def mutants(count: int, seed: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """So many altered architectures, each with a name; all parts in turn, values at random."""
    rng = random.Random(seed)
    architecture = json.loads((OLD / "architecture.json").read_text())
    groups: dict[Path_, list[Path_]] = {}
    for at in leaves(architecture):
        if at[0] not in ("sha256", "weights_sha256"):
            groups.setdefault(at[:3], []).append(at)
    for number in range(count):
        at = rng.choice(groups[list(groups)[number % len(groups)]])
        change = rng.choice((*VALUES, ..., ("rename", "x"), ("rename", "fc1.weight|7")))
        yield f"{'.'.join(map(str, at))}={change!r:.60}", changed(architecture, at, change)


def write(folder: Path, architecture: dict[str, Any]) -> Path:
    """A saved model with this description of it."""
    if not folder.exists():
        shutil.copytree(OLD, folder)
    architecture["sha256"] = content_hash(architecture)
    (folder / "architecture.json").write_text(json.dumps(architecture))
    return folder
