import pytest

from demp.experiments.compare.figure import MARKERS, draw, write


def record(method, seed, top1, *, setting=None, neurons=0.0, removed=0.0, masked=0.0):
    return {
        "labels": {"method": method, "setting": setting or {}, "seed": seed},
        "status": "done",
        "split": "test",
        "eval/top1": top1,
        "neuron_sparsity": neurons,
        "weight_sparsity": removed,
        "masked_share": masked,
    }


RECORDS = [
    record("dense", 0, 0.90),
    record("dense", 1, 0.94),
    *(
        record("demp", seed, 0.8 + 0.02 * seed - at / 10, setting={"peak_strength": at}, neurons=at, removed=2 * at)
        for at in (0.4, 0.2)
        for seed in (0, 1)
    ),
    record("rigl", 0, 0.7, setting={"weight_sparsity": 0.5}, removed=0.1, masked=0.4),
    {"labels": {"method": "broken", "setting": {}, "seed": 0}, "status": "failed", "error": "it broke"},
]


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_every_method_that_ended_is_one_line_and_dense_a_line_with_a_band():
    figure = draw(RECORDS)
    left, right = figure.axes
    for axes in (left, right):
        assert list(lines(axes)) == ["dense", "demp", "rigl"]
        assert lines(axes)["dense"].get_ydata() == pytest.approx([92.0, 92.0])
        (band,) = axes.patches
        deviation = 100 * 0.04 / 2**0.5
        assert (band.get_y(), band.get_height()) == pytest.approx((92 - deviation, 2 * deviation))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["dense", "demp", "rigl"]


def test_points_are_means_over_seeds_from_left_to_right_and_seeds_are_faint():
    left, right = draw(RECORDS).axes
    assert [list(xy) for xy in lines(left)["demp"].get_xydata()] == [
        pytest.approx([20.0, 79.0]), pytest.approx([40.0, 77.0]),
    ]  # fmt: skip
    assert list(lines(right)["demp"].get_xdata()) == pytest.approx([40.0, 80.0])
    of_demp, of_rigl = left.collections
    assert sorted(y for _, y in of_demp.get_offsets()) == pytest.approx([76.0, 78.0, 78.0, 80.0])
    assert len(of_rigl.get_offsets()) == 0


def test_removed_and_masked_weights_are_told_apart():
    _, right = draw(RECORDS).axes
    assert lines(right)["rigl"].get_xdata() == pytest.approx([50.0])
    assert lines(right)["rigl"].get_markerfacecolor() == "white"
    assert lines(right)["demp"].get_markerfacecolor() != "white"
    (dotted,) = (line for line in right.lines if line.get_linestyle() == ":")
    assert [list(xy) for xy in dotted.get_xydata()] == [pytest.approx([10.0, 70.0]), pytest.approx([50.0, 70.0])]


def test_seventeen_methods_look_different_without_colours():
    many = [record(f"m{i}", 0, 0.5, setting={"x": i}, neurons=0.1) for i in range(17)]
    left, _ = draw(many).axes
    looks = {(line.get_color(), line.get_marker()) for line in lines(left).values()}
    assert len(looks) == 17
    assert len({look[1] for look in looks}) == len(MARKERS)


def test_files_are_the_same_whenever_they_are_written(tmp_path):
    (tmp_path / "again").mkdir()
    first, again = write(RECORDS, tmp_path), write(RECORDS, tmp_path / "again")
    assert [file.name for file in first] == ["accuracy.svg", "accuracy.png"]
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size > 5000
    assert b"<svg" in first[0].read_bytes()[:2000] and first[1].read_bytes().startswith(b"\x89PNG")


def test_a_comparison_of_which_nothing_ended_is_an_empty_frame():
    left, right = draw(RECORDS[-1:]).axes
    assert not left.lines and not right.lines
