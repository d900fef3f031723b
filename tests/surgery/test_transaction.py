"""A cut ends proven, or it did not happen."""

import copy

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

import comparing
import demp
import killing
import nets
from demp.surgery import Limits, LiveModel, VerifyOptions, execute, plan_cut, record_of, shrink
from nets import Forward

X = torch.randn(4, 3, 6, 6, dtype=torch.float64)
DEAD = {"2": [0, 3], "5": [1]}


def network() -> nn.Sequential:
    """Two normed convolutions and a linear head, DEAD already dead."""
    model = nn.Sequential(
        *[nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()],
        *[nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()],
        *[nn.Flatten(), nn.Linear(144, 3)],
    )
    nets.settle(model)
    killing.kill(model, demp.trace(model, (X,)), DEAD)
    return model


def stepped(model: nn.Module) -> optim.Optimizer:
    """An optimizer with state, and gradients that are zero but there."""
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    model(X).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return optimizer


def everything(model: nn.Module, optimizer: optim.Optimizer, ema: nn.Module) -> dict:
    """All that a rolled back cut must leave to the bit."""
    return {
        "model": comparing.state(model),
        "ema": comparing.state(ema),
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "attributes": [{k: v for k, v in vars(m).items() if isinstance(v, (int, str, tuple))} for m in model.modules()],
        "record": vars(record_of(model)) if record_of(model) else None,
        "objects": [id(t) for t in (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()))],
        "memory": [t.data_ptr() for t in (*model.parameters(), *model.buffers())],
    }


def test_a_live_neuron_rolls_everything_back_and_names_the_layer():
    model = network()
    optimizer, ema = stepped(model), copy.deepcopy(model)
    before = everything(model, optimizer, ema)
    with pytest.raises(demp.CutError, match=r"rolled back: .*neurons of 2 are not dead") as caught:
        demp.cut(model, {**DEAD, "2": [0, 1]}, example_inputs=(X,), optimizer=optimizer, copies=[ema])
    assert "neurons of 2 are" in str(caught.value) and "exact=False" in str(caught.value)
    assert comparing.same_tree(before, everything(model, optimizer, ema))


def test_a_second_cut_that_fails_keeps_the_first():
    model = network()
    optimizer, ema = stepped(model), copy.deepcopy(model)
    demp.cut(model, {"2": [0]}, example_inputs=(X,), optimizer=optimizer, copies=[ema])
    before = everything(model, optimizer, ema)
    with pytest.raises(demp.CutError, match="neurons of 5 are not dead"):
        demp.cut(model, {"5": [0]}, example_inputs=(X,), optimizer=optimizer, copies=[ema])
    assert comparing.same_tree(before, everything(model, optimizer, ema))
    assert demp.cut(model, {"2": [2], "5": [1]}, example_inputs=(X,), optimizer=optimizer, copies=[ema]).removed == 2


@pytest.mark.parametrize("failing", range(0, 11, 2))
def test_an_exception_in_the_middle_rolls_back(monkeypatch, failing):
    model = network()
    optimizer, ema = stepped(model), copy.deepcopy(model)
    before = everything(model, optimizer, ema)
    calls, real = [], shrink.narrowed

    def narrowed(tensor, keep):
        calls.append(keep)
        if len(calls) > failing:
            raise MemoryError("no room")
        return real(tensor, keep)

    monkeypatch.setattr(shrink, "narrowed", narrowed)
    with pytest.raises(MemoryError, match="no room"):
        demp.cut(model, DEAD, example_inputs=(X,), optimizer=optimizer, copies=[ema])
    assert comparing.same_tree(before, everything(model, optimizer, ema))


def test_an_interrupt_while_proving_rolls_back():
    model = network()
    optimizer, ema = stepped(model), copy.deepcopy(model)
    before = everything(model, optimizer, ema)

    def interrupt(module, args):
        if args[0].shape[1] == 3:
            raise KeyboardInterrupt

    handle = model[3].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        demp.cut(model, DEAD, example_inputs=(X,), optimizer=optimizer, graph=demp.trace(network(), (X,)))
    handle.remove()
    assert comparing.same_tree(before, everything(model, optimizer, ema))


def test_a_model_that_does_not_run_when_it_is_too_narrow():
    """One neuron is squeezed away with the space; the rehearsal kept three of four."""
    model = Forward(
        lambda s, x: s.head(F.relu(s.conv(x)).mean((2, 3), keepdim=True).squeeze()),
        conv=nn.Conv2d(3, 4, 1),
        head=nn.Linear(4, 2),
    )
    graph = demp.trace(nets.settle(model), (X,))
    killing.kill(model, graph, {"relu": [0, 1, 2]})
    before = comparing.state(model)
    with pytest.raises(demp.CutError, match=r"rolled back: the model does not run after the cut .*the floor"):
        demp.cut(model, {"relu": [0, 1, 2]}, example_inputs=(X,))
    assert comparing.same_state(before, model)
    report = demp.cut(model, {"relu": [0, 1, 2]}, example_inputs=(X,), limits=Limits(floor=2))
    assert report.removed == 2


