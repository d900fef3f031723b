"""Heads of attention leave on all ranks alike, and as in one process."""

import attention_jobs
import pytest
import torch

from attentive import HEADS
from thinning import mostly_slow


@pytest.fixture(scope="module")
def alone():
    """The same run in one process."""
    return attention_jobs.on_a_budget("alone")


@pytest.mark.parametrize("how", mostly_slow(("ddp", "sharded"), quick=("sharded",)))
def test_ranks_lose_the_heads_of_one_process(fleet, alone, how):
    first, second = fleet(attention_jobs.on_a_budget, how)
    assert first["history"] == second["history"] == alone["history"]
    assert first["heads"] == alone["heads"] < HEADS
    for mine, other, one in zip(first["tensors"], second["tensors"], alone["tensors"], strict=True):
        assert torch.equal(mine, other)
        assert float((mine - one).abs().max()) < 1e-10
