"""DemP on every family of networks: neurons die, go, and the run goes on."""

import copy

import pytest
import torch
from torch.nn import functional as F

import demp
import killing
import nets
from thinning import covering

FAMILIES = {
    "plain": lambda: nets.plain(2, (6, 5)),
    "one-dimensional": lambda: nets.plain(1, (6, 5), end="mean"),
    "residual": lambda: nets.residual((5, 5, 6)),
    "pre-activation": lambda: nets.residual((5, 5), pre=True),
    "dense": lambda: nets.dense(5, 3, 2),
    "branches": lambda: nets.branches((3, 4)),
    "separable": lambda: nets.separable(5, 8, 4),
    "gated": lambda: nets.gated(8, "packed"),
    "tokens": lambda: nets.tokens(6, 8),
}
STEPS = 12


@pytest.mark.parametrize(("family", "collect"), covering(FAMILIES, ("probe", "window")))
def test_a_run_shrinks_and_goes_on(family, collect):
    model, inputs = FAMILIES[family]()
    dead = killing.killed(model, demp.trace(model, inputs), 0.4, low=-5.0)
    ema = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    config = demp.DemPConfig(peak_strength=1e-4, peak_noise_std=1e-5, period=4, collect=collect)
    options = {"example_inputs": inputs, "total_steps": STEPS, "batches": [inputs], "copies": [ema]}
    pruner = demp.DemP(model, optimizer, config=config, **options)
    before = demp.trace(model, inputs).dense.neurons
    model.train()
    for step in range(STEPS):
        optimizer.zero_grad()
        out = model(torch.randn_like(inputs[0]))
        loss = F.cross_entropy(out.flatten(0, -2), torch.arange(out.flatten(0, -2).shape[0]) % out.shape[-1])
        loss.backward()
        optimizer.step()
        assert bool(loss.isfinite()), step
        with torch.no_grad():
            for mine, other in zip(ema.parameters(), model.parameters(), strict=True):
                mine.lerp_(other, 0.5)
    pruner.finish()
    after = demp.trace(model, inputs).dense.neurons
    assert sum(report.removed for report in pruner.history) == before - after
    if family != "gated":  # GELU says a little of everything
        assert before - after >= sum(map(len, dead.values())) // 2 > 0
    for parameter in model.parameters():
        entries = (value for value in optimizer.state[parameter].values() if value.dim())
        assert all(value.shape == parameter.shape for value in entries)
    assert [p.shape for p in ema.parameters()] == [p.shape for p in model.parameters()]


FORGOTTEN = "LBFGS began a new history: the old one held steps of the removed neurons"


@pytest.mark.parametrize(("scale", "notes"), [(0.0, ()), (0.1, (FORGOTTEN,))], ids=["sliced", "forgotten"])
def test_lbfgs_in_a_run(scale, notes):
    """A closure computes gradients inside the step: no hooks, the penalty in the loss, the pruner called by hand.

    The penalty moves the scales of dead neurons, but for those that are zero already.
    """
    model, inputs = nets.plain(2, (6, 5))
    model, inputs = model.double(), tuple(x.double() for x in inputs)
    dead = killing.killed(model, demp.trace(model, inputs), 0.4, low=-5.0)
    with torch.no_grad():
        model[1].weight[dead["2"]] = scale
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2, history_size=3, line_search_fn="strong_wolfe")
    config = demp.DemPConfig(peak_strength=1e-4, peak_noise_std=0.0, period=4, penalty_in="loss")
    pruner = demp.DemP(
        model, optimizer, config=config, example_inputs=inputs, batches=[inputs], total_steps=STEPS, attach=False
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*inputs), torch.arange(3)) + pruner.penalty_loss()
        loss.backward()
        return loss

    before, losses = demp.trace(model, inputs).dense.neurons, []
    for _ in range(STEPS):
        losses.append(optimizer.step(closure).item())
        pruner.after_step()
    pruner.finish()
    assert sum(report.removed for report in pruner.history) == before - demp.trace(model, inputs).dense.neurons
    assert pruner.history[0].removed >= sum(map(len, dead.values())) and losses[-1] < losses[0]
    assert pruner.history[0].notes == notes
