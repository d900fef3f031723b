"""Every example runs, and resumed from its checkpoint it prints the same numbers again."""

import importlib
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from shim import install_torchvision_shim
from thinning import mostly_slow

install_torchvision_shim()

# Imported while tests are collected: each check of a pruner searches all objects that were made since.
for library in ("lightning.pytorch", "sklearn.datasets", "transformers.trainer"):
    importlib.import_module(library)

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT: dict[str, dict[str, int]] = {
    "plain_loop": {"steps": 50},
    "accelerate_loop": {"epochs": 3},
    "fabric_loop": {"epochs": 3},
    "lightning_callback": {"epochs": 3},
    "huggingface_trainer": {"steps": 40},
}
WHOLE: dict[str, dict[str, int]] = {
    "plain_loop": {"steps": 300},
    "accelerate_loop": {"epochs": 12},
    "fabric_loop": {"epochs": 12},
    "lightning_callback": {"epochs": 12},
    "huggingface_trainer": {"steps": 300},
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.fixture(autouse=True)
def from_the_examples_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLES)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def printed(capsys: Any, name: str, length: dict[str, int], folder: Path, *, resume: bool) -> list[str]:
    """What an example prints, without what holds a time."""
    options = [f"--{option}={value}" for option, value in length.items()]
    line = [name, *options, f"--checkpoint={folder / 'checkpoint'}", *(["--resume"] if resume else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", line)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if "_runtime" not in line]
    return [re.sub(r", \d+\.\d+ s(?=;|$)", "", line) for line in lines]


def run_twice(capsys: Any, name: str, length: dict[str, int], folder: Path) -> list[str]:
    """Once through, and once from the middle: the same lines."""
    whole = printed(capsys, name, length, folder, resume=False)
    resumed = printed(capsys, name, length, folder, resume=True)
    assert 4 < len(resumed) < len(whole)
    assert resumed == whole[-len(resumed) :]
    return whole


def dense_and_now(lines: list[str]) -> tuple[int, int]:
    """Neurons in the first line of progress and at the end."""
    first = next(line for line in lines if "neurons" in line)
    before = first.split("neurons_alive': '")[1].split("'")[0] if "neurons_alive" in first else first.split()[5]
    return int(before), int(lines[-1].split("neurons=")[1].split(",")[0])


def test_every_example_is_here():
    found = {path.stem for path in EXAMPLES.glob("*.py")} - {"digits", "many_processes"}  # tests/ranks runs the second
    assert found == set(SHORT) == set(WHOLE)


@pytest.mark.parametrize("name", mostly_slow(SHORT, ("plain_loop",)))
def test_a_short_run(name: str, tmp_path: Path, capsys: Any):
    lines = run_twice(capsys, name, SHORT[name], tmp_path)
    assert any("right on" in line for line in lines)
    before, now = dense_and_now(lines)
    assert now < before


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_the_run_that_a_reader_sees(name: str, tmp_path: Path, capsys: Any):
    lines = run_twice(capsys, name, WHOLE[name], tmp_path)
    assert float(lines[-2].split("right on ")[1].split("%")[0]) > 94
    note = next(line for line in lines if "note: budget: " in line)
    share, limit = float(note.split("budget: ")[1].split()[0]), 0.6 if name == "huggingface_trainer" else 0.4
    assert 0.95 * limit < share <= limit
    assert dense_and_now(lines)[1] < dense_and_now(lines)[0]
