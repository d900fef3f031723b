"""A forward that lies on the module itself (a trainer's autocast, offloading): its sums keep both widths equal."""

from types import MethodType

import torch

import demp
from residuals import cut_apart, network
from runs import IMAGE, ResidualNet, build, examples


def test_sums_of_a_patched_forward_bind_both_sides():
    model = build(ResidualNet)
    free = demp.trace(model, (examples(IMAGE),))
    own = model.forward
    model.forward = lambda *args: own(*args)
    bound = demp.trace(model, (examples(IMAGE),))
    assert free.layer("stem_act").coupled == ()
    assert bound.layer("stem_act").coupled == ("act2",)
    demp.cut(model, {"stem_act": [1], "act2": [1]}, example_inputs=(examples(IMAGE),), exact=False)
    assert model.stem.out_channels == model.conv2.out_channels == 5


def test_the_forward_of_the_class_assigned_to_a_module_keeps_its_plans():
    model, inputs = network()
    cut_apart(model, inputs)
    before = model(*inputs)
    for module in model.modules():
        forward = type(module).forward
        while hasattr(forward, "__wrapped__"):
            forward = forward.__wrapped__
        module.forward = MethodType(forward, module)
    assert torch.equal(model(*inputs), before)
