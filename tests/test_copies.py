"""Copies of the model under a pruner: what is taken for one, when they are cut, and what that does to them."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import comparing
import demp
from demp.errors import UsageError
from demp.surgery.copies import look_alikes
from runs import IMAGE, PlainNet, build, examples, quiet_demp, sgd, train, widths, with_dead

INPUTS = (examples(IMAGE),)


class Averaging(nn.Module):
    """Holds the copy, and the model that it follows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.online_model, self.ema_model = model, copy.deepcopy(model)
        self.register_buffer("updates", torch.zeros(()))


class Follower:
    """No module, but has one."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.ema, self.decay = model, copy.deepcopy(model), 0.9


class Shadows:
    """A list of averaged parameters, renewed whole when a state is loaded."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow_params = [p.detach().clone() for p in model.parameters() if p.requires_grad]


def shapes(model: nn.Module) -> list[torch.Size]:
    return [p.shape for p in model.parameters()]


KINDS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], list[torch.Size]]]] = {
    "module": (copy.deepcopy, shapes),
    "averaged model": (lambda m: AveragedModel(m, use_buffers=True), lambda c: shapes(c.module)),
    "wrapper with the model inside": (Averaging, lambda c: shapes(c.ema_model)),
    "object with a module": (Follower, lambda c: shapes(c.ema)),
    "object with a list": (Shadows, lambda c: [t.shape for t in c.shadow_params]),
    "list": (lambda m: [p.detach().clone() for p in m.parameters()], lambda c: [t.shape for t in c]),
    "dict of parameters": (
        lambda m: {name: p.detach().clone() for name, p in m.named_parameters()},
        lambda c: [t.shape for t in c.values()],
    ),
    "state dict": (
        lambda m: copy.deepcopy(m.state_dict()),
        lambda c: [t.shape for name, t in c.items() if "running" not in name and "tracked" not in name],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_any_kind_is_cut_with_the_model_from_when_it_is_given(kind):
    make, shapes_in = KINDS[kind]
    model = with_dead(act1=[0, 3], act3=[1])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, period=3)
    train(model, optimizer, IMAGE, range(2))
    copied = make(model)
    pruner.add_copy(copied)
    pruner.add_copy(copied)
    train(model, optimizer, IMAGE, range(2, 3))
    assert pruner.history[0].removed == 3 and widths(model) == (4, 5, 6)
    assert shapes_in(copied) == shapes(model)
    name = type(copied).__name__
    drift = pruner.history[0].copies[name]
    assert pruner.history[0].copies.keys() == {name}
    assert (
        drift is None if kind in ("object with a list", "list", "dict of parameters", "state dict") else drift < 1e-10
    )
    if kind == "object with a list":  # as when its state is loaded
        copied.shadow_params = [t.clone() for t in copied.shadow_params]
    pruner.finish()
    assert shapes_in(copied) == shapes(model)


def test_a_copy_that_does_not_fit_is_refused_when_it_is_given():
    model = with_dead(act1=[0])
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, period=2)
    before = copy.deepcopy(model)
    other = build(PlainNet)
    other.fc = nn.Linear(20, 8)
    wrong = {
        r"the copy PlainNet has no fc.weight of shape \(7, 20\) \(it has \(8, 20\)\)": other,
        r"the copy AveragedModel has no fc.weight of shape \(7, 20\)": AveragedModel(other),
        r"the copy dict has no head.weight of shape \(3, 7\)": {"head.weight": torch.zeros(7, 3)},
        "dict that was given as a copy holds none of the model's tensors by name": {"weight": torch.zeros(7, 3)},
        "the list that was given as a copy has 2 tensors": [torch.zeros(2), torch.zeros(3)],
        "a Generator was given as a copy of the model, but holds none: give a module": torch.Generator(),
    }
    for message, copied in wrong.items():
        with pytest.raises(UsageError, match=message):
            pruner.add_copy(copied)
        with pytest.raises(UsageError, match=message):
            quiet_demp(with_dead(), sgd(with_dead()), copies=[copied])
    train(model, optimizer, IMAGE, range(2))
    assert pruner.history[0].removed == 1 and pruner.history[0].copies == {}
    with pytest.raises(UsageError, match=r"made before the model was cut, make it anew: copy\.deepcopy\(model\)"):
        pruner.add_copy(before)
    pruner.add_copy(copy.deepcopy(model))


