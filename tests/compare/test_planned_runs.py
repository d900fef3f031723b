import pytest

from demp import recipes
from demp.cli.compare import method_options, numbers
from demp.errors import UsageError
from demp.experiments.compare import plan
from demp.experiments.compare.missed import missed, without_budget
from demp.experiments.compare.plan import words
from demp.train import TrainConfig

BASE = TrainConfig.from_dict(
    {
        "model": {"name": "mlp"},
        "method": {"name": "demp", "options": {"peak_strength": 0.5, "period": 7}},
        "steps": 20,
        "device": "cpu",
    }
)


def names(*arguments, **options):
    return [run.name for run in plan(BASE, *arguments, **options)]


def test_dense_comes_first_then_every_method_at_its_first_setting_and_seed_by_seed():
    found = names(["magnitude", "demp"], seeds=2, targets=[0.3, 0.5, 0.7], strengths=[0.1, 0.2])
    of_a_seed = [
        "dense", "magnitude-weight_sparsity=0.3", "demp-peak_strength=0.1", "magnitude-weight_sparsity=0.5",
        "demp-peak_strength=0.2", "magnitude-weight_sparsity=0.7",
    ]  # fmt: skip
    assert found == [f"{name}-s{seed}" for seed in (0, 1) for name in of_a_seed]


def test_a_target_is_the_knob_that_each_method_has():
    runs = {run.method: run.config.method.options for run in plan(BASE, ["demp", "rigl"], targets=[0.4])}
    assert runs == {
        "dense": {},
        "demp": {"peak_strength": 0.5, "period": 7, "target_neuron_sparsity": 0.4},
        "rigl": {"weight_sparsity": 0.4},
    }


def test_a_combination_takes_targets_for_its_masks_and_strengths():
    runs = plan(BASE, ["demp+rigl"], targets=[0.4, 0.6], strengths=[0.1, 0.2])[1:]
    assert [run.setting for run in runs] == [
        {"weight_sparsity": target, "peak_strength": strength} for target in (0.4, 0.6) for strength in (0.1, 0.2)
    ]
    assert {run.config.method.options["period"] for run in runs} == {7}


def test_runs_differ_in_method_and_seed_only():
    for run in plan(BASE, ["demp", "set"], seeds=2, targets=[0.5]):
        kept = run.config.merged({"method": {"name": "dense"}, "seed": 0})
        assert kept == BASE.merged({"method": {"name": "dense"}})
        assert run.config.seed == run.seed


def test_options_of_one_method_or_of_all_and_lists_are_runs_for_each():
    options = {"*": {"floor": 2, "drop_schedule": "constant"}, "rigl": {"distribution": ["erk", "uniform"]}}
    runs = plan(BASE, ["rigl", "magnitude"], targets=[0.5], options=options)
    assert [(run.name, run.config.method.options) for run in runs[1:]] == [
        (
            "rigl-weight_sparsity=0.5-floor=2-drop_schedule=constant-distribution=erk-s0",
            {"floor": 2, "drop_schedule": "constant", "weight_sparsity": 0.5, "distribution": "erk"},
        ),
        ("magnitude-weight_sparsity=0.5-floor=2-s0", {"floor": 2, "weight_sparsity": 0.5}),
        (
            "rigl-weight_sparsity=0.5-floor=2-drop_schedule=constant-distribution=uniform-s0",
            {"floor": 2, "drop_schedule": "constant", "weight_sparsity": 0.5, "distribution": "uniform"},
        ),
    ]


def test_an_option_takes_the_place_of_a_target():
    runs = plan(BASE, ["rigl", "set"], targets=[0.5], options={"rigl": {"weight_sparsity": 0.9}})
    assert [run.config.method.options for run in runs[1:]] == [{"weight_sparsity": 0.9}, {"weight_sparsity": 0.5}]


def test_runs_of_two_commands_in_one_folder_are_told_apart():
    first, second = (
        plan(BASE, ["prune-train"], options={"prune-train": {"penalty_share": share, "threshold": 0.02}})[1]
        for share in (0.2, 0.7)
    )
    assert first.name == "prune-train-penalty_share=0.2-threshold=0.02-s0" != second.name
    assert second.setting == {"penalty_share": 0.7, "threshold": 0.02} == second.config.method.options


def test_other_methods_do_not_get_the_options_of_a_recipe_for_demp():
    base = recipes.get("digits", steps=40)
    runs = plan(base, ["demp", "magnitude"])
    assert runs[1].config.method == base.method
    assert runs[2].config.method.options == {}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((["rigel"],), {}, "unknown method 'rigel'; did you mean 'rigl'"),
        ((["demp", "demp+rigel"],), {}, "unknown method 'rigel' in 'demp[+]rigel'"),
        ((["rigl"],), {"targets": [0.5, 1.0]}, r"target is 1; give shares in \(0, 1\)"),
        ((["rigl"],), {"targets": [0.0]}, r"target is 0; give shares in \(0, 1\)"),
        (([],), {}, "nothing to compare"),
        ((["dense"],), {}, "nothing to compare"),
        ((["rigl"],), {"strengths": [0.1]}, "--strengths are peak strengths of demp, which is not among --methods"),
        ((["rigl"],), {"seeds": 0}, "seeds is 0; give at least 1"),
        (
            (["rigl"],),
            {"options": {"set": {"floor": 1}}},
            "option set.floor is for a method that is not among --methods",
        ),
        ((["rigl"],), {"options": {"rigl": {"flor": 1}}}, "rigl has no option 'flor'; it has .*floor"),
        ((["rigl"],), {"options": {"*": {"flor": 1}}}, "[*] has no option 'flor'"),
        ((["rigl"],), {"options": {"rigl": {"floor": 0.5}}}, "method.options.floor is 0.5; give a whole number"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, options, message):
    with pytest.raises(UsageError, match=message):
        plan(BASE, *arguments, **options)


