"""``fully_shard``: the same runs with parameters in pieces."""

import fsdp_jobs
import jobs
import pytest
import torch
from test_ddp import check_parts, check_saturated, close, equal

from thinning import mostly_slow


@pytest.fixture(scope="module")
def alone():
    """The same run in one process."""
    return jobs.six_cuts(None)


WAYS = ("root only", "gathered until backward", "hybrid", "replicated")


@pytest.mark.parametrize("how", ["blocks", *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS)])
def test_six_cuts_equal_those_of_one_process(fleet, alone, how):
    first, second = fleet(fsdp_jobs.six_cuts, how)
    assert [report["removed"] for report in first["history"]] == [2] * jobs.CUTS
    assert first["history"] == second["history"]
    for mine, other, one in zip(first["parameters"], second["parameters"], alone["parameters"], strict=True):
        assert equal(mine, other)
        close(mine, one)
    close(first["moments"], alone["moments"])
    assert [r["hash"] for r in first["history"]] == [r["hash"] for r in alone["history"]]
    assert first["same objects"] and first["mark"] == "mine"
    rows = fsdp_jobs.WIDTH_LEFT // (1 if how == "replicated" else 2)
    assert first["local"] == second["local"] == (rows, 6)


@pytest.mark.slow
def test_a_policy_of_precision_is_kept(fleet):
    first, second = fleet(fsdp_jobs.six_cuts, "mixed precision")
    assert [report["removed"] for report in first["history"]] == [2] * jobs.CUTS
    assert equal(first["parameters"][-1], second["parameters"][-1])
    assert first["parameters"][-1][0].dtype == torch.float64


def test_a_cut_that_one_rank_disproves_leaves_no_trace(fleet):
    (tried, plain), (tried_too, _) = fleet(fsdp_jobs.rolled_back)
    assert tried["error"] == tried_too["error"]
    assert "of their scale on rank 1 (tolerance 1e-10); neurons of act1 are not dead" in tried["error"][1]
    assert tried["unchanged"] and tried_too["unchanged"]
    assert equal(tried["then"], tried_too["then"])
    assert equal(tried["then"], plain["then"])


def test_trace_cost_and_save_see_the_whole_model(fleet, tmp_path):
    for answer in fleet(fsdp_jobs.read_and_saved, str(tmp_path)):
        assert answer["graphs"][0] == answer["graphs"][1]
        assert answer["costs"][0] == answer["costs"][1]
        assert equal(answer["saved"], answer["loaded"])
        assert answer["saved"][0].shape == (jobs.WIDTH - 1, 6)


@pytest.mark.slow
def test_a_sharded_run_that_is_taken_up_again_ends_as_one_in_one_piece(fleet):
    first, second = fleet(fsdp_jobs.resumed)
    assert equal(first["whole"], first["broken"])
    assert equal(first["whole"], second["broken"])


@pytest.mark.slow
def test_joins_of_a_sharded_residual_stream_are_made_on_all_ranks(fleet):
    first, second = fleet(fsdp_jobs.residual)
    assert first["removed"] == second["removed"] == [3, 3]
    assert first["joined"] == second["joined"] == [""]
    assert equal(first["parameters"], second["parameters"])


def test_planned_calls_of_a_sharded_module_are_those_of_one_process(fleet):
    check_parts(*fleet(fsdp_jobs.in_parts))


def test_live_entries_are_found_in_all_pieces(fleet):
    assert fleet(fsdp_jobs.flags) == [[True] * 4] * 2


def test_what_cannot_be_cut_is_refused_at_once(fleet):
    for answers in fleet(fsdp_jobs.unfit):
        texts = [text for kind, text in answers if kind == "UsageError"]
        for text, why in zip(
            texts,
            (
                "keeps parameters on the CPU (CPUOffloadPolicy)",
                "was called on a list of modules",
                "splits a parameter along another axis than 0",
                "fc1.weight is split by tensor parallelism",
            ),
            strict=True,
        ):
            assert why in text
    for kind, text in fleet(fsdp_jobs.loss_penalty):
        assert kind == "UsageError" and "penalty_in='loss' needs whole parameters" in text


@pytest.mark.parametrize("name", ["greg-1", "greg-2"])
def test_growing_factors_find_their_rows_in_the_pieces(fleet, name):
    first, second = fleet(fsdp_jobs.pushed, name, True)
    alone = fsdp_jobs.pushed(name, False)
    assert torch.equal(first["gone"], second["gone"]) and torch.equal(first["gone"], alone["gone"])
    assert first["removed"] == alone["removed"] and sum(alone["removed"]) == 12
    for mine, other, one in zip(first["parameters"], second["parameters"], alone["parameters"], strict=True):
        assert torch.equal(mine, other)
        close(mine, one)


def test_norms_of_slices_in_pieces_are_refused(fleet):
    for kind, text in fleet(fsdp_jobs.group_lasso):
        assert kind == "UsageError" and "prune-train needs the norm of whole slices" in text


def test_saturated_neurons_leave_the_same_way_everywhere(fleet):
    check_saturated(*fleet(fsdp_jobs.saturated))


@pytest.mark.parametrize("how", mostly_slow(("ddp", "blocks"), quick=("blocks",)))
def test_a_budget_is_met_by_the_same_neurons_as_in_one_process(fleet, how):
    alone = fsdp_jobs.on_a_budget("alone")
    first, second = fleet(fsdp_jobs.on_a_budget, how)
    assert first["history"] == second["history"] == alone["history"]
    assert equal(first["parameters"], second["parameters"])
    close(first["parameters"], alone["parameters"])
    assert 0.37 < first["share"] <= 0.4 and any(removed for _, removed, *_ in first["history"])
