"""The options of `demp.DemP`: what an editor completes, what `help` says, what the config decides."""

import inspect
from dataclasses import fields
from typing import get_type_hints

import demp
from demp.pruner.options import DemPOptions, PrunerOptions, all_meanings, meanings

GIVEN = {"model", "optimizer", "method", "config", "example_inputs", "total_steps", "return"}
"""What is written in the signature of `demp.DemP` itself."""


def test_an_editor_is_told_every_option_with_the_type_that_its_owner_has():
    of_config = {field.name: get_type_hints(demp.DemPConfig)[field.name] for field in fields(demp.DemPConfig)}
    of_pruner = {k: v for k, v in get_type_hints(demp.Pruner.__init__).items() if k not in GIVEN}
    assert get_type_hints(PrunerOptions) == of_pruner, "PrunerOptions and Pruner.__init__ differ"
    assert get_type_hints(DemPOptions) == {**of_pruner, **of_config}, "DemPOptions and DemPConfig differ"


def test_the_signature_has_every_option_with_its_default():
    found = inspect.signature(demp.DemP).parameters
    assert list(found)[:5] == ["model", "optimizer", "example_inputs", "total_steps", "config"]
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values())
    config = demp.DemPConfig()
    for field in fields(config):
        assert found[field.name].default == getattr(config, field.name), field.name
    for name in get_type_hints(PrunerOptions):
        assert found[name].default == inspect.signature(demp.Pruner.__init__).parameters[name].default, name


def test_help_says_what_every_option_means():
    text = " ".join((demp.DemP.__doc__ or "").split())
    for name, meaning in {**all_meanings(demp.DemPConfig), **meanings(PrunerOptions)}.items():
        assert f"{name}: {' '.join(meaning.split())} Default: " in text, name
    for name in inspect.signature(demp.DemP).parameters:
        assert f" {name}: " in text, name


def test_a_source_that_is_not_at_hand_leaves_the_signature(monkeypatch):
    from demp.pruner import options

    def gone(kind):
        raise OSError("source code not available")

    monkeypatch.setattr(options.inspect, "getsource", gone)

    def function(model, **given):
        """One line."""

    options.with_every_option(function)
    assert "budget" in inspect.signature(function).parameters
    assert function.__doc__ == "One line."


def test_meanings_are_the_docstrings_under_the_fields():
    found = meanings(demp.methods.MethodConfig)
    assert found["floor"] == "Neurons that stay in every layer, even if all are dead (gap 41)."
    assert list(found) == [field.name for field in fields(demp.methods.MethodConfig)]
