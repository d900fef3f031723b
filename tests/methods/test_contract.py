"""One table over all methods: each trains, thins the network out, resumes, saves, loads. A new method is a new row."""

import copy
import io

import pytest
import torch
from torch.nn import functional as F

import contract
import demp
from runs import IMAGE, batch_at, examples, hooks_on

ROWS = [*contract.rows(), *contract.COMBINATIONS]


def state_of(model, optimizer):
    moments = [t for p in model.parameters() for t in optimizer.state[p].values()]
    return [*model.state_dict().values(), *moments]


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("name", ROWS)
class TestEveryMethod:
    def test_it_trains_and_thins_the_network_out(self, name: str):
        model, optimizer, pruner = contract.parts(name)
        losses = contract.steps(model, optimizer, range(contract.STEPS))
        report = pruner.finish()
        assert all(loss == loss for loss in losses)
        assert contract.did_something(pruner)
        assert hooks_on(model) == 0
        assert report.neurons_after == pruner.state.neurons
        for one in pruner.history:
            assert one.difference is None or one.difference < 1e-10
        parameters = dict(model.named_parameters())
        for key, mask in pruner.masks.kept.items():
            assert not bool(parameters[key][~mask].any())

    def test_two_runs_are_equal_to_the_bit(self, name: str):
        ends = []
        for _ in range(2):
            model, optimizer, pruner = contract.parts(name)
            contract.steps(model, optimizer, range(contract.STEPS))
            pruner.finish()
            ends.append(state_of(model, optimizer))
        assert same(*ends)

    @pytest.mark.parametrize("at", [1, 11, 21])
    def test_an_interrupted_run_ends_as_if_it_had_not_stopped(self, name: str, at: int):
        model, optimizer, pruner = contract.parts(name)
        contract.steps(model, optimizer, range(at))
        buffer = io.BytesIO()
        saved = (pruner.state_dict(), model.state_dict(), optimizer.state_dict())
        torch.save(saved, buffer)
        buffer.seek(0)
        contract.steps(model, optimizer, range(at, contract.STEPS))
        pruner.finish()
        again, again_optimizer, other = contract.parts(name, fresh=False)
        mine, weights, moments = torch.load(buffer, weights_only=True)
        other.load_state_dict(mine)
        again.load_state_dict(weights)
        again_optimizer.load_state_dict(moments)
        contract.steps(again, again_optimizer, range(at, contract.STEPS))
        other.finish()
        assert same(state_of(model, optimizer), state_of(again, again_optimizer))
        assert torch.equal(pruner.state.removed, other.state.removed)

    def test_what_comes_out_is_saved_and_loaded(self, name: str, tmp_path):
        model, optimizer, pruner = contract.parts(name)
        contract.steps(model, optimizer, range(contract.STEPS))
        pruner.finish()
        demp.save(model, tmp_path / "model")
        loaded = demp.load(contract.network, tmp_path / "model").eval()
        x = examples(IMAGE, seed=3)
        assert torch.equal(loaded(x), model.eval()(x))

    def test_it_works_with_autocast_and_single_precision(self, name: str):
        batches = [(x.float(), y) for x, y in contract.scoring_batches(0)]
        model = contract.network(torch.float32)
        options = {"example_inputs": (examples(IMAGE).float(),), "batches": batches}
        _, optimizer, pruner = contract.parts(name, model, **options)
        for step in range(contract.STEPS):
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
