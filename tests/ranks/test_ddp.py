"""DistributedDataParallel: one loop for one process or many, six cuts, and ranks that do not agree."""

import jobs
import pytest
import refusal_jobs
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import demp
from runs import IMAGE, ResidualNet, build, examples, kill

SETTINGS = {
    "plain": {},
    "static": {"static_graph": True},
    "unused": {"find_unused_parameters": True},
    "views": {"gradient_as_bucket_view": True},
    "small buckets": {"bucket_cap_mb": 1e-4},
}


def equal(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def close(left, right):
    assert [a.shape for a in left] == [b.shape for b in right]
    assert max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True)) < 1e-12


@pytest.fixture(scope="module")
def alone():
    """The same run in one process."""
    return jobs.six_cuts(None)


SLOW = ("unused", "small buckets", "views")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SETTINGS])
def test_six_cuts_leave_the_ranks_equal_to_the_bit_and_equal_to_one_process(fleet, alone, name):
    first, second = fleet(jobs.six_cuts, SETTINGS[name])
    assert [report["removed"] for report in first["history"]] == [2] * jobs.CUTS
    assert first["history"] == second["history"]
    for mine, other, one in zip(first["parameters"], second["parameters"], alone["parameters"], strict=True):
        assert equal(mine, other)
        close(mine, one)
    assert equal(first["moments"], second["moments"])
    close(first["moments"], alone["moments"])
    hashes = [(report["step"], report["hash"], report["judged"]["examples"]) for report in first["history"]]
    assert hashes == [(r["step"], r["hash"], r["judged"]["examples"]) for r in alone["history"]]


def test_accumulation_without_sync_and_communication_hooks_go_on(fleet, alone):
    first, second = fleet(jobs.six_cuts, {}, accumulate=True, hook=True)
    assert equal(first["parameters"][-1], second["parameters"][-1])
    assert first["hooks"] == 1
    close(first["parameters"][-1], alone["parameters"][-1])


def test_a_static_graph_goes_on_after_a_cut_inside_no_sync(fleet, alone):
    """The first backward after each cut averages, as the recording of the graph needs it; the numbers are the same."""
    first, second = fleet(jobs.six_cuts, {"static_graph": True}, accumulate=True)
    assert [report["removed"] for report in first["history"]] == [2] * jobs.CUTS
    assert equal(first["parameters"][-1], second["parameters"][-1])
    close(first["parameters"][-1], alone["parameters"][-1])
    close(first["moments"], alone["moments"])


def test_a_neuron_goes_only_if_it_is_dead_on_every_rank(fleet):
    first, second = fleet(jobs.judged_on_different_examples)
    assert (first["alone"], second["alone"]) == ([2, 6], [4, 6])
    assert first["together"] == second["together"] == [6]
    assert first["examples"] == second["examples"] == 8


def test_ranks_with_other_plans_cut_nothing_and_are_named(fleet):
    first, second = fleet(refusal_jobs.cut_with_other_plans)
    assert first["error"] == second["error"]
    kind, text = first["error"]
    assert kind == "CutError"
    assert text.startswith("rank 1 planned another cut than the other ranks (rank 0: '")
    assert "nothing was cut on any rank" in text
    assert first["unchanged"] and second["unchanged"]
    assert equal(first["then"], second["then"])


def test_a_proof_that_fails_on_one_rank_rolls_all_back(fleet):
    first, second = fleet(refusal_jobs.cut_that_one_rank_disproves)
    assert first["error"] == second["error"]
    kind, text = first["error"]
    assert kind == "CutError"
    assert "of their scale on rank 1 (tolerance 1e-10); neurons of act1 are not dead" in text
    assert first["unchanged"] and second["unchanged"]
    assert equal(first["then"], second["then"])


def test_an_error_in_the_proof_of_one_rank_rolls_all_back(fleet):
    first, second = fleet(refusal_jobs.cut_that_one_rank_cannot_prove)
    assert second["error"][0] == "CutError"
    assert "the model does not run after the cut (no such width here)" in second["error"][1]
    assert first["error"][0] == "ElsewhereError"
    assert first["error"][1].startswith(
        "rank 1 failed, so all ranks stopped there: rolled back: the model does not run"
    )
    assert first["unchanged"] and second["unchanged"]
    assert equal(first["then"], second["then"])


def test_pruners_with_other_arguments_are_refused(fleet):
    first, second = fleet(refusal_jobs.other_pruners)
    assert first == second
    whats = ("has another seed", "has another total_steps", "prunes by another method")
    for (kind, text), what in zip(first, whats, strict=True):
        assert kind == "UsageError"
        assert text.startswith(f"rank 1 {what} than the other ranks (rank 0: ")


