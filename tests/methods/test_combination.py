"""Two methods in one run: settings, answers, and what a cut does to masks."""

import copy
import dataclasses
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

import contract
import demp
from demp import methods
from demp.errors import UsageError
from demp.masking.distributions import kept
from demp.methods import MaskMethod, Method, MethodConfig, Requirements, Selection
from demp.methods.combination import Combination, combined, union
from demp.regularization.noise import Noise
from demp.regularization.penalties import Penalty
from runs import IMAGE, PlainNet, batch_at, build, examples, same, train, widths, with_dead

TOTAL = 24


def parts(name: str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    given = {
        "example_inputs": (examples(IMAGE),), "batches": [batch_at(0, IMAGE)[0]], "total_steps": TOTAL, "mask_every": 2,
        "weight_sparsity": 0.6, "period": 5, "peak_noise_std": 1e-2,
    }  # fmt: skip
    return optimizer, methods.create(name, model, optimizer, **(given | options))


def test_a_name_with_a_plus_is_one_method_with_the_settings_of_both():
    method = methods.find("demp+rigl")
    assert method is methods.find("demp+rigl")
    assert (method.name, issubclass(method, Method)) == ("demp+rigl", True)
    assert "demp+rigl" not in methods.names()
    assert methods.find("demp").summary in method.summary
    assert methods.find("rigl").reference in method.reference
    config = methods.config_class("demp+rigl")
    fields = [f.name for f in dataclasses.fields(config)]
    assert len(fields) == len(set(fields))
    both = {f.name for part in ("demp", "rigl") for f in dataclasses.fields(methods.config_class(part))}
    assert set(fields) == both
    assert (config().distribution, config().peak_strength, config().floor) == ("erk", 1e-3, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().floor = 3


def test_settings_can_be_pickled_and_copied():
    config = methods.config_class("demp+rigl")(floor=3, drop_fraction=0.1)
    again = pickle.loads(pickle.dumps(config))
    assert again == config == copy.deepcopy(config)
    assert type(again) is type(config)


def test_settings_of_both_are_checked():
    config = methods.config_class("demp+rigl")
    with pytest.raises(UsageError, match="peak_strength is -1"):
        config(peak_strength=-1)
    with pytest.raises(UsageError, match="drop_fraction is 2"):
        config(drop_fraction=2)
    with pytest.raises(UsageError, match="floor"):
        config(floor=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demp+rigle", r"unknown method 'rigle' in 'demp\+rigle'; did you mean 'rigl'\?"),
        ("denp+rigl", r"unknown method 'denp' in 'denp\+rigl'; did you mean 'demp'\?"),
        ("demp+", r"unknown method '' in 'demp\+'; there are: "),
        ("demp+rigl+set", r"unknown method 'rigl\+set' in"),
        ("rigl+demp", "rigl masks weights and demp masks no weights; give a method that removes neurons, a plus"),
        ("set+rigl", "set masks weights and rigl masks weights"),
        ("demp+demp", "demp masks no weights and demp masks no weights"),
    ],
)
def test_a_wrong_part_is_named(name: str, message: str):
    with pytest.raises(UsageError, match=message):
        methods.find(name)


def test_two_settings_of_one_name_are_refused():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        peak_strength: float = 1.0

    class Masker(MaskMethod):
        name = "masker"
        summary = reference = "-"
        Config = MethodConfig

    Masker.Config = Config
    with pytest.raises(UsageError, match=r"'demp\+masker': both methods have a setting called peak_strength"):
        combined(methods.find("demp"), Masker)


def test_penalty_and_noise_are_the_first_ones_and_masks_the_second_ones():
    config = methods.config_class("demp+rigl")(period=4, mask_every=3, skip_updates=True, live_mask="last-check")
    both = methods.find("demp+rigl")(config, TOTAL)
    demp_alone, rigl_alone = (methods.find(name)(config, TOTAL) for name in ("demp", "rigl"))
    assert both.criterion() == demp_alone.criterion()
    assert both.requirements() == demp_alone.requirements() == Requirements(live_mask="last-check", max_drift=0.02)
    assert both.skips_updates()
    for step in range(TOTAL):
        assert isinstance(both.penalty(step), Penalty)
        assert isinstance(both.after_step(step), Noise)
        assert (both.penalty(step), both.after_step(step)) == (demp_alone.penalty(step), demp_alone.after_step(step))
        assert both.is_due(step) == demp_alone.is_due(step)
        assert both.masks_due(step) == rigl_alone.masks_due(step)


def test_every_question_goes_to_a_part():
    answers = {**vars(Method), **vars(MaskMethod)}
    questions = {name for name, value in answers.items() if inspect.isfunction(value)}
    assert questions <= set(vars(Combination))


def test_the_union_of_two_selections():
    a, b = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    both = union(Selection({"x": a, "y": b}, None, ("one",)), Selection({"x": b}, True, ("two",)))
    assert {name: flags.tolist() for name, flags in both.neurons.items()} == {"x": [True, False, True], "y": b.tolist()}
    assert both.notes == ("one", "two")
    answers = {
        (x, y): union(Selection(exact=x), Selection(exact=y)).exact
        for x in (None, True, False)
        for y in (None, True, False)
    }
    assert answers[True, True] is True
    assert answers[None, True] is None
    assert answers[True, None] is None
    assert all(answer is False for pair, answer in answers.items() if False in pair)


@pytest.mark.parametrize("name", contract.COMBINATIONS)
def test_neurons_go_weights_are_masked_and_noise_brings_none_back(name: str):
    model = with_dead(act1=[1], act3=[2, 4])
    optimizer, pruner = parts(name, model)
    for step in range(TOTAL):
        train(model, optimizer, IMAGE, range(step, step + 1))
        assert (pruner.metrics()["demp/noise_std"] > 0) == (pruner.step < TOTAL)
        for key, mask in pruner.masks.kept.items():
            parameter = model.get_parameter(key)
            assert not bool(parameter[~mask].any())
            assert not bool(optimizer.state[parameter]["momentum_buffer"][~mask].any())
    assert bool(pruner.state.removed.any())
    assert pruner.masks.masked() > 0
    pruner.finish()
    assert sum(widths(model)) < sum(widths(build(PlainNet)))


@pytest.mark.parametrize("name", ["demp+rigl", "demp+set"])
def test_after_a_cut_every_tensor_comes_back_to_its_own_density(name: str):
    model = with_dead(act1=[1, 3], act2=[0], act3=[2, 4])
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    optimizer, pruner = parts(name, model)
    shares = pruner.method.second.densities(pruner._view)
    for step in range(TOTAL):
        cuts = len(pruner.history)
        train(model, optimizer, IMAGE, range(step, step + 1))
        if 8 <= step <= 18 and step % 2 == 0 and len(pruner.history) == cuts:
            for key, mask in pruner.masks.kept.items():
                assert int(mask.sum()) == kept(mask.numel(), shares[key])
    assert any(mask.shape != shapes[key] for key, mask in pruner.masks.kept.items())
    assert pruner.method.second.densities(pruner._view) == shares


def test_without_a_mask_update_and_without_deaths_it_is_demp_to_the_bit():
    models = [build(PlainNet) for _ in range(2)]
    optimizer, _ = parts("demp+magnitude", models[0], mask_from=0.9, mask_until=1.0)
    train(models[0], optimizer, IMAGE, range(20))
    other = torch.optim.SGD(models[1].parameters(), lr=0.01, momentum=0.9)
    demp.DemP(
        models[1], other, example_inputs=(examples(IMAGE),), batches=[batch_at(0, IMAGE)[0]], total_steps=TOTAL,
        period=5, peak_noise_std=1e-2,
    )  # fmt: skip
    train(models[1], other, IMAGE, range(20))
    assert same(*models)


def test_an_interrupted_run_with_cuts_continues_to_the_bit():
    def made(resume: bool = False):
        model = with_dead(act1=[1], act3=[2, 4])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        return model, optimizer, parts("demp+rigl", model, optimizer, resume=resume)[1]

    model, optimizer, _ = made()
    train(model, optimizer, IMAGE, range(TOTAL))
    half, half_optimizer, pruner = made()
    train(half, half_optimizer, IMAGE, range(13))
    assert pruner.history[-1].step == 10 and pruner.state.removed.any()
    buffer = io.BytesIO()
    torch.save((pruner.state_dict(), half.state_dict(), half_optimizer.state_dict()), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    again, again_optimizer, pruner = made(resume=True)
    pruner.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    again_optimizer.load_state_dict(saved[2])
    train(again, again_optimizer, IMAGE, range(13, TOTAL))
    assert same(model, again)
