"""The context of a model: who trains it, in one process and in two."""

import context_jobs
import pytest
import torch
from torch import nn

from demp.errors import UsageError
from demp.parallel import ALONE, context_of, everyone


def test_one_process_hears_itself():
    context = context_of(nn.Sequential(nn.Linear(2, 2)))
    assert context == ALONE == everyone()
    assert (context.rank, context.world_size, context.is_main_process, context.alone) == (0, 1, True, True)
    assert context.gathered("a") == ["a"]
    assert context.total([1.5]) == [1.5] and context.highest([2, None]) == [2, None]
    flags, values = {"layer": torch.tensor([True, False])}, torch.tensor([1.0])
    assert context.mean(values) is values and context.common(flags)["layer"].tolist() == [True, False]
    assert context.any_of(True) and not context.any_of(False)
    assert context.where([0]) == ""
    context.raise_if_disagreement("has another seed", 1, remedy="none")
    with pytest.raises(UsageError, match="^mine$"), context.together():
        raise UsageError("mine")


def test_a_model_that_is_compiled_says_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert not context_of(model).compiled
    assert context_of(torch.compile(model)).compiled


def test_what_two_ranks_hear(fleet):
    first, second = fleet(context_jobs.told)
    assert (first.pop("rank"), second.pop("rank")) == ((0, 2, True, False), (1, 2, False, False))
    assert first == second
    assert first == {
        "same": True, "wrappers": [True], "kind": (False, False), "gathered": [0, 1], "total": [2, 1],
        "highest": [1, None], "mean": 1.0, "any": True, "common": [True, False], "where": " on rank 1",
    }  # fmt: skip


def test_one_fails_and_all_stop(fleet):
    first, second = fleet(context_jobs.failed_elsewhere)
    assert first == "ElsewhereError: rank 1 failed, so all ranks stopped there: no batches"
    assert second == "UsageError: no batches"


def test_ranks_that_differ_are_named(fleet):
    first, second = fleet(context_jobs.disagreed)
    message = "rank 1 has another seed than the other ranks (rank 0: 0; rank 1: 1); give one"
    assert first == second == ("UsageError", message)


def test_a_model_without_wrapper_is_trained_by_all(fleet):
    assert fleet(context_jobs.unwrapped) == [(False, 0), (False, 0)]


def test_a_model_in_pieces_says_so(fleet):
    assert fleet(context_jobs.in_pieces) == [(True, 2, 2)] * 2
