import sys
from pathlib import Path

import pytest

import forks

HERE = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def work_is_found(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", HERE, prepend=":")
    monkeypatch.delitem(sys.modules, "sweepwork", raising=False)


@pytest.fixture(autouse=True)
def workers_are_forks(monkeypatch):
    monkeypatch.setattr("demp.experiments.sweep.worker.subprocess", forks)
