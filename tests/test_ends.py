"""Runs that end without a cut, or without their last: the summary says what to change, and the reason is true."""

import pytest
from torch import nn

import demp
from demp.pruner.ends import ALL_SKIPPED, LAST_SKIPPED, NO_STEP
from runs import IMAGE, all_alive, examples, quiet_demp, sgd, train, with_dead

STEPS = 12


def ended(model, hook=None, steps=STEPS, **options) -> list[str]:
    """What the summary of a run says beside its numbers; ``hook`` changes the model before a step."""
    optimizer = sgd(model)
    pruner = quiet_demp(model, optimizer, total_steps=STEPS, period=3, **options)
    for step in range(steps):
        if hook is not None:
            hook(model, step)
        train(model, optimizer, IMAGE, range(step, step + 1))
    return [line.strip() for line in str(pruner.finish()).splitlines()[4:]]


def replaced_at(when):
    """Another activation from this step on, which no cut may meet."""

    def change(model, step):
        if step == when:
            model.act1 = nn.ReLU()

    return change


@pytest.mark.parametrize("options", [{}, {"budget": "flops=0.6"}], ids=["dead", "budget"])
def test_a_run_whose_every_check_was_skipped(options):
    lines = ended(with_dead(act1=[0]), replaced_at(0), **options)
    assert any(line.startswith("note: skipped: act1 is another object") for line in lines)
    assert ALL_SKIPPED in lines and lines[-1] == f"last check: skipped at step {STEPS}"


def test_a_run_whose_last_check_was_skipped():
    lines = ended(with_dead(act1=[0]), replaced_at(7))
    assert LAST_SKIPPED in lines and ALL_SKIPPED not in lines and lines[-1] == f"last check: skipped at step {STEPS}"


def test_a_run_without_a_step():
    lines = ended(all_alive(), steps=0)
    assert NO_STEP in lines and not any("nothing was removed" in line for line in lines)
    assert NO_STEP not in ended(all_alive(), steps=1)


LIMITS = {
    "all excluded": ({"exclude": ("*",)}, "include=('*',) and exclude=('*',) leave no layer whose neurons may go"),
    "none included": ({"include": ("other.*",)}, "such layers are act1, act2, act3"),
    "floor": ({"floor": 100}, "at its floor of 100 already"),
    "multiple": ({"multiple": 100}, "at its floor of 1 rounded up to a multiple of 100 already"),
}


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("method", ["demp", "apoz"])
def test_limits_under_which_no_neuron_may_go(name, method):
    options, words = LIMITS[name]
    if method == "demp":
        lines = ended(all_alive(), **options)
    else:
        model, inputs = all_alive(), examples(IMAGE)
        optimizer = sgd(model)
        pruner = demp.methods.create(
            method, model, optimizer, example_inputs=(inputs,), batches=[inputs], total_steps=STEPS, **options
        )
        train(model, optimizer, IMAGE, range(STEPS))
        lines = str(pruner.finish()).splitlines()
    (said,) = [line for line in lines if "nothing was removed" in line]
    assert words in said and "still answers" not in said


def test_a_target_that_was_missed():
    lines = ended(with_dead(act1=[0, 3]), target_neuron_sparsity=0.5)
    (said,) = [line for line in lines if "target_neuron_sparsity" in line]
    assert "of 18 neurons are removed, and target_neuron_sparsity=0.5 asks for 9" in said
    assert "budget=demp.Budget(neurons=0.5)" in said
    assert not any(
        "target_neuron_sparsity" in line for line in ended(with_dead(act1=[0, 3]), target_neuron_sparsity=0.1)
    )
