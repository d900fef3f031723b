"""Runs with a penalty that are interrupted in any phase end as if they had not stopped."""

import io

import pytest
import torch

import contract

OPTIONS = {
    "network-slimming": {"passes": 2, "prune_at": 0.75, "strength": 0.01},
    "prune-train": {},
    "greg-1": {"start_at": 0.2, "grow": 0.3, "stabilise": 0.2},
    "greg-2": {"start_at": 0.0, "pick": 0.3, "grow": 0.2, "stabilise": 0.2, "kept_factor": -0.01},
}
AT = {
    "network-slimming": (5, 12, 20),
    "prune-train": (3, 4, 9),
    "greg-1": (3, 8, 15, 20),
    "greg-2": (4, 10, 15, 20),
}
"""In every phase."""
ALSO_AT = {"network-slimming": (0, 9, 18), "prune-train": (0, 20), "greg-1": (5, 12, 17), "greg-2": (0, 7, 12, 17)}
"""Where phases meet, and the first and the last step."""


@pytest.mark.parametrize(
    ("name", "moments"), [*AT.items(), *(pytest.param(*one, marks=pytest.mark.slow) for one in ALSO_AT.items())]
)
def test_it_goes_on_to_the_bit(name: str, moments: tuple[int, ...]):
    options, saved, step = OPTIONS[name], {}, 0
    model, optimizer, pruner = contract.parts(name, **options)
    for at in moments:
        contract.steps(model, optimizer, range(step, at))
        buffer, step = io.BytesIO(), at
        torch.save((pruner.state_dict(), model.state_dict(), optimizer.state_dict()), buffer)
        saved[at] = buffer.getvalue()
    contract.steps(model, optimizer, range(step, contract.STEPS))
    pruner.finish()
    assert contract.did_something(pruner)
    for at, state in saved.items():
        again, again_optimizer, other = contract.parts(name, resume=True, **options)
        mine, weights, moments = torch.load(io.BytesIO(state), weights_only=True)
        other.load_state_dict(mine)
        again.load_state_dict(weights)
        again_optimizer.load_state_dict(moments)
        assert other.metrics()["demp/strength"] == pytest.approx(other.method.penalty(at).strength)
        contract.steps(again, again_optimizer, range(at, contract.STEPS))
        other.finish()
        assert pruner.state.hash == other.state.hash
        ours, theirs = model.state_dict(), again.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), f"saved at step {at}"


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_penalty_may_be_part_of_the_loss(name: str):
    """One step with the penalty in the loss moves every weight as the same step with it in the gradient."""
    ends = []
    for penalty_in in ("gradient", "loss"):
        options = OPTIONS[name] | {"attach": False, "penalty_in": penalty_in}
        model, optimizer, pruner = contract.parts(name, kind=torch.optim.SGD, **options)
        optimizer.param_groups[0].update(lr=0.05, momentum=0.9)
        for step in range(contract.STEPS):
            x, y = contract.batch_at(step, contract.IMAGE)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            (loss + pruner.penalty_loss() if penalty_in == "loss" else loss).backward()
            pruner.before_step()
            optimizer.step()
            pruner.after_step()
        ends.append((pruner.state.removed.clone(), [p.detach() for p in model.parameters()]))
    assert torch.equal(ends[0][0], ends[1][0])
    for one, other in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