# Copies that nobody gave --------------------------------------------------------------------------------


def warnings_of_a_cut(caplog: pytest.LogCaptureFixture, around: Callable[[Any], Any], given: bool) -> list[str]:
    model = with_dead(act1=[0], act2=[1])
    optimizer = sgd(model)
    kept = around(model)
    pruner = quiet_demp(model, optimizer, period=2, alive_in_copies="cut")
    if given:
        pruner.add_copy(kept)
    with caplog.at_level(logging.WARNING, logger="demp"):
        train(model, optimizer, IMAGE, range(2))
        with torch.no_grad():
            model.norm2.weight[0], model.norm2.bias[0] = 0.0, -5.0
        train(model, optimizer, IMAGE, range(2, 4))
    assert [r.removed for r in pruner.history] == [2, 1] and kept is not None
    return [r.message for r in caplog.records]


def test_a_living_copy_that_nobody_gave_is_named_once(caplog):
    (message,) = warnings_of_a_cut(caplog, AveragedModel, given=False)
    assert message.startswith("the model becomes narrower, and another PlainNet (in AveragedModel) with the same ")
    assert "call pruner.add_copy(it) before the first cut" in message


def test_copies_that_were_given_and_models_that_are_trained_are_not_named(caplog):
    (message,) = warnings_of_a_cut(caplog, copy.deepcopy, given=True)
    assert message.startswith("the cut at step 4 changed outputs of copies of the model, over their scale: PlainNet by")
    caplog.clear()
    assert warnings_of_a_cut(caplog, lambda m: sgd(copy.deepcopy(m)), given=False) == []


def test_unfinished_modules_are_no_copies():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    others = [nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(1)), nn.Sequential.__new__(nn.Sequential)]
    assert look_alikes(model, []) == []
    others.append(nn.ModuleList([copy.deepcopy(model)]))
    assert look_alikes(model, []) == ["another Sequential (in ModuleList)"]
    others.extend(copy.deepcopy(model) for _ in range(3))
    found = look_alikes(model, [])
    assert sorted(found) == ["3 others of class Sequential", "another Sequential (in ModuleList)"]


def test_several_copies_in_a_dict_are_given_one_by_one():
    """As elastic weight consolidation keeps the weights of before, and how much each of them counts."""
    model = with_dead(act1=[0])
    kept = {"ref": model.state_dict(), "fisher": {n: p.detach().square() for n, p in model.named_parameters()}}
    sentence = r"a dict of copies was given as one copy .* give each of them by itself: copy\['ref'\], copy\['fisher'\]"
    with pytest.raises(UsageError, match=sentence):
        quiet_demp(model, sgd(model), copies=[kept])
    pruner = quiet_demp(model, sgd(model), copies=kept.values(), total_steps=2, period=2)
    run(pruner, range(2))
    assert kept["fisher"]["conv1.weight"].shape == kept["ref"]["conv1.weight"].shape == (5, 2, 3, 3)


# Neurons that are alive in a copy -----------------------------------------------------------------------


def lagging(choice: str, **options: Any) -> tuple[Any, Any, demp.Pruner]:
    """Neuron 0 of act1 has just died in the model; in the copy it speaks, neuron 3 is dead in both."""
    ema = with_dead(act1=[3])
    model = with_dead(act1=[0, 3])
    model.load_state_dict({**ema.state_dict(), **{n: t for n, t in model.state_dict().items() if "norm1" in n}})
    ema.norm1.weight.data[0] *= 20
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    defaults = {"period": 2, "total_steps": 4, "peak_strength": 0.0, "copies": [ema], "alive_in_copies": choice}
    return model, ema, quiet_demp(model, optimizer, **{**defaults, **options})


def run(pruner: demp.Pruner, steps: range) -> None:
    train(pruner.model, pruner.optimizers[0], IMAGE, steps)


def outputs(ema: Any) -> list[Tensor]:
    """On the examples that a cut is proven on."""
    return comparing.outputs(ema, (examples(IMAGE, seed=1),))


def change(before: list[Tensor], after: list[Tensor]) -> float:
    """Over the scale of the outputs."""
    return comparing.gap(before, after) / float(before[0].abs().max())


