"""One table over all methods: each trains, thins the network out, resumes, saves, loads. A new method is a new row."""

import copy
import io
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import contract
import demp
from runs import IMAGE, batch_at, examples, hooks_on
from thinning import covering, mostly_slow

ALONE = contract.rows()
ROWS = [*ALONE, *contract.COMBINATIONS]
FEW = ("demp", "early-crop-s", "network-slimming", "rigl", "magnitude", "chase", "greg-1", "apoz")
"""What every method shares is shown by these; an interrupted run, by all of them."""


def state_of(model, optimizer):
    moments = [t for p in model.parameters() for t in optimizer.state[p].values()]
    return [*model.state_dict().values(), *moments]


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@dataclass(frozen=True)
class Run:
    """A whole run, and what could be saved of it on the way."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pruner: demp.Pruner
    losses: list[float]
    report: demp.CutReport
    saved: dict[int, bytes]


@cache
def run(name: str, save_at: tuple[int, ...] = ()) -> Run:
    """Made once for all tests of a method: none of them may change it."""
    model, optimizer, pruner = contract.parts(name)
    losses, saved, step = [], {}, 0
    for until in (*save_at, contract.STEPS):
        losses += contract.steps(model, optimizer, range(step, until))
        step = until
        if until in save_at:
            buffer = io.BytesIO()
            torch.save((pruner.state_dict(), model.state_dict(), optimizer.state_dict()), buffer)
            saved[until] = buffer.getvalue()
    return Run(model, optimizer, pruner, losses, pruner.finish(), saved)


INTERRUPTED = (1, 11, 21)


class TestEveryMethod:
    @pytest.mark.parametrize("name", ROWS)
    def test_it_trains_and_thins_the_network_out(self, name: str):
        whole = run(name)
        assert all(loss == loss for loss in whole.losses)
        assert contract.did_something(whole.pruner)
        assert hooks_on(whole.model) == 0
        assert whole.report.neurons_after == whole.pruner.state.neurons
        for one in whole.pruner.history:
            assert one.difference is None or one.difference < 1e-10
        parameters = dict(whole.model.named_parameters())
        for key, mask in whole.pruner.masks.kept.items():
            assert not bool(parameters[key][~mask].any())

    @pytest.mark.parametrize("name", mostly_slow(ROWS, FEW))
    def test_two_runs_are_equal_to_the_bit_though_one_is_saved_on_its_way(self, name: str):
        once, again = run(name), run(name, INTERRUPTED)
        assert same(state_of(once.model, once.optimizer), state_of(again.model, again.optimizer))

    @pytest.mark.parametrize(("name", "at"), covering(ROWS, INTERRUPTED))
    def test_an_interrupted_run_ends_as_if_it_had_not_stopped(self, name: str, at: int):
        whole = run(name)
        model, optimizer, pruner = contract.parts(name, resume=True)
        mine, weights, moments = torch.load(io.BytesIO(run(name, INTERRUPTED).saved[at]), weights_only=True)
        pruner.load_state_dict(mine)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        contract.steps(model, optimizer, range(at, contract.STEPS))
        pruner.finish()
        assert same(state_of(whole.model, whole.optimizer), state_of(model, optimizer))
        assert whole.pruner.state.hash == pruner.state.hash

    @pytest.mark.parametrize("name", ROWS)
    def test_what_comes_out_is_saved_and_loaded(self, name: str, tmp_path):
        model = copy.deepcopy(run(name).model)
        demp.save(model, tmp_path / "model")
        loaded = demp.load(contract.network, tmp_path / "model").eval()
        x = examples(IMAGE, seed=3)
        assert torch.equal(loaded(x), model.eval()(x))

    @pytest.mark.parametrize("name", mostly_slow(ROWS, FEW))
    def test_it_works_with_autocast_and_single_precision(self, name: str):
        batches = [(x.float(), y) for x, y in contract.scoring_batches(0)]
        model = contract.network(torch.float32)
        options = {"example_inputs": (examples(IMAGE).float(),), "batches": batches, "total_steps": 12}
        _, optimizer, pruner = contract.parts(name, model, **options)
        for step in range(pruner.total_steps):
            x, y = batch_at(step, IMAGE, dtype=torch.float32)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(x)
            F.cross_entropy(out.float(), y).backward()
            optimizer.step()
        pruner.finish()
        assert contract.did_something(pruner)


@pytest.mark.parametrize("name", ["apoz", "chase", "rigl", "demp+srigl"])
def test_a_run_goes_back_in_its_own_process(name: str):
    model, optimizer, pruner = contract.parts(name)
    contract.steps(model, optimizer, range(11))
    saved = copy.deepcopy((pruner.state_dict(), model.state_dict(), optimizer.state_dict()))
    contract.steps(model, optimizer, range(11, contract.STEPS))
    once = copy.deepcopy(state_of(model, optimizer))
    for holder, state in zip((pruner, model, optimizer), saved, strict=True):
        holder.load_state_dict(state)
    contract.steps(model, optimizer, range(11, contract.STEPS))
    assert same(once, state_of(model, optimizer))
