"""The decoupled penalty: a proximal step after the optimizer's, the same way in all whatever rate and length."""

import copy

import pytest
import torch

import demp
from demp.errors import UsageError
from demp.methods.demp_config import DemPConfig
from runs import IMAGE, VECTOR, Mlp, PlainNet, build, examples, loss_of

STEPS = 20
SCALES = ("norm1.weight", "norm2.weight")


def attached(model, optimizer, **options):
    options = {"penalty_in": "decoupled", "noise_on": "off", "prune_after": STEPS + 1, **options}
    return demp.DemP(model, optimizer, example_inputs=(examples(IMAGE),), total_steps=STEPS, **options)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("schedule", ["one-cycle", "constant"])
@pytest.mark.parametrize("by_rate", [False, True])
def test_it_is_the_literal_proximal_step(kind, schedule, by_rate):
    model = build(PlainNet).double()
    twin = copy.deepcopy(model)
    optimizers = [kind(one.parameters(), lr=1e-2) for one in (model, twin)]
    pruner = attached(model, optimizers[0], peak_strength=0.4, schedule=schedule, penalty_times_lr=by_rate)
    shape = demp.schedules.make(schedule, span=0.87, peak_at=0.3)
    way = sum(shape(step, STEPS) for step in range(STEPS))
    gone = 0.0
    for step in range(STEPS):
        rate = 1e-3 * (1 + step)
        for one, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss_of(one, step, IMAGE).backward()
            optimizer.step()
        kappa = 0.4 * shape(step, STEPS) * (rate if by_rate else 1 / way)
        gone += kappa
        with torch.no_grad():
            for name in SCALES:
                scale = twin.get_parameter(name)
                scale.copy_(
                    torch.tensor([(abs(g) - kappa if abs(g) > kappa else 0.0) * (1 if g > 0 else -1) for g in scale])
                )
        for (name, mine), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-9, rtol=0), (step, name)
    assert by_rate or gone == pytest.approx(0.4, abs=1e-12)
    pruner.detach()


def test_what_the_optimizer_does_not_move_stays():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(
        [{"params": [p for name, p in model.named_parameters() if name != "norm1.weight"]},
         {"params": [model.norm1.weight], "lr": 0.0}], lr=1e-2,
    )  # fmt: skip
    pruner = attached(model, optimizer, peak_strength=0.4, schedule="constant")
    before = {name: model.get_parameter(name).clone() for name in SCALES}
    optimizer.zero_grad()
    loss_of(model, 0, IMAGE).backward()
    optimizer.step()
    assert torch.equal(model.norm1.weight, before["norm1.weight"])
    assert not torch.equal(model.norm2.weight, before["norm2.weight"])
    pruner.detach()


def test_it_acts_on_scales_alone():
    model = build(Mlp)
    with pytest.raises(UsageError, match="needs normalisations with a scale, and there are none; use 'gradient'"):
        demp.DemP(
            model, torch.optim.SGD(model.parameters(), lr=0.1), example_inputs=(examples(VECTOR),), total_steps=9,
            penalty_in="decoupled",
        )  # fmt: skip
    for wrong in ({"penalty": "l2"}, {"penalty_on": "all-scales"}):
        with pytest.raises(UsageError, match="is a lasso on scales"):
            DemPConfig(penalty_in="decoupled", **wrong)
    with pytest.raises(UsageError, match="penalty_times_lr is of the decoupled penalty"):
        DemPConfig(penalty_times_lr=True)
