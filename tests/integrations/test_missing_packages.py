"""Without its package an integration says in one sentence what to install; the others need none of their own."""

import importlib
import sys

import pytest

from demp.errors import UsageError


@pytest.mark.parametrize(
    ("integration", "package", "message"),
    [
        (
            "lightning",
            "lightning",
            r"this needs the package lightning; install it with: pip install 'demp\[lightning\]'",
        ),
        ("huggingface", "transformers", r"needs the package transformers; .* pip install 'demp\[huggingface\]'"),
    ],
)
def test_one_sentence(integration: str, package: str, message: str, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"demp.integrations.{integration}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=message):
        importlib.import_module(f"demp.integrations.{integration}")


@pytest.mark.parametrize("integration", ["accelerate", "fabric"])
def test_nothing_to_import(integration: str, monkeypatch: pytest.MonkeyPatch):
    for package in ("accelerate", "lightning", "lightning_fabric"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"demp.integrations.{integration}", raising=False)
    assert callable(importlib.import_module(f"demp.integrations.{integration}").attach)
