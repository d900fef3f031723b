"""The registry, and what every registered method promises."""

import dataclasses
import inspect
import io
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import demp
from demp.errors import UsageError
from demp.methods import Method, MethodConfig, config_class, find, names
from runs import IMAGE, PlainNet, batch_at, build, examples, hooks_on, train


def test_demp_is_registered_and_names_are_sorted():
    assert "demp" in names()
    assert names() == sorted(names())


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(UsageError, match="unknown method 'demb'; did you mean 'demp'"):
        find("demb")
    with pytest.raises(UsageError, match="unknown method 'xyz'; there are: "):
        find("xyz")


@cache
def saved_whole() -> str:
    """Where a PlainNet is saved."""
    return str(demp.save(build(PlainNet), Path(tempfile.mkdtemp()) / "whole", example_inputs=(examples(IMAGE),)))


@pytest.mark.parametrize("name", names())
class TestEveryMethod:
    def test_it_says_what_it_is(self, name: str):
        method = find(name)
        assert issubclass(method, Method)
        assert method.name == name
        assert method.summary
        assert method.reference

    def test_its_config_is_frozen_and_every_field_is_documented(self, name: str):
        config = config_class(name)
        assert issubclass(config, MethodConfig)
        with pytest.raises(dataclasses.FrozenInstanceError):
            config().floor = 3
        for kind in config.__mro__[:-1]:
            own = [f.name for f in dataclasses.fields(kind) if f.name in kind.__annotations__]
            source = inspect.getsource(kind).split("def ")[0]
            for field in own:
                after = source.split(f"    {field}:", 1)[1].split("\n", 1)[1].lstrip()
                assert after.startswith('"""'), f"{field} has no docstring"

    def test_the_defaults_do_nothing_strange(self, name: str):
        method = find(name)(config_class(name)(), 50)
        for step in (0, 1, 25, 50):
            penalty, noise = method.penalty(step), method.after_step(step)
            assert penalty is None or penalty.strength >= 0
            assert noise is None or noise.std >= 0
            assert method.is_due(step) in (True, False)

    def test_it_runs_through_the_common_door_and_its_state_is_plain(self, name: str):
        model = build(PlainNet)
        options = {"like": saved_whole()} if name == "twin" else {}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        pruner = demp.methods.create(
            name, model, optimizer, example_inputs=(examples(IMAGE),), total_steps=6, batches=[batch_at(0, IMAGE)],
            loss_fn=F.cross_entropy, **options,
        )  # fmt: skip
        train(model, optimizer, IMAGE, range(6))
        buffer = io.BytesIO()
        torch.save(pruner.state_dict(), buffer)
        buffer.seek(0)
        assert torch.load(buffer, weights_only=True)["method"] == name
        pruner.finish()
        assert hooks_on(model) == 0


def test_options_may_be_config_fields_or_a_config():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    config = demp.DemPConfig(peak_strength=0.5, floor=2)
    options = {"example_inputs": (examples(IMAGE),), "total_steps": 6, "attach": False}
    one = demp.methods.create("demp", model, optimizer, config=config, period=3, **options)
    assert (one.config.peak_strength, one.config.floor, one.config.period) == (0.5, 2, 3)
    one.detach()
    two = demp.methods.create("demp", model, optimizer, peak_strength=0.5, floor=2, period=3, **options)
    assert one.config == two.config


def test_a_config_of_something_else_is_refused():
    model = build(PlainNet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(UsageError, match="config is a dict; demp takes a DemPConfig"):
        demp.methods.create(
            "demp", model, optimizer, config={"floor": 2}, example_inputs=(examples(IMAGE),), total_steps=6
        )


def test_a_method_that_answers_nothing_does_nothing():
    method = Method(MethodConfig(), 10)
    assert (method.penalty(0), method.after_step(0), method.is_due(1), method.state_dict()) == (None, None, False, {})
    assert method.criterion() == demp.Criterion()
    method.load_state_dict({})
