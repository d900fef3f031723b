from itertools import pairwise

import pytest
from matplotlib import rc_context

from demp.compare.picture import STYLE
from demp.studies.dead import line
from demp.studies.drawing import frame, legend, panels


def drawn(labels):
    """The legend of a picture with a line for each label."""
    figure, (axes,) = panels(1)
    for number, label in enumerate(labels):
        axes.plot([0, 1], [number, number], label=label)
    frame(axes, "title", "step")
    legend(figure)
    figure.draw_without_rendering()
    return figure, figure.legends


@pytest.mark.parametrize(
    "labels",
    [["short"], list("abcdef"), [f"strength 0.0{i}, of all that were ever dead" for i in range(5)]],
)
def test_a_legend_is_no_wider_than_the_picture(labels):
    figure, (found,) = drawn(labels)
    box = found.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    assert [text.get_text() for text in found.get_texts()] == labels


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


def test_a_picture_without_lines_has_no_legend():
    assert drawn([])[1] == []


@pytest.mark.parametrize(("looks", "marker"), [(4, "o"), (40, "None")])
def test_few_looks_are_marked(looks, marker):
    _, (axes,) = panels(1)
    line(axes, [{"series": {"dead": [[step, 0.1] for step in range(looks)]}}], "dead", {"color": "k"}, "all")
    assert axes.lines[0].get_marker() in (marker, "")
