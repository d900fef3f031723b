"""Examples in docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import demp

ROOT = Path(demp.__file__).parent


def module_of(file: Path) -> str:
    """Name of the module in a file of the package."""
    return ".".join(("demp", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = [module_of(file) for file in sorted(ROOT.rglob("*.py")) if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
