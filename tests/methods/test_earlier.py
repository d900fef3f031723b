"""Methods that were written for version 0.1: each name works, with one warning."""

import dataclasses
import warnings

import pytest

from demp import methods
from demp.methods import base, find
from demp.methods.base import Method, MethodConfig, Requirements


def test_requirements_are_found_under_their_earlier_name():
    for module in (methods, base):
        with pytest.warns(DeprecationWarning, match=f"{module.__name__}.Wants is now {module.__name__}.Requirements"):
            assert issubclass(module.Wants, Requirements)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = module.nothing


def test_a_method_that_says_wants_is_asked_under_todays_name():
    with pytest.warns(DeprecationWarning, match=r"Old.wants\(\) is now requirements\(\)") as warned:

        class Old(Method):
            def wants(self):
                return Requirements(scores=True)

        class Older(Old):
            pass

    assert len(warned) == 1
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
        with pytest.warns(DeprecationWarning, match=r"wants\(\) is now requirements\(\)") as warned:
            assert method.wants() == method.requirements()
        assert len(warned) == 1
