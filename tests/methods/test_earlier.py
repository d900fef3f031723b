"""Methods that were written for version 0.1: each name works, with one warning."""

import dataclasses
import warnings

import pytest
import torch

import demp
from demp import methods
from demp.methods import MaskMethod, base, find
from demp.methods.base import Method, MethodConfig, Requirements
from demp.methods.combination import combined
from runs import IMAGE, PlainNet, build, examples, train


def test_requirements_are_found_under_their_earlier_name():
    for module in (methods, base):
        with pytest.warns(DeprecationWarning, match=f"{module.__name__}.Wants is now {module.__name__}.Requirements"):
            assert issubclass(module.Wants, Requirements)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = module.nothing


def test_a_method_that_says_wants_is_asked_under_todays_name():
    with pytest.warns(DeprecationWarning, match=r"Old.wants\(\) is now requirements\(\)") as said:

        class Old(Method):
            def wants(self):
                return Requirements(scores=True)

        class Older(Old):
            pass

    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (Old, Older):
            method = kind(MethodConfig(), 10)
            assert method.requirements() == method.wants() == Requirements(scores=True)


def test_it_may_ask_the_method_that_it_derives_from():
    with pytest.warns(DeprecationWarning, match=r"Old.wants\(\)"):

        class Old(find("rigl")):
            def wants(self):
                return dataclasses.replace(super().wants(), constants=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = Old(find("rigl").Config(), 10)
        assert method.requirements() == dataclasses.replace(
            find("rigl")(method.config, 10).requirements(), constants=True
        )


def test_a_method_of_today_is_asked_under_the_earlier_name():
    for name in ("demp", "rigl", "demp+rigl"):
        method = find(name)(find(name).Config(), 10)
        with pytest.warns(DeprecationWarning, match=r"wants\(\) is now requirements\(\)") as said:
            assert method.wants() == method.requirements()
        assert len(said) == 1


def halves(view):
    return {name: torch.arange(w.numel()).view(w.shape) % 2 == 0 for name, w in view.maskable().items()}


def earlier_masks(skip_updates=False):
    """A method that masks half of every weight at first and the other half from step 2 on, as version 0.1 had it."""

    class Halves(Method):
        name = "halves"
        summary = reference = "for tests"

        def initial_masks(self, view):
            return halves(view)

        def masks_due(self, step):
            return step == 2 or super().masks_due(step)

        def update_masks(self, step, view):
            return {name: ~mask for name, mask in halves(view).items()}

    if skip_updates:
        with pytest.warns(DeprecationWarning, match=r"Halves.wants\(\)"):

            class Halves(Halves):
                def wants(self):
                    with pytest.warns(DeprecationWarning, match="Wants is now"):
                        return methods.Wants(masks=True, skip_updates=True)

    return Halves


@pytest.mark.parametrize("still", [False, True])
def test_a_method_that_answers_about_masks_is_a_mask_method(still):
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kind = earlier_masks(still)
    with pytest.warns(DeprecationWarning, match="Halves masks weights: derive it from demp.methods.MaskMethod") as said:
        pruner = demp.Pruner(
            model, optimizer, kind, MethodConfig(), example_inputs=(examples(IMAGE),), total_steps=4
        )  # fmt: skip
    assert len([w for w in said if "derive" in str(w.message)]) == 1
    assert isinstance(pruner.method, kind) and isinstance(pruner.method, MaskMethod)
    first = pruner.masks.state_dict()["head.weight"]
    train(model, optimizer, IMAGE, range(2))
    assert torch.equal(pruner.masks.kept["head.weight"], first)
    bias = model.head.bias.detach().clone()
    train(model, optimizer, IMAGE, range(2, 3))
    assert torch.equal(pruner.masks.kept["head.weight"], ~first)
    assert torch.equal(model.head.bias, bias) == still
    pruner.detach()


def test_it_masks_what_another_method_leaves():
    with pytest.warns(DeprecationWarning, match="Halves masks weights"):
        both = combined(find("demp"), earlier_masks())
    assert issubclass(both, MaskMethod) and both.name == "demp+halves"
    assert both(both.Config(), 10).masks_due(2)


def test_a_method_without_masks_hears_nothing_of_them():
    assert not any(name.endswith("masks") or "mask" in name for name in dir(Method))
