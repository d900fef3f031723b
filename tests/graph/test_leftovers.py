"""Caches that a model's code fills during a forward of demp's own hold nothing of it afterwards."""

import functools
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import demp
from demp.graph.leftovers import packages_of

TABLE: dict[int, torch.Tensor] = {}


@functools.lru_cache(maxsize=8)
def offsets(length: int) -> torch.Tensor:
    return torch.arange(length) * 0.1


def decorated(function: Any) -> Any:
    kept = functools.lru_cache(maxsize=8)(function)

    def call(*args: Any) -> Any:
        return kept(*args)

    return call


class Bias(nn.Module):
    """A table by length, kept on the class, in a cache of a method or a decorator, or in a dict of the module."""

    tables: dict[int, torch.Tensor] = {}  # noqa: RUF012

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    @staticmethod
    @decorated
    def inside(length: int) -> torch.Tensor:
        return torch.arange(length) * 0.1

    @classmethod
    @functools.lru_cache(maxsize=8)
    def method(cls, length: int) -> torch.Tensor:
        return torch.arange(length) * 0.1

    def forward(self, x):
        length = x.shape[1]
        if self.where == "function":
            return x + offsets(length)
        if self.where == "decorator":
            return x + self.inside(length)
        if self.where == "method":
            return x + self.method(length)
        table = TABLE if self.where == "module" else self.tables
        if length not in table:
            table[length] = torch.arange(length) * 0.1
        return x + table[length]


@pytest.mark.parametrize("where", ["function", "decorator", "method", "module", "class"])
def test_a_forward_after_the_trace_is_that_of_a_model_that_was_never_traced(where: str):
    for cache in (offsets, Bias.method):
        cache.cache_clear()
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), Bias(where)), torch.randn(4, 6)
    wanted = model[2](model[1](model[0](x))) + torch.arange(6) * 0.1
    assert demp.trace(model, (x,)).vehicle == "meta"
    assert torch.equal(model(x), wanted)


def test_what_the_code_had_kept_before_stays():
    TABLE.clear()
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), Bias("module")), torch.randn(4, 6)
    model(x)
    kept = TABLE[6]
    demp.trace(model, (torch.randn(4, 6),))
    assert TABLE[6] is kept


def test_a_module_that_took_the_place_of_another_is_searched(monkeypatch):
    model = nn.Linear(2, 2)
    model.__class__ = type("Own", (nn.Linear,), {"__module__": "taken.code"})
    monkeypatch.setitem(sys.modules, "taken.first", first := ModuleType("taken.first"))
    assert packages_of(model) == (first,)
    monkeypatch.delitem(sys.modules, "taken.first")
    monkeypatch.setitem(sys.modules, "taken.second", second := ModuleType("taken.second"))
    assert packages_of(model) == (second,)
    monkeypatch.delitem(sys.modules, "taken.second")
    monkeypatch.setitem(sys.modules, "taken.second", again := ModuleType("taken.second"))
    (found,) = packages_of(model)
    assert found is again