def test_a_method_without_a_target_is_refused_unless_its_own_knob_is_given(monkeypatch):
    from demp import methods

    class Plain(methods.Method):
        name = "plain"
        summary = reference = "for tests"

    monkeypatch.setitem(methods.registry(), "plain", Plain)
    with pytest.raises(UsageError, match=r"plain has no target sparsity; give the knob .* --option plain\.OPTION="):
        plan(BASE, ["plain"], targets=[0.5])
    assert names(["plain"], targets=[0.5], options={"plain": {"floor": [1, 2]}})[1:] == [
        "plain-floor=1-s0",
        "plain-floor=2-s0",
    ]
    assert names(["plain"])[1:] == ["plain-s0"]
    with pytest.raises(UsageError, match="plain has no target sparsity"):
        plan(BASE, ["plain"], targets=[0.5], options={"plain": {"floor": 1}})


def test_flags_become_numbers_and_options():
    assert numbers("target", "0.3, 1e-2,") == [0.3, 0.01]
    assert numbers("target", "") == []
    with pytest.raises(UsageError, match="--target is '0.3;0.5'; give numbers with commas"):
        numbers("target", "0.3;0.5")
    found = method_options(("rigl.distribution=erk", "*.floor=2", "demp+rigl.period=[3, 4]"))
    assert found == {"rigl": {"distribution": "erk"}, "*": {"floor": 2}, "demp+rigl": {"period": [3, 4]}}
    with pytest.raises(UsageError, match="'floor=2' is not METHOD.KEY=VALUE"):
        method_options(("floor=2",))


def test_on_a_budget_a_narrow_network_is_always_among_the_runs():
    found = plan(BASE, ["demp", "random"], seeds=2, budgets=["flops=0.4", " flops = 0.2 , neurons=0.5"])
    of_a_seed = [
        "dense", "narrow-budget=flops=0.4", "demp-budget=flops=0.4", "random-budget=flops=0.4",
        "narrow-budget=flops=0.2,neurons=0.5", "demp-budget=flops=0.2,neurons=0.5",
        "random-budget=flops=0.2,neurons=0.5",
    ]  # fmt: skip
    settings = [(run.method, run.setting.get("budget", ""), run.seed) for run in found]
    assert settings == [
        (name.partition("-")[0], name.partition("budget=")[2], seed) for seed in (0, 1) for name in of_a_seed
    ]
    assert len({run.name for run in found}) == len(found)
    assert all(run.config.method.options.get("budget", "") == run.setting.get("budget", "") for run in found)
    assert [run.method for run in plan(BASE, ["narrow"], budgets=["flops=0.4"])] == ["dense", "narrow"]


def test_a_method_that_no_budget_binds_runs_without_one_and_is_labelled_so():
    found = plan(BASE, ["demp", "prune-train"], budgets=["flops=0.4", "flops=0.2"])
    free = [run for run in found if run.method == "prune-train"]
    assert [(run.name, run.setting) for run in free] == [("prune-train-budget=none-s0", {"budget": "none"})]
    assert "budget" not in free[0].config.method.options
    assert words(free[0].setting) == "without a budget"
    kept = plan(BASE, ["demp", "rigl"], budgets=["flops=0.4"], options={"rigl": {"weight_sparsity": [0.5, 0.9]}})
    assert [words(run.setting) for run in kept if run.method == "rigl"] == [
        "without a budget, weights 0.5", "without a budget, weights 0.9",
    ]  # fmt: skip


def record(method, reached, *, status="done", **setting):
    shares = {"neuron_sparsity": reached, "weight_sparsity": reached / 2, "masked_share": reached / 2}
    return {"status": status, "labels": {"method": method, "setting": setting, "seed": 0}, **shares}


def test_a_target_that_was_missed_is_said_once_per_setting():
    records = [
        record("demp", 0.30, target_neuron_sparsity=0.5), record("demp", 0.40, target_neuron_sparsity=0.5),
        record("demp", 0.796, target_neuron_sparsity=0.8), record("rigl", 0.86, weight_sparsity=0.9),
        record("set", 0.80, weight_sparsity=0.9), record("snap", 0.0, status="failed", target_neuron_sparsity=0.5),
        record("dense", 0.0), record("prune-train", 0.1, budget="none"),
    ]  # fmt: skip
    first, second = missed(records)
    assert first.startswith("demp at neurons 0.5 has missed its target: 35.0% of the neurons instead of 50.0%; ")
    assert second.startswith("set at weights 0.9 has missed its target: 80.0% of the weights instead of 90.0%; ")
    assert without_budget(records) == [
        "prune-train has no target, so it cannot land on a budget: it runs with its own options, as without a budget"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["rigl"], "budgets": ["flops=0.4"]}, "rigl has no target, so it cannot land on a budget"),
        ({"names": ["demp"], "budgets": ["flops=0.4"], "targets": [0.5]}, "--target and --budget both say"),
        ({"names": ["demp"], "budgets": ["flops"]}, "RESOURCE=NUMBER"),
        ({"names": ["demp"], "budgets": ["flops=4.0"]}, "is no limit"),
    ],
)
def test_refused_budgets(arguments, message):
    with pytest.raises(UsageError, match=message):
        plan(BASE, arguments.pop("names"), **arguments)
