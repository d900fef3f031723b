"""One thread, fixed seeds, and property tests that draw the same examples every time."""

import gc
import importlib
import random

import pytest
import torch
from hypothesis import settings

gc.disable()  # until all tests are collected: what their imports make stays
torch.set_num_threads(1)
settings.register_profile("demp", deadline=None, derandomize=True, database=None)
settings.load_profile("demp")


@pytest.fixture(autouse=True)
def fresh_state():
    random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)  # the trainer turns it on; hypothesis draws denormal numbers


@pytest.fixture(autouse=True, scope="module")
def nothing_to_search():
    """Cuts search all objects that Python holds: from now on not those of the modules before, nor their imports."""
    yield
    gc.collect()
    gc.freeze()


def pytest_collection_finish(session):
    importlib.import_module("torch._dynamo")  # which the first optimizer would import
    gc.collect()
    gc.freeze()  # a cut searches all objects for open graphs: not among those that the imports made
    gc.enable()