def test_a_misread_model_is_never_cut():
    """The width as a tensor: the graph sees a division by a constant."""
    inputs = (torch.randn(3, 4, dtype=torch.float64),)
    model = Forward(
        lambda s, x: s.head((h := F.relu(s.fc(x))) / torch.tensor(h.shape[1])), fc=nn.Linear(4, 6), head=nn.Linear(6, 2)
    )
    nets.settle(model)
    killing.kill(model, demp.trace(model, inputs), {"relu": [1, 2]})
    before = comparing.state(model)
    with pytest.raises(demp.CutError, match="depends on their number in a way the graph cannot see"):
        demp.cut(model, {"relu": [1, 2]}, example_inputs=inputs)
    assert comparing.same_state(before, model)


def test_a_mean_behind_the_graphs_back_is_refused():
    def forward(s, x):
        h = F.relu(s.fc(x))
        return s.head(h) + torch.from_numpy(h.detach().numpy().mean(1, keepdims=True))

    inputs = (torch.randn(3, 4, dtype=torch.float64),)
    model = nets.settle(Forward(forward, fc=nn.Linear(4, 6), head=nn.Linear(6, 2)))
    report = demp.cut(model, {"relu": [1, 2]}, example_inputs=inputs)
    assert not report.happened and report.held == {"relu": "2 refused by the graph"}


def test_empty_plans_are_reports():
    model = network()
    before = comparing.state(model)
    for dead in ({}, {"2": []}, {"2": torch.zeros(5, dtype=torch.bool)}):
        report = demp.cut(model, dead, example_inputs=(X,))
        assert not report.happened and report.removed == 0 and report.difference is None
        assert report.neurons_before == report.neurons_after == 9
        assert "nothing to remove" in str(report)
        assert report.to_dict()["layers"]["2"]["before"] == report.to_dict()["layers"]["2"]["kept"] == 5
    assert comparing.same_state(before, model) and record_of(model) is None


def test_the_report_counts():
    model = network()
    dense = demp.cost(model, (X,))
    report = demp.cut(model, DEAD, example_inputs=(X,))
    small = demp.cost(model, (X,))
    assert (report.neurons_before, report.neurons_after) == (dense.neurons, small.neurons) == (9, 6)
    assert (report.parameters_before, report.parameters_after) == (dense.parameters, small.parameters)
    assert (report.flops_before, report.flops_after) == (dense.flops, small.flops)
    assert report.removed == 3 and report.happened and not report.held
    assert {name: (layer.before, layer.kept) for name, layer in report.layers.items()} == {"2": (5, 3), "5": (4, 3)}
    assert 0 <= report.surgery_seconds <= report.seconds
    assert report.difference < 1e-10 and report.drift < 1e-10
    assert "3 neurons of 9 removed" in str(report)


def test_not_exact_means_drift():
    model = network()
    before = comparing.outputs(model, (X,))
    report = demp.cut(model, {"2": [1]}, example_inputs=(X,), exact=False)
    assert report.removed == 1 and report.difference < 1e-10
    change = comparing.gap(before, comparing.outputs(model, (X,))) / float(before[0].abs().max())
    assert report.drift == pytest.approx(change) and report.drift > 1e-3


def test_not_verified_means_no_numbers():
    model = network()
    report = demp.cut(model, DEAD, example_inputs=(X,), verify=False)
    assert report.removed == 3 and report.difference is None and report.drift is None


def test_a_tolerance_of_ones_own():
    model = network()
    with torch.no_grad():
        model[1].weight[1], model[1].bias[1] = 0.0, 1e-6
    with pytest.raises(demp.CutError, match="not dead"):
        demp.cut(model, {"2": [1]}, example_inputs=(X,))
    assert demp.cut(model, {"2": [1]}, example_inputs=(X,), tolerance=1e-4).removed == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_prove_nothing(bad):
    model = network()
    with torch.no_grad():
        model[-1].bias[0] = bad
    before = comparing.state(model)
    with pytest.raises(demp.CutError, match="not finite.*nothing was cut"):
        demp.cut(model, DEAD, example_inputs=(X,))
    with torch.no_grad():
        assert model[0].weight.shape[0] == 5 and torch.equal(before["0.weight"], model[0].weight)


