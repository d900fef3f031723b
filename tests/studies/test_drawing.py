import json
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from matplotlib import rc_context
from matplotlib.text import Text

from demp.experiments import studies
from demp.experiments.compare.figure import STYLE
from demp.experiments.studies.dead import line
from demp.experiments.studies.drawing import MOST, frame, legend, panels, sixes
from demp.experiments.studies.frontier import DENSE_LINE
from demp.experiments.studies.line_names import named_lines

KEPT = Path(__file__).parents[2] / "results" / "cpu"


def drawn(labels, mark=False):
    """A figure with a line, or marks, for each name."""
    figure, (axes,) = panels(1)
    for number, label in enumerate(labels):
        axes.plot([0, 1], [number, number], label=label, linestyle="none" if mark else "-", marker="o")
    frame(axes, "title", "step")
    legend(figure)
    figure.draw_without_rendering()
    return figure, figure.legends


@pytest.mark.parametrize(
    ("labels", "mark"),
    [(list("abcdef"), True), ([f"strength 0.0{i}, of all that were ever dead" for i in range(5)], False)],
)
def test_a_legend_is_no_wider_than_the_figure(labels, mark):
    figure, (found,) = drawn(labels, mark)
    box = found.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    assert [text.get_text() for text in found.get_texts()] == labels and not figure.axes[0].texts


def test_names_that_fit_stand_at_the_ends_of_their_lines():
    figure, legends = drawn(["first", "second", "third"])
    (axes,) = figure.axes
    assert legends == [] and [text.get_text() for text in axes.texts] == ["first", "second", "third"]
    for text, drawn_line in zip(axes.texts, axes.lines, strict=True):
        box = Text.get_window_extent(text)
        end = axes.transData.transform((1, drawn_line.get_ydata()[-1]))
        assert axes.bbox.x1 < box.x0 and box.x1 <= figure.bbox.x1 and abs((box.y0 + box.y1) / 2 - end[1]) < 3
        assert text.get_color() == drawn_line.get_color()


@pytest.mark.parametrize(
    ("many", "always", "sizes"), [(4, "", [4]), (6, "", [6]), (7, "", [3, 4]), (7, "0", [4, 4]), (6, "0", [6])]
)
def test_no_panel_has_more_than_six_lines(many, always, sizes):
    names = [str(number) for number in range(many)]
    found = sixes(names, always)
    assert [len(one) for one in found] == sizes and all(always in one or not always for one in found)
    assert sorted({name for one in found for name in one}) == names


@pytest.mark.parametrize("name", ["fig1", "fig2", "fig3", "fig8", "fig9"])
def test_figures_of_kept_results_are_tidy(name):
    """Six lines a panel, names that meet nobody, curves inside their panels, everything on the paper."""
    records = [json.loads(line) for line in (KEPT / f"{name}.jsonl").read_text().splitlines()]
    with rc_context(STYLE):
        figure = studies.find(name).figure(records, "cpu")
        figure.draw_without_rendering()
        words = [text for axes in figure.axes for text in (axes.title, axes._left_title, *axes.texts)]
        words += [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label)]
        boxes = [Text.get_window_extent(text) for text in words if text.get_text() and text.get_visible()]
        assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]
        paper = figure.bbox
        assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= paper.x1 and b.y1 <= paper.y1 for b in boxes)
        for axes in figure.axes:
            named = [line for line in named_lines(axes) if line.get_label() != DENSE_LINE]
            assert len(named) <= MOST
            for one in named:
                inside = axes.bbox.padded(1.0)
                assert all(inside.contains(*place) for place in one.get_transform().transform(one.get_xydata()))


@pytest.mark.parametrize("ends", [(0.004, 0.008), (0.0, 97_656.0), (0.6125, 0.9875), (-1e-4, 1e-4)])
def test_numbers_below_a_panel_stand_apart(ends):
    figure, all_axes = panels(2)
    for axes in all_axes:
        axes.plot(ends, [0, 1])
        frame(axes, "title", "peak strength")
    with rc_context(STYLE):
        figure.draw_without_rendering()
    for axes in all_axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert len(boxes) > 2 and all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_a_figure_without_lines_has_no_legend():
    assert drawn([])[1] == []


@pytest.mark.parametrize(("looks", "marker"), [(4, "o"), (40, "None")])
def test_few_looks_are_marked(looks, marker):
    _, (axes,) = panels(1)
    line(axes, [{"series": {"dead": [[step, 0.1] for step in range(looks)]}}], "dead", {"color": "k"}, "all")
    assert axes.lines[0].get_marker() in (marker, "")
