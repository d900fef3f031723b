"""Channels that no activation touches leave on all ranks alike, and as in one process."""

import pytest
import torch
import unactivated_jobs

from thinning import covering


@pytest.mark.parametrize(("option", "how"), covering(("streams", "layer streams", "linear"), ("ddp", "sharded")))
def test_ranks_lose_the_channels_of_one_process(fleet, option, how):
    alone = unactivated_jobs.on_a_budget(option, "alone")
    first, second = fleet(unactivated_jobs.on_a_budget, option, how)
    assert first["history"] == second["history"] == alone["history"]
    assert first["lost"] == alone["lost"] and sum(alone["lost"].values()) > 0
    for mine, other, one in zip(first["tensors"], second["tensors"], alone["tensors"], strict=True):
        assert torch.equal(mine, other)
        assert float((mine - one).abs().max()) < 1e-10