def test_integer_outputs_must_not_change():
    model = nn.Sequential(network(), Forward(lambda s, x: x.argmax(1)))
    dead = {f"0.{name}": indices for name, indices in DEAD.items()}
    assert demp.cut(model, dead, example_inputs=(X,)).difference == 0.0
    model = nn.Sequential(network(), Forward(lambda s, x: (x * 1e6).long()))
    with pytest.raises(demp.CutError, match="rolled back: outputs changed by inf"):
        demp.cut(model, {"0.2": [1]}, example_inputs=(X,))


def test_a_model_without_tensors_in_its_output_cannot_be_proven():
    model = nets.settle(Forward(lambda s, x: float(s.net(x).detach().sum()), net=network()))
    dead = {f"net.{name}": indices for name, indices in DEAD.items()}
    with pytest.raises(demp.CutError, match="returns no tensors"):
        demp.cut(model, dead, example_inputs=(X,))


def test_a_model_changed_behind_our_back():
    model = network()
    graph = demp.trace(model, (X,))
    demp.cut(model, DEAD, example_inputs=(X,), graph=graph)
    before = comparing.state(model)
    with pytest.raises(
        demp.CutError, match=r"0.weight should have shape \(5, 3, 3, 3\) but is \(3, 3, 3, 3\).*Trace it"
    ):
        demp.cut(model, {"2": [0]}, example_inputs=(X,), graph=graph)
    other = nn.Sequential(*list(network())[:6])
    with pytest.raises(demp.CutError, match="7.weight should have shape .* but is nothing"):
        demp.cut(other, {"2": [0]}, example_inputs=(X,), graph=demp.trace(network(), (X,)))
    assert comparing.same_state(before, model)


def test_unknown_layers_and_indices():
    model = network()
    before = comparing.state(model)
    with pytest.raises(demp.UsageError, match="no layer called '22' in the graph; did you mean '2'"):
        demp.cut(model, {"22": [0]}, example_inputs=(X,))
    for bad in ([5], [-1], [0, 99]):
        with pytest.raises(demp.UsageError, match=r"an index for 2 is outside its 5 neurons \(0 to 4\)"):
            demp.cut(model, {"2": bad}, example_inputs=(X,))
    with pytest.raises(demp.UsageError, match=r"the mask for 2 has shape \(4,\); the layer has 5 neurons"):
        demp.cut(model, {"2": torch.ones(4, dtype=torch.bool)}, example_inputs=(X,))
    assert comparing.same_state(before, model)


def test_indices_and_masks_in_any_form():
    for form in (
        [3, 0, 0],
        (0, 3),
        range(0, 4, 3),
        torch.tensor([0, 3]),
        torch.tensor([True, False, False, True, False]),
    ):
        model = network()
        demp.cut(model, {"2": form}, example_inputs=(X,))
        assert record_of(model).kept["0.weight", 0].tolist() == [1, 2, 4]


def test_example_inputs_that_do_not_fit():
    with pytest.raises(demp.TraceError, match=r"Sequential does not run on the example inputs \(shapes \[\(4, 7\)\]\)"):
        demp.cut(network(), DEAD, example_inputs=(torch.randn(4, 7),))


def test_the_loss_of_the_last_step_may_stay_alive():
    model = network().train()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss)
        if step == 1:
            optimizer.zero_grad()
            demp.cut(model, DEAD, example_inputs=(X,), optimizer=optimizer)
    assert float(losses[-1].detach()) < float(losses[0].detach())
    assert model[0].weight.grad.shape == model[0].weight.shape == (3, 3, 3, 3)


def test_a_pruner_may_plan_once_and_cut_often():
    """Several cuts of one graph compose in dense numbering."""
    model = network()
    graph = demp.trace(model, (X,))
    state = graph.dense
    before = comparing.outputs(model, (X,))
    for dead in ({"2": [0]}, {"2": [3]}, {"5": [1]}):
        flags = {layer.name: torch.zeros(layer.width, dtype=torch.bool) for layer in graph.layers}
        for name, indices in dead.items():
            flags[name][indices] = True
        plan = plan_cut(state, flags, Limits())
        assert execute(LiveModel(model), plan, VerifyOptions((X,)))[0].removed == 1
        state = plan.after
    assert comparing.gap(before, comparing.outputs(model, (X,))) < 1e-10
    assert record_of(model).kept["0.weight", 0].tolist() == [1, 2, 4]
    assert record_of(model).kept["3.weight", 1].tolist() == [1, 2, 4]
    assert record_of(model).kept["3.weight", 0].tolist() == [0, 2, 3]
