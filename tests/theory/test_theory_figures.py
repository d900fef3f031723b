"""The figures of the two walks, and the page about them."""

import doctest
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import demp
from demp import theory
from demp.errors import UsageError

PAGE = Path(demp.__file__).parents[2] / "docs" / "theory.md"


def test_the_figure_shows_closed_forms_as_lines_and_simulations_as_points(tmp_path):
    figure = theory.figure(walks=500)
    left, right = figure.axes
    lines = [line for line in left.get_lines() if line.get_linestyle() == "-"]
    points = [line for line in left.get_lines() if line.get_marker() == "o"]
    assert len(lines) == len(points) == 4
    assert all(len(line.get_xdata()) == 200 for line in lines)
    assert [line.get_ydata()[-1] for line in lines][1] == theory.survival(1.0, 0.1, 100.0)
    assert {text.get_text() for text in right.get_legend().get_texts()} == {"mu", "bound, Eq. 15", "stable"}
    figure.savefig(tmp_path / "theory.svg")


def test_the_axes_take_what_one_simulated():
    axes = Figure().subplots()
    found = theory.absorbing_walks(1.0, 0.2, [1, 2, 3], walks=100)
    theory.draw_survival(axes, [found])
    assert list(axes.get_lines()[1].get_ydata()) == list(found.shares)
    axes = Figure().subplots()
    theory.draw_growth(axes, theory.Uniform(1.0), -5.0)  # nothing is stable, nothing was simulated
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mu", "bound, Eq. 15"]


def test_without_matplotlib_a_figure_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'demp\[report\]'"):
        theory.figure(walks=10)


@pytest.mark.parametrize("text", [theory.__doc__, PAGE.read_text()], ids=["package", "page"])
def test_the_examples_answer_what_they_say(text):
    test = doctest.DocTestParser().get_doctest(text, {}, "theory", None, 0)
    assert test.examples
    said = []
    doctest.DocTestRunner().run(test, out=said.append)
    assert said == []