def test_a_communication_hook_with_a_memory_is_refused(fleet):
    for answer in fleet(refusal_jobs.unfit_wrappers):
        ((kind, text),) = answer
        assert kind == "UsageError"
        assert "the communication hook powerSGD_hook of DistributedDataParallel keeps a PowerSGDState" in text


def test_all_ranks_wait_for_one_that_is_about_to_run_its_backward(fleet):
    for answer in fleet(refusal_jobs.one_rank_waits):
        assert answer == [0, 0, [(3, 1)]]


def test_a_wrapper_around_a_parent_of_the_model_is_found(fleet):
    first, second = fleet(jobs.inside_a_larger_module)
    assert first["removed"] == second["removed"] == [1, 1]
    assert equal(first["parameters"], second["parameters"])


def test_demp_reads_the_model_through_its_wrapper(fleet):
    assert fleet(jobs.read_through_the_wrapper) == [[True] * 4] * 2


def test_joins_of_a_residual_stream_are_made_on_all_ranks(fleet):
    first, second = fleet(jobs.residual)
    assert first["removed"] == second["removed"] == [3, 3]
    assert first["joined"] == second["joined"] == [""]
    assert equal(first["parameters"], second["parameters"])


def check_parts(first, second):
    """Two cuts of a hidden layer that is read in halves are those of one process."""
    alone = jobs.in_parts()
    assert [report["removed"] for report in alone["history"]] == [2, 2]
    assert first["parts"] == second["parts"] == alone["parts"] == (3, 5)
    assert equal(first["parameters"], second["parameters"])
    close(first["parameters"], alone["parameters"])
    assert first["history"] == second["history"]
    assert [report["hash"] for report in first["history"]] == [report["hash"] for report in alone["history"]]


def test_planned_calls_are_those_of_one_process(fleet):
    check_parts(*fleet(jobs.in_parts, DistributedDataParallel))


def test_synchronised_batch_norms_shrink():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(build(ResidualNet))
    kill(model.norm1, [0, 1])
    assert demp.cut(model, {"act1": [0, 1]}, example_inputs=(examples(IMAGE),)).removed == 2
    assert model.norm1.num_features == len(model.norm1.running_mean) == 6


def test_folded_means_are_those_of_all_ranks(fleet):
    first, second = fleet(jobs.folded)
    assert first["report"] == second["report"]
    assert first["report"]["notes"] and first["report"]["removed"] == 4
    assert equal(first["parameters"], second["parameters"])


def check_saturated(first, second):
    """Ranks are equal to the bit, and as one process on all of their examples."""
    alone = jobs.saturated(wrap=False)
    assert first["history"] == second["history"]
    assert equal(first["parameters"], second["parameters"]) and equal(first["deviations"], second["deviations"])
    close(first["parameters"], alone["parameters"])
    told = [(r["step"], r["hash"], r["saturated"], r["held"]) for r in first["history"]]
    assert told == [(r["step"], r["hash"], r["saturated"], r["held"]) for r in alone["history"]]
    assert first["history"][0]["saturated"] == 7, "four of the first layer, three of the second, of which one carries"
    assert "it carries the constants of others for head.weight" in first["history"][0]["held"]["act2"]


def test_saturated_neurons_leave_the_same_way_everywhere(fleet):
    check_saturated(*fleet(jobs.saturated))


def test_a_run_that_is_taken_up_again_ends_as_one_in_one_piece(fleet):
    first, second = fleet(jobs.resumed)
    assert equal(first["whole"], first["broken"])
    assert equal(first["whole"], second["broken"])
    assert first["whole"][0].shape == (jobs.WIDTH - 4, 6)


def test_checks_see_the_buffers_of_rank_0(fleet):
    (apart_0, shared_0), (apart_1, shared_1) = fleet(jobs.shared_buffers)
    assert not torch.equal(apart_0, apart_1)
    assert torch.equal(shared_0, shared_1)


def test_a_cut_that_one_rank_cannot_make_is_skipped_on_all_and_made_later(fleet):
    first, second = fleet(refusal_jobs.one_rank_cannot)
    whole = [tuple(p.shape) for p in jobs.net().parameters()]
    for rank, mine in enumerate((first, second)):
        assert mine["skipped"] == whole and mine["removed"] == [0, 2] and mine["steps"] == [2, 3]
        assert "no room on this rank" in mine["notes"][0][0], rank
    assert equal(first["parameters"], second["parameters"])
