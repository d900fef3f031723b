import pytest

import forks


@pytest.fixture(autouse=True)
def workers_are_forks(monkeypatch):
    monkeypatch.setattr("demp.experiments.sweep.worker.subprocess", forks)