def test_a_neuron_that_is_alive_in_a_copy_waits_until_the_last_check(caplog):
    model, ema, pruner = lagging("wait")
    before = outputs(ema)
    with caplog.at_level(logging.WARNING, logger="demp"):
        run(pruner, range(3))
    assert widths(model)[0] == widths(ema)[0] == 5
    assert comparing.gap(before, outputs(ema)) < 1e-10 and pruner.history[0].copies["PlainNet"] < 1e-10
    note = "neurons that are dead in the model are alive in copies of it, PlainNet (1): they wait until they are dead "
    assert note in str(pruner.history[0])
    assert [r.message.startswith(note) for r in caplog.records] == [True]
    caplog.clear()
    run(pruner, range(3, 4))
    report = pruner.finish()
    changed = change(before, outputs(ema))
    assert report.removed == 1 and report.drift == report.difference < 1e-10
    assert changed > 1e-3 and report.copies["PlainNet"] == pytest.approx(changed, rel=1e-9)
    assert f"outputs of copies changed by: PlainNet {changed:.1e}" in str(report)
    assert [r.message for r in caplog.records] == [
        f"the cut at step 4 changed outputs of copies of the model, over their scale: PlainNet by {changed:.2g}"
    ]


def test_a_neuron_may_stay_as_long_as_it_is_alive_in_a_copy():
    model, ema, pruner = lagging("keep")
    run(pruner, range(4))
    assert not pruner.finish().happened and widths(model)[0] == 5
    model, ema, pruner = lagging("keep")
    run(pruner, range(2))
    with torch.no_grad():
        ema.norm1.load_state_dict(model.norm1.state_dict())
    run(pruner, range(2, 4))
    assert pruner.finish().removed == 1 and widths(ema)[0] == 4


def test_a_neuron_may_go_at_once_and_the_report_says_what_that_changes():
    _, ema, pruner = lagging("cut")
    before = outputs(ema)
    run(pruner, range(2))
    assert pruner.history[0].removed == 2 and widths(ema)[0] == 4
    assert pruner.history[0].copies["PlainNet"] == pytest.approx(change(before, outputs(ema)), rel=1e-9)
    with pytest.raises(UsageError, match="alive_in_copies is 'judge'; give one of 'wait': they wait"):
        lagging("judge")


def test_a_watched_run_asks_its_copies_too():
    model, ema, pruner = lagging("wait", batches=None)
    run(pruner, range(2))
    assert pruner.history[0].removed == 1 and widths(model)[0] == widths(ema)[0] == 5


def test_a_copy_in_another_precision_is_judged_and_measured():
    _, ema, pruner = lagging("wait", copies=())
    ema.float()
    pruner.add_copy(ema)
    run(pruner, range(2))
    assert widths(ema)[0] == 5 and pruner.history[0].copies["PlainNet"] < 1e-5


def test_a_copy_that_does_not_run_is_cut_and_the_report_says_so():
    class Broken(PlainNet):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no camera")

    _, _, pruner = lagging("wait", copies=[build(Broken)])
    run(pruner, range(2))
    report = pruner.history[0]
    assert report.removed == 2 and report.copies == {"Broken": None}
    assert "the copy Broken does not run (no camera), so nobody knows which neurons are alive in it" in report.notes
    assert "the copy Broken was cut, but did not run before (no camera): its change is not measured" in report.notes
    assert "outputs of copies changed by: Broken not measured" in str(report)


def test_a_copy_whose_cut_is_not_that_of_the_model_is_not_cut():
    class Counting(PlainNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.conv1.out_channels

    model, counting = with_dead(act1=[0]), build(Counting)
    before = comparing.state(counting)
    with pytest.raises(demp.CutError, match="rolled back: outputs of the copy Counting changed by .* is its forward"):
        demp.cut(model, {"act1": [0]}, example_inputs=INPUTS, copies=[counting])
    assert widths(model)[0] == 6 and comparing.same_state(before, counting)


def test_a_cut_by_hand_says_what_it_changes_in_copies():
    model, ema = with_dead(act1=[0]), with_dead()
    average = AveragedModel(with_dead(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    before = outputs(ema)
    inputs = (examples(IMAGE, seed=1),)
    report = demp.cut(model, {"act1": [0]}, example_inputs=inputs, copies=[ema, average, copy.deepcopy(model), {}])
    changed = change(before, outputs(ema))
    assert report.copies == {
        "PlainNet": pytest.approx(changed, rel=1e-9),
        "AveragedModel": pytest.approx(changed, rel=1e-9),
        "PlainNet 2": 0.0,
    }
