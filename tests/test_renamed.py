"""Old names of modules: the same modules, one warning each."""

import importlib
import subprocess
import sys

import pytest

from demp.renamed import MOVED, renamed


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_module_of_today_and_warns(old):
    sys.modules.pop(f"demp.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"demp.{old} is now demp.{MOVED[old]}") as warned:
        found = importlib.import_module(f"demp.{old}")
    assert len(warned) == 1
    now = importlib.import_module(f"demp.{MOVED[old]}")
    assert found is now and now.__spec__.name == now.__name__ == f"demp.{MOVED[old]}"


def test_modules_inside_a_moved_package_are_found_and_are_no_copies():
    code = (
        "import warnings; warnings.simplefilter('error'); import demp.experiments.sweep.job as new; "
        "warnings.simplefilter('ignore'); from demp.sweep.job import Job; print(Job is new.Job)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_other_names_are_let_alone():
    assert renamed("demp.sweep.training") == "demp.experiments.sweep.training"
    assert renamed("demp.methods.checks") == "demp.files.checks"
    assert renamed("demp.methods.checks_of") is renamed("demp.methods") is None
    assert renamed("demp.graph") is renamed("torch.sweep") is renamed("demp") is None
    with pytest.raises(ModuleNotFoundError, match=r"demp\.nothing"):
        importlib.import_module("demp.nothing")


def test_a_verdict_is_a_detection():
    from demp import activity

    with pytest.warns(DeprecationWarning, match="Verdict is now demp.activity.Detection"):
        assert activity.Verdict is activity.Detection
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = activity.nothing


def test_a_picture_of_the_walks_is_a_figure():
    from demp.experiments import theory

    with pytest.warns(DeprecationWarning, match=r"demp\.theory\.picture is now demp\.theory\.figure"):
        assert theory.picture is theory.figure
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = theory.nothing
