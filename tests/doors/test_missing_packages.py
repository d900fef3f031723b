"""Without its package a door says in one sentence what to install; the others need none of their own."""

import importlib
import sys

import pytest

from demp.errors import UsageError


@pytest.mark.parametrize(
    ("door", "package", "message"),
    [
        (
            "lightning",
            "lightning",
            r"this needs the package lightning; install it with: pip install 'demp\[lightning\]'",
        ),
        ("huggingface", "transformers", r"needs the package transformers; .* pip install 'demp\[huggingface\]'"),
    ],
)
def test_one_sentence(door: str, package: str, message: str, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"demp.integrations.{door}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=message):
        importlib.import_module(f"demp.integrations.{door}")


@pytest.mark.parametrize("door", ["accelerate", "fabric"])
def test_nothing_to_import(door: str, monkeypatch: pytest.MonkeyPatch):
    for package in ("accelerate", "lightning", "lightning_fabric"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"demp.integrations.{door}", raising=False)
    assert callable(importlib.import_module(f"demp.integrations.{door}").attach)
