"""DemP on every family of networks: neurons die, go, and the run goes on."""

import copy

import pytest
import torch
from torch.nn import functional as F

import demp
import nets

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


@pytest.mark.parametrize("collect", ["probe", "window"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_shrinks_and_goes_on(family, collect):
    model, inputs = FAMILIES[family]()
    dead = nets.killed(model, demp.trace(model, inputs), 0.4, low=-5.0)
    ema = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    config = demp.DemPConfig(peak_strength=1e-4, peak_noise_std=1e-5, period=4, collect=collect)
    options = {"example_inputs": inputs, "total_steps": STEPS, "batches": [inputs], "holders": [ema]}
    pruner = demp.DemP(model, optimizer, config=config, **options)
    before = demp.trace(model, inputs).neurons()
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
    after = demp.trace(model, inputs).neurons()
    assert sum(report.removed for report in pruner.history) == before - after
    if family != "gated":  # GELU says a little of everything
        assert before - after >= sum(map(len, dead.values())) // 2 > 0
    for parameter in model.parameters():
        entries = (value for value in optimizer.state[parameter].values() if value.dim())
        assert all(value.shape == parameter.shape for value in entries)
    assert [p.shape for p in ema.parameters()] == [p.shape for p in model.parameters()]
